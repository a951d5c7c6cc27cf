"""Simulated reports under the rule of the primary analysis: false findings, coverage and power.

    python -m tests.report.calibration          # prints the tables of docs/report.md

The rule is written here a second time, for many reports at once; test_calibration.py checks that both give the same.
"""

from dataclasses import dataclass

import numpy as np
from scipy import stats

DRAWS = 20_000
SPREADS = {
    "equal": lambda arms: np.ones(arms),
    "half of the arms twice": lambda arms: np.where(np.arange(arms) % 2 == 0, 1.0, 2.0),
    "one arm three times": lambda arms: np.where(np.arange(arms) < arms - 1, 1.0, 3.0),
    "baseline twice": lambda arms: np.where(np.arange(arms) > 0, 1.0, 2.0),
    "from 0.5 to 2": lambda arms: np.linspace(0.5, 2, arms),
}
"""Standard deviations of arms over seeds; the baseline is the first."""


@dataclass
class Rates:
    """Shares of simulated reports (`family_error`, `power`) and of intervals (`coverage`)."""

    family_error: float
    coverage: float
    power: float
    """Share in which the first gain is significant."""
    joint_coverage: float


def simulate(seeds, spreads, correlation, gain=0.0, draws=DRAWS, analysis="auto", seed=0, joint=None):
    """Simulate reports of one student.

    Args:
        spreads: standard deviation of each arm, the baseline first.
        correlation: of the accuracies of one seed in two arms.
        gain: true gain of the first arm; the others have none.
        joint: level of the simultaneous intervals; none without it.
    """
    random, arms = np.random.default_rng(seed), len(spreads)
    shared = np.sqrt(correlation) * random.standard_normal((draws, seeds, 1))
    values = (shared + np.sqrt(1 - correlation) * random.standard_normal((draws, seeds, arms))) * np.asarray(spreads)
    truth = np.zeros(arms - 1)
    truth[0] = gain
    values[:, :, 1:] += truth
    estimate, se, df = apply_rule(values, analysis)
    p = 2 * stats.t.sf(abs(estimate) / se, df)
    found = holm(p) < 0.05
    error = abs(estimate - truth) / se
    return Rates(
        family_error=float(found[:, truth == 0].any(axis=1).mean()),
        coverage=float((error <= stats.t.ppf(0.975, df)).mean()),
        power=float(found[:, 0].mean()),
        joint_coverage=float((error <= stats.t.isf(joint / 2, df)).all(axis=1).mean()) if joint else float("nan"),
    )


def apply_rule(values, analysis="auto"):
    """Return estimates, standard errors and degrees of freedom [R, K - 1] for accuracies [R, n, K] of one student."""
    _, n, arms = values.shape
    gains = values[:, :, 1:] - values[:, :, :1]
    estimate, own = gains.mean(axis=1), gains.var(axis=1, ddof=1)
    rest = values - values.mean(axis=1, keepdims=True) - values.mean(axis=2, keepdims=True)
    rest += values.mean(axis=(1, 2), keepdims=True)
    df = (n - 1) * (arms - 1)
    of_arms = (rest**2).sum(axis=1) / (df / arms)
    pooled = 2 * (rest**2).sum(axis=(1, 2))[:, None] / df
    if analysis == "blocks":
        return estimate, np.sqrt(pooled / n) + 0 * estimate, np.full_like(estimate, df)
    if n < 5 and analysis == "auto":
        return apply_few(values)
    freedom = df / arms
    statistic = df * np.log(of_arms.mean(axis=1)) - freedom * np.log(of_arms).sum(axis=1)
    p = stats.chi2.sf(statistic / (1 + (arms / freedom - 1 / df) / (3 * (arms - 1))), arms - 1)
    alike = (p >= (0.7 if n < 8 else 0.3))[:, None] & (analysis == "auto")
    se = np.sqrt(np.where(alike, np.maximum(pooled, own), own) / n)
    return estimate, se, np.where(alike, df, n - 1.0) + 0 * estimate


def apply_few(values):
    """Return the same for fewer than five seeds: Welch's tests."""
    n = values.shape[1]
    estimate, own = (values[:, :, 1:] - values[:, :, :1]).mean(axis=1), values.var(axis=1, ddof=1)
    base, others = own[:, :1], own[:, 1:]
    df = (n - 1) * (base + others) ** 2 / (base**2 + others**2)
    return estimate, np.sqrt((base + others) / n), df


def holm(p):
    """Return Holm's adjusted p for the rows of [R, K]."""
    order, count = np.argsort(p, axis=1), p.shape[1]
    raised = np.maximum.accumulate(np.sort(p, axis=1) * np.arange(count, 0, -1), axis=1)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(raised, 1), axis=1)
    return adjusted


def main():
    print("family-wise error | coverage, eight gains, no true gain; n by row, correlation 0 and 0.75")
    for name, spreads in SPREADS.items():
        for n in (2, 3, 5, 8, 10):
            cells = [simulate(n, spreads(9), correlation) for correlation in (0, 0.75)]
            print(f"{name:24}", n, *(f"{c.family_error:.3f} | {c.coverage:.3f}" for c in cells), sep="\t")
    print("power for a gain of 1.3 standard deviations among eight, correlation 0.5: auto, blocks, paired")
    for n in (5, 10, 15):
        rates = [simulate(n, np.ones(9), 0.5, 1.3, analysis=analysis) for analysis in ("auto", "blocks", "paired")]
        print(n, *(f"{rate.power:.3f}" for rate in rates), sep="\t")


if __name__ == "__main__":
    main()
