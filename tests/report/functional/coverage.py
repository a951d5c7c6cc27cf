"""Simulated coverage of intervals and rate of false findings: `python -m tests.report.functional.coverage`."""

import numpy as np

from kdbench.report.functional.inference import bootstrap_interval, choose_test, difference, p_of_less
from kdbench.report.statistics import holm

SAMPLES, STUDIES = 4000, 1000
DISTANCES = 4


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


def false_findings(n: int, conditions: int, correlation: float, ratio: float = 1.0, studies: int = STUDIES) -> float:
    """Return the share of studies with a significant row where nothing is transferred, in [0, 1].

    Values are normal; the four distances of a run correlate by 0.8, and all conditions share their control.

    Args:
        n: number of seeds.
        conditions: number of conditions.
        correlation: of a student with the control run of its seed.
        ratio: standard deviation of the students, of the controls it is 1.
        studies: number of simulated studies.
    """
    random, found = np.random.default_rng(2), 0

    def draw(common: np.ndarray) -> np.ndarray:
        own = np.sqrt(0.8) * random.normal(size=(n, 1)) + np.sqrt(0.2) * random.normal(size=(n, DISTANCES))
        return np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own

    for _ in range(studies):
        common = np.sqrt(0.8) * random.normal(size=(n, 1)) + np.sqrt(0.2) * random.normal(size=(n, DISTANCES))
        control = draw(common)
        test = choose_test([(n, n, True)] * (conditions * DISTANCES))
        ps = []
        for _ in range(conditions):
            students = ratio * draw(common)
            ps += [p_of_less(test, students[:, k], control[:, k]) for k in range(DISTANCES)]
        found += min(holm(ps)) < 0.05
    return found / studies


if __name__ == "__main__":
    for seeds in (5, 6, 8, 10, 20):
        cells = [f"{coverage(seeds, p, s):.3f}" for p in (True, False) for s in (False, True)]
        print(f"{seeds} seeds: paired, normal and skewed {' '.join(cells[:2])}; two arms {' '.join(cells[2:])}")
    for seeds in (6, 10):
        for conditions in (1, 9):
            rates = [f"{false_findings(seeds, conditions, rho, ratio):.3f}" for ratio in (1, 0.5) for rho in (0, 0.5)]
            print(f"false findings, {seeds} seeds, {conditions} conditions: {' '.join(rates)}")
