"""Latency of several networks, measured in turn in one process."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from kdbench.system.signals import raise_if_requested

SHORTEST = 0.02
"""Seconds of one measurement at least: a clock read and the first cache misses then count for little."""


@dataclass
class Candidate:
    """Something whose latency is measured.

    Args:
        execute: one pass; returns when it is over.
        batch: number of images of the pass.
    """

    execute: Callable[[], object]
    batch: int
    repetitions: int = 1
    """Passes of one measurement."""
    seconds: list[float] = field(default_factory=list)
    """Seconds of a pass, by round."""

    def warm_up(self, passes: int) -> None:
        """Execute some passes, and set the number of those that a measurement takes."""
        for _ in range(passes):
            self.execute()
        start = time.perf_counter()
        self.execute()
        self.repetitions = max(1, round(SHORTEST / max(time.perf_counter() - start, 1e-7)))

    def measure(self) -> None:
        """Measure once, after a pass that is not measured: caches and threads are then those of this network."""
        self.execute()
        start = time.perf_counter()
        for _ in range(self.repetitions):
            self.execute()
        self.seconds.append((time.perf_counter() - start) / self.repetitions)

    def latency(self) -> dict[str, float]:
        """Return median and quartiles over the rounds in milliseconds, and the throughput at the median."""
        low, median, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        milliseconds = {"median_ms": 1e3 * median, "low_ms": 1e3 * low, "high_ms": 1e3 * high}
        return {**milliseconds, "images_per_second": self.batch / median}


def measure_in_turn(candidates: Sequence[Candidate], rounds: int, warmup: int) -> None:
    """Measure every candidate once per round, in another order in each, so that no one follows the same other always.

    Args:
        candidates: what is measured; the results are added to them.
        rounds: number of measurements of each.
        warmup: passes of each before the first round.

    Raises:
        Interrupted: a stop was requested.
    """
    for candidate in candidates:
        raise_if_requested()
        candidate.warm_up(warmup)
    order = random.Random(0)
    for _ in range(rounds):
        for candidate in order.sample(candidates, len(candidates)):
            raise_if_requested()
            candidate.measure()
