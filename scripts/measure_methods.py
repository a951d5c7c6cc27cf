#!/usr/bin/env python
"""Measure what a training step of each method costs beside cross-entropy and `feature`: time, and memory for tensors.

    scripts/measure_methods.py --out results/methods/cost.csv

All methods train in one process in turn, A B C A B C, each with a live teacher of its own; ratios compare visits of the
same round. Memory is that of the method's parameters and buffers, and of the tensors that a step keeps for its backward
pass; it does not depend on the machine.
"""

import argparse
import csv
import statistics
import time
from pathlib import Path

import torch

import kdbench
from kdbench.bench.lockstep import build_group
from kdbench.bench.training import Training
from kdbench.config import CONF_DIR
from kdbench.data.dataset import resolve_data
from kdbench.system.device import resolve_runtime, torch_settings

OVERRIDES = ("data=shapes", "data.num_train=4096", "data.num_val=100", "data.num_test=100", "recipe.batch_size=128")
NEEDED = {"crd": ("data.num_train=45000",)}
"""Overrides that a method needs: its negatives are more than these images, and its time grows with their number."""
EPOCH = 45_000
"""Images of the epoch to which the seconds are scaled: CIFAR-10 without its validation images."""


def saved_bytes(training: Training) -> int:
    """Return the bytes of the tensors that a step keeps for its backward pass, each storage once."""
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        training.train(1)
    return sum(storages.values())


def main() -> None:
    """Measure, and write a row per method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="CSV file to write")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="steps of a visit")
    parser.add_argument("--threads", default="auto")
    parser.add_argument("--pair", default="resnet20_resnet8")
    arguments = parser.parse_args()
    names = sorted(file.stem for file in (CONF_DIR / "method").glob("*.yaml"))
    trainings: dict[str, Training] = {}
    memory: dict[str, tuple[int, int]] = {}
    first = kdbench.compose([f"pair={arguments.pair}", f"runtime.threads={arguments.threads}", *OVERRIDES])
    runtime = resolve_runtime(first.runtime)
    with torch_settings(runtime):
        for name in names:
            config = kdbench.compose([f"pair={arguments.pair}", f"method={name}", *OVERRIDES, *NEEDED.get(name, ())])
            config.runtime, config.data = runtime, resolve_data(config.data, runtime.device)
            training = trainings[name] = build_group([config])
            training.train(1)  # libraries choose their kernels here
            method = training.learners[0].method
            state = sum(tensor.nbytes for tensor in (*method.parameters(), *method.buffers()))
            memory[name] = state, saved_bytes(training)
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(arguments.rounds):
            for name in names:
                started = time.perf_counter()
                trainings[name].train(arguments.steps)
                seconds[name].append((time.perf_counter() - started) / arguments.steps)
    rows = []
    for name in names:
        ratios = {
            other: [a / b for a, b in zip(seconds[name], seconds[other], strict=True)] for other in ("ce", "feature")
        }
        state, saved = memory[name]
        rows.append(
            {
                "method": name,
                "seconds_per_epoch": round(statistics.median(seconds[name]) * EPOCH / 128, 2),
                "ratio_to_ce": round(statistics.median(ratios["ce"]), 3),
                "ratio_to_feature": round(statistics.median(ratios["feature"]), 3),
                "lowest_ratio_to_feature": round(min(ratios["feature"]), 3),
                "highest_ratio_to_feature": round(max(ratios["feature"]), 3),
                "state_megabytes": round(state / 1e6, 2),
                "saved_megabytes": round(saved / 1e6, 1),
                "saved_ratio_to_ce": round(saved / memory["ce"][1], 3),
                "rounds": arguments.rounds,
                "device": runtime.device,
                "precision": runtime.precision,
                "threads": runtime.threads,
            }
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with arguments.out.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["ratio_to_ce"]))


if __name__ == "__main__":
    main()
