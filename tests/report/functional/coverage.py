"""Simulated coverage of the intervals over seeds: `python -m tests.report.functional.coverage`."""

import numpy as np

from kdbench.report.functional.inference import bootstrap_interval, difference

SAMPLES = 4000


def coverage(n: int, is_paired: bool, skewed: bool, samples: int = SAMPLES) -> float:
    """Return how often the interval of a mean difference holds the true one, which is 0, in [0, 1].

    Args:
        n: number of seeds per arm.
        is_paired: whether both arms have the same seeds; the control is constant then, so that the pairs' difference
            has the distribution.
        skewed: exponential instead of normal values.
        samples: number of simulated comparisons.
    """
    random, hits = np.random.default_rng(1), 0

    def draw() -> np.ndarray:
        return (random.exponential(size=n) - 1 if skewed else random.normal(size=n))[:, None]

    for _ in range(samples):
        values = draw()
        low, high = bootstrap_interval(difference, values, np.zeros((n, 1)) if is_paired else draw(), is_paired)
        hits += bool(low[0] <= 0 <= high[0])
    return hits / samples


if __name__ == "__main__":
    for seeds in (5, 6, 8, 10, 20):
        cells = [f"{coverage(seeds, p, s):.3f}" for p in (True, False) for s in (False, True)]
        print(f"{seeds} seeds: paired, normal and skewed {' '.join(cells[:2])}; two arms {' '.join(cells[2:])}")
