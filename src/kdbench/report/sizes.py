"""Sizes of gains that are named because they are significant: how exaggerated, and what a shrunken estimate says."""

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from kdbench.report.design import Estimate


def shrink(estimates: Sequence[Estimate]) -> list[float]:
    """Return gains moved towards zero by as much as they are noise.

    The true gains of a family count as normal around zero; their spread is what the gains' squares have beyond their
    squared standard errors. A gain keeps the share of its variance that this spread is.

    Returns:
        In points; NaN for an estimate without a standard error.

    Source: Efron and Morris 1975, Journal of the American Statistical Association 70.
    """
    known = [estimate for estimate in estimates if estimate.se > 0]
    if not known:
        return [math.nan] * len(estimates)
    spread = max(0.0, float(np.mean([e.difference**2 - e.se**2 for e in known])))
    return [e.difference * spread / (spread + e.se**2) if e.se > 0 else math.nan for e in estimates]


def exaggeration(estimate: Estimate, truth: float, level: float) -> float:
    """Return how many times too large an estimate is on average where it comes out significant.

    Args:
        estimate: its standard error and degrees of freedom are used, not its value.
        truth: true difference, points.
        level: largest p that counts as significant.

    Returns:
        At least 1; NaN for a truth of zero, for which every significant estimate is wrong.

    Source: Gelman and Carlin 2014, Perspectives on Psychological Science 9 (error of magnitude).
    """
    if not (estimate.se > 0 and truth):
        return math.nan
    ratio, df = abs(truth) / estimate.se, max(1.0, round(estimate.df))
    random = np.random.default_rng(7)
    noise = random.standard_normal(100_000)
    scale = np.sqrt(random.chisquare(df, noise.size) / df)
    found = abs(ratio + noise) >= float(stats.t.isf(level / 2, df)) * scale
    if found.sum() < 20:
        return math.nan
    return max(1.0, float(np.mean(abs(ratio + noise)[found])) / ratio)
