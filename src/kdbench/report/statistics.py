"""Tests and power computations of the report, on accuracies in per cent (differences are points).

Tests come from scipy and statsmodels; this module chooses the functions and defines the undefined cases:
with fewer than two values in an arm, or no variation at all, a result is NaN, never an exception.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy import integrate, optimize, stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.weightstats import ttost_ind

NAN = float("nan")
ALPHA = 0.05
POWER = 0.8
MOST_SEEDS = 1_000_000
"""Largest number of seeds that is searched for."""
CERTAIN = 20.0
"""Number of standard errors from which a difference counts as always detected: the noncentral t is not evaluated."""


@dataclass(frozen=True)
class Comparison:
    """Difference of means with its standard error, degrees of freedom, 95 % interval and two-sided p."""

    difference: float
    se: float
    df: float
    low: float
    high: float
    p: float


def std(values: Sequence[float]) -> float:
    """Return the sample standard deviation (n - 1); NaN for fewer than two values."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else NAN


def contrast(arms: Sequence[Sequence[float]], weights: Sequence[float]) -> Comparison:
    """Compare a weighted sum of independent arms' means with 0, each arm with a variance of its own.

    With weights 1, -1, -1, 1 an interaction, a difference of two gains; with 1 and -1 it equals Welch's t-test.

    Args:
        arms: values of each arm.
        weights: weight of each arm.

    Returns:
        With Welch-Satterthwaite degrees of freedom over all arms. Only the difference is a number, and the rest NaN, if
        an arm has fewer than two values or no arm varies.

    Source: Welch 1947, Biometrika 34; Satterthwaite 1946, Biometrics Bulletin 2.
    """
    difference = float(sum(w * np.mean(arm) for w, arm in zip(weights, arms, strict=True)))
    if min(len(arm) for arm in arms) < 2 or not any(varies(arm) for arm in arms):
        return Comparison(difference, NAN, NAN, NAN, NAN, NAN)
    parts = [w**2 * float(np.var(arm, ddof=1)) / len(arm) for w, arm in zip(weights, arms, strict=True)]
    se = math.sqrt(sum(parts))
    df = sum(parts) ** 2 / sum(part**2 / (len(arm) - 1) for part, arm in zip(parts, arms, strict=True))
    low, high = stats.t.interval(1 - ALPHA, df, loc=difference, scale=se)
    return Comparison(difference, se, df, float(low), float(high), float(2 * stats.t.sf(abs(difference) / se, df)))


def varies(values: Sequence[float]) -> bool:
    """Return whether values differ by more than rounding."""
    return float(np.ptp(values)) > 1e-9 * max(1.0, float(np.max(np.abs(values))))


def welch(values: Sequence[float], base: Sequence[float]) -> Comparison:
    """Return Welch's t-test of two independent arms; where it is undefined only the difference is a number."""
    comparison = contrast([values, base], [1.0, -1.0])
    if math.isnan(comparison.se):
        return comparison
    ours, theirs = (float(np.mean(values)), std(values)), (float(np.mean(base)), std(base))
    test = stats.ttest_ind_from_stats(*ours, len(values), *theirs, len(base), equal_var=False)
    return replace(comparison, p=float(test.pvalue))


def paired(values: Sequence[float], base: Sequence[float]) -> float:
    """Return the two-sided p of the paired t-test, values of one position a pair; NaN where all pairs differ alike."""
    differences = [float(a - b) for a, b in zip(values, base, strict=True)]
    if len(differences) < 2 or not varies(differences):
        return NAN
    return float(stats.ttest_rel(values, base).pvalue)


