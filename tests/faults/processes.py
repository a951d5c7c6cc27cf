"""Real processes that come up in milliseconds: children of one that has imported everything already."""

import contextlib
import functools
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from kdbench import cli
from kdbench.compose import run_config
from kdbench.config import RunConfig
from kdbench.data import load
from kdbench.run import execute

SMALL = (
    "student=resnet8", "teacher=resnet20", "student.widths=[8,8,16,16]", "teacher.widths=[8,8,16,16]", "data=shapes",
    "data.num_train=64", "data.num_val=20", "data.num_test=20", "recipe=smoke", "recipe.batch_size=16",
    "recipe.epochs=3", "teacher.recipe.batch_size=16", "teacher.recipe.epochs=2", "runtime.device=cpu",
    "runtime.threads=1", "runtime.precision=fp32", "output_root=out", "checkpoint.every_minutes=0",
)  # fmt: skip
"""A run of a second, which writes a checkpoint after every step."""

NOBODY = 65534


def forks() -> multiprocessing.context.ForkServerContext:
    """Where the children come from. The data set is in memory, as it would be after the first run of a sweep."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.preloaded"])
    return context


def preload() -> None:
    torch.set_num_threads(1)
    load(run_config(*SMALL, "method=ce").data, "cpu")


class Command:
    """One call of `kdbench`, in a process of its own.

    Args:
        folder: Its working directory.
        arguments: Of the command line.
        largest_file: Bytes that no file may grow beyond: what a full disk does, in a place of one's choice.
        unprivileged: As a user who may not write where nobody may.
    """

    def __init__(
        self,
        context: multiprocessing.context.ForkServerContext,
        folder: Path,
        arguments: Sequence[str],
        largest_file: int | None = None,
        unprivileged: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # What it says goes through a pipe: it must be heard where no file can be written.
        self.said, speaks = context.Pipe(duplex=False)
        self.is_sweep = "-m" in arguments
        asked = tuple(arguments) if self.is_sweep else composed(*arguments)
        self.process: BaseProcess = context.Process(
            target=called, args=(folder, asked, speaks, largest_file, unprivileged)
        )
        self.process.start()
        speaks.close()
        self.heard: str | None = None

    def send(self, number: signal.Signals) -> bool:
        """Whether it was still there to hear it."""
        with contextlib.suppress(ProcessLookupError):
            if self.process.is_alive() and self.process.pid:
                os.kill(self.process.pid, number)
                return True
        return False

    def ended(self, timeout: float = 300) -> int:
        """Wait for its exit code; negative: the signal that ended it."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"still running after {timeout:.0f} s:\n{self.output()}")
        return self.process.exitcode

    def output(self) -> str:
        """All that it said, once it has ended."""
        if self.heard is None:
            with open(self.said.fileno(), "rb", closefd=False) as pipe:
                self.heard = pipe.read().decode()
            self.said.close()
        return self.heard

    def errors(self) -> list[str]:
        return [line for line in self.output().splitlines() if line.startswith("kdbench: error: ")]


@functools.cache
def composed(*arguments: str) -> RunConfig:
    """Most of a small run's time goes by in Hydra, where nothing is written: so only sweeps compose in the child."""
    return run_config(*arguments)


def called(
    folder: Path, asked: tuple[str, ...] | RunConfig, speaks: Connection, largest_file: int | None, unprivileged: bool
) -> None:
    """What the child does: a command line, or a run that is composed already."""
    for standard in (1, 2):
        os.dup2(speaks.fileno(), standard)
    speaks.close()
    sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115  # open until the process ends
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    if unprivileged and os.getuid() == 0:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    if isinstance(asked, RunConfig):
        cli.say_what_happens()
        sys.exit(cli.exit_code_of(lambda: execute(asked) and 0))
    sys.argv = ["kdbench", *asked]
    sys.exit(cli.command(list(asked)))
