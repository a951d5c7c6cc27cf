"""Measurement of arms in turn, A B C A B C: a machine whose speed drifts then drifts for all of them."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from tqdm import tqdm

from kdbench.bench.arms import REFERENCE, Arm
from kdbench.bench.trainee import Bench, Trainee
from kdbench.system.device import kind_of

PEAKS = {
    "H200": {"bf16": 989e12, "fp16": 989e12, "tf32": 494e12, "fp32": 67e12},
    "H100": {"bf16": 989e12, "fp16": 989e12, "tf32": 494e12, "fp32": 67e12},
    "A100": {"bf16": 312e12, "fp16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
}
"""FLOP/s without sparsity, from NVIDIA's data sheets of the SXM forms; fp32 is that of the plain units."""
PAUSE = 0.2
"""Seconds between visits (at most a visit's duration), in which the reference's workers finish their batches."""
CAPTURE_STEPS = 5
"""Number of steps after which an arm has captured its steps."""
WARM_UP = 0.1
"""Share of a visit's steps that come before its clock starts."""


@dataclass
class Timing:
    """The measurements of one arm: seconds per step, one figure per round."""

    arm: Arm
    step_seconds: list[float]
    steps: int
    """Steps per round."""
    memory: int = 0
    """Bytes on the GPU that the arm holds, and needs in addition while it trains."""


def measure_arms(bench: Bench, arms: Sequence[Arm], rounds: int, seconds: float, title: str) -> list[Timing]:
    """Train with each arm in turn, `rounds` times.

    Args:
        bench: what the arms share.
        arms: arms in the order of the rounds.
        rounds: number of rounds, at least 1.
        seconds: duration of a visit of an arm; at least one step.
        title: text before the progress bar.
    """
    device = bench.config.runtime.device
    trainees, built = [], []
    for arm in arms:
        before = allocated(device)
        trainees.append(Trainee(arm, bench))
        built.append(allocated(device) - before)
    timings, own_memory = [], {}
    with tqdm(desc=title, total=len(arms) * (rounds + 1), unit=" visits", dynamic_ncols=True, disable=None) as bar:
        for trainee, own in zip(trainees, built, strict=True):
            held = allocated(device)
            first = trainee.train(1)  # libraries choose their kernels here
            again = trainee.train(1) if first < seconds else first
            trainee.train(CAPTURE_STEPS if device != "cpu" else 0)
            timings.append(Timing(trainee.arm, [], max(1, round(seconds / again))))
            own_memory[trainee.arm.name] = own + allocated(device) - held
            bar.update()
        for _ in range(rounds):
            for trainee, timing in zip(trainees, timings, strict=True):
                time.sleep(min(PAUSE, seconds))
                trainee.discard_prefetched()
                held = allocated(device)
                trainee.train(int(WARM_UP * timing.steps))
                timing.step_seconds.append(trainee.train(timing.steps) / timing.steps)
                timing.memory = max(timing.memory, peak_allocated(device) - held)
                bar.update()
    for timing in timings:
        timing.memory += own_memory[timing.arm.name]
    return timings


def allocated(device: str) -> int:
    """Return the bytes of tensors on a GPU, and start to measure their peak anew."""
    if kind_of(device) != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def peak_allocated(device: str) -> int:
    """Return the largest number of bytes of tensors on a GPU since `allocated` was called."""
    return torch.cuda.max_memory_allocated(device) if kind_of(device) == "cuda" else 0


def figures(bench: Bench, timings: Sequence[Timing]) -> list[dict[str, Any]]:
    """Return a row per arm: images per second, seconds per step, FLOP/s, and the ratio to the reference's speed.

    A ratio compares an arm with the reference of the same round; its median, lowest and highest are given.
    """
    batch_size, runtime = bench.config.recipe.batch_size, bench.config.runtime
    reference = next((timing.step_seconds for timing in timings if timing.arm == REFERENCE), None)
    rows = []
    for timing in timings:
        arm, steps = timing.arm, timing.step_seconds
        speed = [batch_size / step for step in steps]
        flops = statistics.median(speed) * bench.flops_per_image(arm)
        peak = peak_flops(runtime.device, runtime.precision if arm.precision else "tf32")
        rows.append(
            {
                "arm": arm.name,
                "what": arm.what,
                "settings": {name: value for name, value in asdict(arm).items() if name not in ("name", "what")},
                "images_per_second": spread(speed),
                "step_seconds": steps,
                "steps_per_round": timing.steps,
                "flops_per_second": flops,
                "memory_bytes": timing.memory or None,
                "share_of_peak": flops / peak if peak else None,
                "ratio": spread([a / b for a, b in zip(reference, steps, strict=True)]) if reference else None,
            }
        )
    return rows


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, lowest, highest and number of some values."""
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values), "n": len(values)}


def peak_flops(device: str, precision: str) -> float | None:
    """Return the peak FLOP/s of a GPU, or None where it is not known."""
    if kind_of(device) != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peaks[precision] for part, peaks in PEAKS.items() if part in name), None)