def holm(ps: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values over the family of those that are numbers; NaN stays NaN and is not counted.

    Equal to statsmodels' `multipletests`, which collects garbage at each call: half of the time of a small report.

    Source: Holm 1979, Scandinavian Journal of Statistics 6.
    """
    given = np.asarray(ps, dtype=float)
    adjusted = np.full(len(given), NAN)
    order = np.argsort(given)[: np.count_nonzero(~np.isnan(given))]  # NaN is sorted to the end
    adjusted[order] = np.minimum(np.maximum.accumulate(given[order] * np.arange(len(order), 0, -1)), 1)
    return adjusted.tolist()


def equivalence(values: Sequence[float], base: Sequence[float], margin: float) -> float:
    """Return the p of two one-sided Welch tests: small means that the difference of means lies within +-margin.

    Source: Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15.
    """
    if min(len(values), len(base)) < 2 or not (varies(values) or varies(base)):
        return NAN
    return float(ttost_ind(np.asarray(values), np.asarray(base), -margin, margin, usevar="unequal")[0])


def pooled_std(groups: Sequence[Sequence[float]]) -> float:
    """Return the standard deviation within groups, pooled over those with at least two values; NaN without any."""
    counted = [group for group in groups if len(group) > 1]
    freedom = sum(len(group) - 1 for group in counted)
    return math.sqrt(sum((len(g) - 1) * np.var(g, ddof=1) for g in counted) / freedom) if freedom else NAN


def power_of(difference: float, std: float, counts: Sequence[int]) -> float:
    """Return the chance that a two-sided t-test at 0.05 detects a true difference between sums of arms' means.

    Args:
        difference: true difference.
        std: standard deviation of every arm, above 0.
        counts: number of values in each arm; two arms for a gain, four for an interaction.
    """
    standardised, df = difference / (std * math.sqrt(sum(1 / n for n in counts))), sum(counts) - len(counts)
    if standardised > CERTAIN:
        return 1.0
    if standardised == 0:
        return ALPHA
    # The square of a noncentral t; scipy's noncentral t itself is NaN in far tails.
    return float(stats.ncf.sf(stats.f.isf(ALPHA, 1, df), 1, df, standardised**2))


@lru_cache(maxsize=1024)
def smallest_detectable(std: float, counts: tuple[int, ...]) -> float:
    """Return the smallest true difference that a two-sided t-test at 0.05 detects with 80 % power, or NaN."""
    if min(counts) < 2 or not std > 0:
        return NAN
    most = CERTAIN * math.sqrt(sum(1 / n for n in counts))
    return std * float(optimize.brentq(lambda d: power_of(d, 1.0, counts) - POWER, 1e-9, most))


@lru_cache(maxsize=1024)
def seeds_for(difference: float, std: float) -> int | None:
    """Return the seeds per arm that detect a gain of that size with 80 % power; None without a standard deviation."""
    return fewest(lambda n: power_of(difference, std, (n, n))) if std > 0 else None


@lru_cache(maxsize=1024)
def seeds_for_equivalence(margin: float, std: float) -> int | None:
    """Return the seeds per arm that show equivalence (two one-sided tests, 80 % power) where there is no difference."""
    return fewest(lambda n: power_of_equivalence(margin, std, n)) if std > 0 else None


def power_of_equivalence(margin: float, std: float, n: int) -> float:
    """Return the chance that two one-sided t-tests at 0.05 find two arms of n equivalent whose true means are equal.

    For an estimated standard error e both tests reject where the difference is within margin - t * e; its probability
    is averaged over the chi distribution of e (Phillips 1990, Journal of Pharmacokinetics and Biopharmaceutics 18).
    """
    freedom, se = 2 * n - 2, std * math.sqrt(2 / n)
    critical = stats.t.ppf(1 - ALPHA, freedom)
    estimate = stats.chi(freedom, scale=1 / math.sqrt(freedom))  # of the standard error, as a share of the true one

    low, high = estimate.ppf([1e-10, 1 - 1e-10])
    end = min(margin / (se * critical), high)
    if end <= low:
        return 0.0
    shares = np.linspace(low, end, 1001)
    found = (2 * stats.norm.cdf(margin / se - critical * shares) - 1) * estimate.pdf(shares)
    return float(integrate.simpson(found, x=shares))


def fewest(power: Callable[[int], float], guess: int = 2) -> int | None:
    """Return the smallest n of at least 2 with enough power, which grows with n; None if a million are too few.

    Args:
        power: power of n.
        guess: n at which the search begins; the nearer it is, the fewer powers are computed.
    """
    step, low, high = 1, guess - 1, guess
    while not power(high) >= POWER:
        if high == MOST_SEEDS:
            return None
        low, high, step = high, min(high + step, MOST_SEEDS), 2 * step
    while step == 1 and low > 1 and power(low) >= POWER:  # the guess was large enough
        high, low = low, max(1, low - (high - low) * 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Return the exact two-sided p of McNemar's test; 1 without images that differ.

    Args:
        only_a: number of images that only a classifies correctly.
        only_b: number of images that only b classifies correctly.

    Source: McNemar 1947, Psychometrika 12; exact by the binomial distribution.
    """
    return float(mcnemar([[0, only_a], [only_b, 0]], exact=True).pvalue)
