#!/usr/bin/env python3
"""Measure settings of a whole process, which cannot be arms of kdbench-bench, on this machine's CPU.

    scripts/measure_process.py [--rounds N] [--out FILE]      about three minutes on two cores

memory   ResNet-18 training with freed memory kept by the C library, and without
spinning resnet8 training in one process and in two at once, with waiting threads that yield soon, and without
parts    forward passes without gradient in parts of several sizes, with batch norm fused and not

Processes of two settings run in turn, A B A B.
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdbench.config import RunConfig

SPINS = "20000"
"""Value of GOMP_SPINCOUNT that kdbench sets, see `kdbench.system.cpu.configure_openmp`."""


def config_of(student: str) -> "RunConfig":
    """Return the resolved config of a student without a teacher, on the CPU."""
    from kdbench.bench.cases import Case
    from kdbench.bench.prepare import prepare

    return prepare(Case((f"student={student}", "teacher=none", "method=ce", "runtime.device=cpu"))).config


@contextlib.contextmanager
def returned_memory() -> Iterator[None]:
    """Have freed memory returned to the system in the block, although a run's settings keep it."""
    from kdbench.system.memory import start_keeping_freed_memory, stop_keeping_freed_memory

    stop_keeping_freed_memory()
    try:
        yield
    finally:
        start_keeping_freed_memory()


def training(student: str, seconds: float, keep_memory: bool) -> float:
    """Return the images per second of kdbench's training step.

    Args:
        student: name of the network.
        seconds: duration of the measurement.
        keep_memory: whether freed memory is kept, as in a run.
    """
    from kdbench.bench.arms import KDBENCH
    from kdbench.bench.trainee import Bench, Trainee
    from kdbench.system.device import torch_settings

    config = config_of(student)
    with torch_settings(config.runtime), contextlib.nullcontext() if keep_memory else returned_memory():
        trainee = Trainee(KDBENCH, Bench(config, workers=0))
        trainee.train(3)
        steps, spent = 0, 0.0
        while spent < seconds:
            spent += trainee.train(1)
            steps += 1
    return steps * config.recipe.batch_size / spent


def forward(rounds: int) -> dict[str, list[float]]:
    """Return the images per second of a forward pass over 128 images, by network, fusing and size of the parts."""
    import torch

    from kdbench.data import DataSpec
    from kdbench.models import build, fuse_batch_norm
    from kdbench.system.device import autocast, autocast_dtype, place, torch_settings

    speeds: dict[str, list[float]] = {}
    for name in ("resnet50", "resnet20"):
        config = config_of(name)
        with torch_settings(config.runtime), torch.no_grad(), autocast(config.runtime):
            plain = place(build(config.student, DataSpec(10, (3, 32, 32))), config.runtime).eval()
            networks = {"plain": plain, "fused": fuse_batch_norm(plain, autocast_dtype(config.runtime))}
            images = torch.randn(128, 3, 32, 32).contiguous(memory_format=torch.channels_last)
            for repetition in range(rounds + 1):
                for label, network in networks.items():
                    for part in (128, 64, 32, 16, 8):
                        started = time.perf_counter()
                        for some in images.split(part):
                            network(some)
                        if repetition:
                            speed = 128 / (time.perf_counter() - started)
                            speeds.setdefault(f"{name} {label}, parts of {part}", []).append(speed)
    return speeds


def start(*arguments: str, spins: str | None = SPINS) -> "subprocess.Popen[str]":
    """Start a process of this script that measures one setting."""
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if spins:
        environment["GOMP_SPINCOUNT"] = spins
    return subprocess.Popen(
        [sys.executable, __file__, "--child", *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )


def result_of(process: "subprocess.Popen[str]") -> Any:
    """Return what a process of `start` measured."""
    out, _ = process.communicate()
    assert process.returncode == 0
    return json.loads(out.splitlines()[-1])


def measure(rounds: int) -> dict[str, list[float]]:
    """Return the images per second by setting, one figure per round and process."""
    speeds: dict[str, list[float]] = {}

    def add(setting: str, *processes: "subprocess.Popen[str]") -> None:
        speeds.setdefault(setting, []).extend(result_of(process) for process in processes)

    for _ in range(rounds):
        for memory in ("kept", "returned"):
            add(f"resnet18, freed memory {memory}", start("train", "resnet18", "8", memory))
        for label, spins in (("yield", SPINS), ("spin", None)):
            train = ("train", "resnet8", "5", "kept")
            add(f"resnet8, waiting threads {label}, one process", start(*train, spins=spins))
            both = [start(*train, spins=spins) for _ in range(2)]
            add(f"resnet8, waiting threads {label}, each of two processes", *both)
    return speeds | result_of(start("forward", str(rounds)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="a JSON file")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        kind, *rest = given.child
        value = forward(int(rest[0])) if kind == "forward" else training(rest[0], float(rest[1]), rest[2] == "kept")
        print(json.dumps(value))
        return
    speeds = measure(given.rounds)
    for setting, values in speeds.items():
        print(f"{setting}: {statistics.median(values):,.0f} images/s ({min(values):,.0f} to {max(values):,.0f})")
    if given.out:
        from kdbench.runner.environment import environment

        result = {"environment": environment(config_of("resnet8")), "images_per_second": speeds}
        given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
