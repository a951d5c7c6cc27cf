#!/usr/bin/env python3
"""What belongs to a whole process and so cannot be an arm of kdbench-bench, measured on this machine's CPU.

    scripts/measure_process.py [--rounds N] [--out FILE]      about three minutes on two cores

memory   ResNet-18 training with freed memory kept by the C library, and without
spinning resnet8 training in one process and in two at once, with waiting threads that give way soon, and without
parts    forward passes without gradient in parts of several sizes, batch norm folded and not

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
from pathlib import Path
from typing import Any

SPINS = "20000"


def training(student: str, seconds: float, kept: bool) -> float:
    """Images a second of kdbench's training step."""
    from kdbench import runtime
    from kdbench.bench.arms import KDBENCH, Bench, Trainee
    from kdbench.bench.command import Case, checked

    if not kept:
        runtime.freed_memory_kept = contextlib.nullcontext  # type: ignore[assignment]  # the setting to do without
    _, config, _ = checked(Case((f"student={student}", "teacher=none", "method=ce", "runtime.device=cpu")))
    with runtime.applied(config.runtime):
        trainee = Trainee(KDBENCH, Bench(config, workers=0))
        trainee.train(3)
        steps, spent = 0, 0.0
        while spent < seconds:
            spent += trainee.train(1)
            steps += 1
    return steps * config.recipe.batch_size / spent


def forward(rounds: int) -> dict[str, list[float]]:
    """Images a second of a forward pass over 128 images, by network, folding and size of the parts."""
    import torch

    from kdbench.bench.command import Case, checked
    from kdbench.models import build, folded
    from kdbench.runtime import applied, autocast, narrow, placed

    speeds: dict[str, list[float]] = {}
    for name in ("resnet50", "resnet20"):
        _, config, _ = checked(Case((f"student={name}", "teacher=none", "method=ce", "runtime.device=cpu")))
        with applied(config.runtime), torch.no_grad(), autocast(config.runtime):
            plain = placed(build(config.student, 10), config.runtime).eval()
            networks = {"plain": plain, "folded": folded(plain, narrow(config.runtime))}
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


def started(*arguments: str, spins: str | None = SPINS) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"}
    if spins:
        environment["GOMP_SPINCOUNT"] = spins
    return subprocess.Popen(
        [sys.executable, __file__, "--child", *arguments], env=environment, stdout=subprocess.PIPE, text=True
    )


def told(process: "subprocess.Popen[str]") -> Any:
    out, _ = process.communicate()
    assert process.returncode == 0
    return json.loads(out.splitlines()[-1])


def measure(rounds: int) -> dict[str, list[float]]:
    """Images a second per setting, one figure per round and process."""
    speeds: dict[str, list[float]] = {}

    def add(setting: str, *processes: "subprocess.Popen[str]") -> None:
        speeds.setdefault(setting, []).extend(told(process) for process in processes)

    for _ in range(rounds):
        for kept in ("kept", "returned"):
            add(f"resnet18, freed memory {kept}", started("train", "resnet18", "8", kept))
        for label, spins in (("give way", SPINS), ("spin", None)):
            train = ("train", "resnet8", "5", "kept")
            add(f"resnet8, waiting threads {label}, one process", started(*train, spins=spins))
            both = [started(*train, spins=spins) for _ in range(2)]
            add(f"resnet8, waiting threads {label}, each of two processes", *both)
    return speeds | told(started("forward", str(rounds)))


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
        from kdbench.bench.command import Case, checked
        from kdbench.summary import environment

        _, config, _ = checked(Case(("method=ce", "runtime.device=cpu")))
        result = {"environment": environment(config), "images_per_second": speeds}
        given.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
