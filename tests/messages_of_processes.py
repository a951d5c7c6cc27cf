"""Calls with a user's mistakes in starting several processes; tests/test_messages.py holds their messages."""

import dataclasses
from collections.abc import Callable
from contextlib import contextmanager

import pytest
import torch

from kdbench.config import ModelConfig
from kdbench.models import build
from kdbench.runner.build import check_parts
from kdbench.runner.run import resolve_run
from kdbench.system import world
from kdbench.system.device import resolve_device
from kdbench.system.world import World, start_world
from kdbench.train.parallel_student import ParallelStudent
from tests.conftest import SMALL, composed_once
from tests.networks import SPEC, Plain


@contextmanager
def processes(size: int, local_rank: int = 0, gpus: int = 0):
    """Be the first of several processes, on a machine with so many GPUs."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(world, "_world", World(0, size, local_rank))
        patched.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        patched.setattr(torch.cuda, "device_count", lambda: gpus)
        yield


def checked(size: int, *overrides: str) -> None:
    """Check a run that several processes train."""
    with processes(size):
        check_parts(resolve_run(composed_once(*SMALL, "teacher=none", "method=ce", *overrides))[0])


def device(wanted: str, local_rank: int, gpus: int) -> None:
    """Resolve the device of a process."""
    with processes(4, local_rank, gpus):
        resolve_device(wanted)


def started_with(**variables: str) -> None:
    """Start a process with variables of torchrun in its environment."""
    given = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "here", "MASTER_PORT": "1"} | variables
    with processes(1), pytest.MonkeyPatch.context() as patched:
        for name, value in given.items():
            patched.setenv(name, value)
        start_world()


def host_noise() -> None:
    """Train a network that draws random numbers from NumPy in two processes."""
    config = composed_once(*SMALL, "teacher=none", "method=ce")
    student = ModelConfig("noise", "tests.networks.NumpyNoise", {}, {})
    with processes(2):
        check_parts(resolve_run(dataclasses.replace(config, student=student))[0])


class Noise(Plain):
    """A network that draws random numbers in each pass."""

    def forward(self, images):
        logits = super().forward(images)
        return logits + torch.randn_like(logits)


class Itself(World):
    """The first of two processes, with a second one that sends the same."""

    def gather(self, own, images):
        return torch.cat([own, own])


def unreachable() -> None:
    """Connect to processes that cannot be reached."""

    def fail(url: str) -> None:
        raise RuntimeError("no route to host")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(world, "rendezvous", fail)
        patched.setenv("MASTER_ADDR", "far.example")
        patched.setenv("MASTER_PORT", "29500")
        World(1, 2, 1).connect()


def not_parallel() -> None:
    """Train a network with dropout in two processes."""
    torch.manual_seed(0)
    network = build(ModelConfig("noise", "tests.messages_of_processes.Noise", {}, {}), SPEC)
    ParallelStudent(network, Itself(0, 2), True, "cpu").check_exact(torch.ones(4, 3, 32, 32))


def ended() -> None:
    """Communicate with a process that has ended."""
    with World(0, 2, problem="process 1 of 2 ended: killed").communicating():
        raise AssertionError


PROCESSES_CASES: list[Callable[[], None]] = [
    lambda: checked(3), lambda: checked(2, "data.num_train=33"),
    lambda: checked(2, "data.num_train=34", "recipe.accumulate=2"),
    lambda: checked(2, "runtime.compile=true"), lambda: checked(2, "runtime.parallel=both"),
    lambda: checked(2, "runtime.parallel=local", "data.num_train=34"),
    lambda: checked(1, "runtime.processes=2", "runtime.parallel=local"),
    host_noise,
    lambda: device("cuda:1", 0, 4), lambda: device("cuda", 2, 2), lambda: device("auto", 3, 1),
    lambda: started_with(RANK="first"), unreachable, not_parallel, ended,
]  # fmt: skip
"""Calls, each of which ends in an error."""
