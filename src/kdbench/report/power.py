"""Power of the rule that the verdict uses, correction included, and intervals that hold for a whole family at once.

Both come from one simulation of the rule under normal noise with equal spreads. In it a report is a tuple of block
sizes: 5 and 3 stand for one student with a baseline and four arms, and one with a baseline and two. The unit is the
standard deviation of a run within its arm and seed, so one simulation serves every spread.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from kdbench.report.design import FEWEST_ARMS, FEWEST_SEEDS, Analysis, bartlett, homogeneity_level
from kdbench.report.statistics import ALPHA, CERTAIN, MOST_SEEDS, POWER, fewest

Floats = NDArray[np.float64]
DRAWS = 4000
"""Simulated reports: the standard error of a power of 0.8 is 0.006."""
MOST_NUMBERS = 3_000_000
"""Random numbers of one simulation, beyond which it has fewer draws."""
LEAST_DRAWS = 500
MOST_COLUMNS = 24
"""Arms of the simulated report that a power is computed from."""
LARGE = 400
"""Seeds per arm from which the seeds needed follow from the square of the difference."""


@dataclass(frozen=True, eq=False)
class Draws:
    """Simulated comparisons without any true difference."""

    noise: Floats
    """Estimates [R, J]."""
    se: Floats
    """Standard errors [R, J] that the rule takes."""
    df: Floats
    """Degrees of freedom [R, J]."""

    def margin(self, level: float) -> Floats:
        """Return how far an estimate must be from 0 to be significant at a level, [R, J]."""
        values, place = np.unique(self.df, return_inverse=True)
        return np.asarray(stats.t.isf(level / 2, values))[place].reshape(self.df.shape) * self.se

    def first(self) -> "Draws":
        """Return the first comparison alone, [R, 1]."""
        return Draws(self.noise[:, :1], self.se[:, :1], self.df[:, :1])

    def p(self) -> Floats:
        """Return the p of each estimate, [R, J]."""
        return np.asarray(2 * stats.t.sf(abs(self.noise) / self.se, self.df))


def capped(arms: tuple[int, ...]) -> tuple[int, ...]:
    """Return blocks with at most `MOST_COLUMNS` columns in all, two or more each where that is possible.

    The degrees of freedom of so many arms count almost as infinite, so more of them hardly change a power.
    """
    sizes = list(arms)
    while sum(sizes) > MOST_COLUMNS and max(sizes) > 2:
        sizes[sizes.index(max(sizes))] -= 1
    return tuple(sizes[: MOST_COLUMNS // 2])


def contrasts(arms: tuple[int, ...]) -> Floats:
    """Return the weights of each gain over the columns of all blocks, [J, sum(arms)]."""
    rows, first = [], 0
    for size in arms:
        for arm in range(1, size):
            row = np.zeros(sum(arms))
            row[first], row[first + arm] = -1, 1
            rows.append(row)
        first += size
    return np.array(rows)


@lru_cache(maxsize=256)
def simulate(arms: tuple[int, ...], n: int, analysis: Analysis, interaction: bool = False) -> Draws:
    """Return simulated gains, or the interaction of the first gains of the first two blocks, always the same numbers.

    Args:
        arms: columns of each block, the baseline included; by `auto` none is pooled if one has fewer than
            `FEWEST_ARMS`.
        n: seeds per arm, at least 2.
        analysis: choice of the report; `welch` has no blocks and is not simulated.
        interaction: difference of two gains in place of the gains.
    """
    columns = sum(arms)
    draws = max(LEAST_DRAWS, min(DRAWS, MOST_NUMBERS // columns**2))
    random = np.random.default_rng(20240229)
    means = random.standard_normal((draws, columns)) / math.sqrt(n)
    scatter = wishart(random, draws, columns, n - 1)
    weights = contrasts(arms)
    if interaction:
        weights = (weights[0] - weights[arms[0] - 1])[None]
    own = np.einsum("jk,rkl,jl->rj", weights, scatter, weights, optimize=True) / (n - 1)
    totals = residual_sums(scatter, arms)
    df = (n - 1) * (columns - len(arms))
    pooled = totals.sum(axis=1, keepdims=True) / df * (weights**2).sum(axis=1)
    noise = means @ weights.T
    if analysis == Analysis.BLOCKS:
        return Draws(noise, np.sqrt(pooled / n), np.full_like(noise, df))
    paired = np.sqrt(own / n), np.full_like(noise, n - 1.0)
    if analysis == Analysis.PAIRED:
        return Draws(noise, *paired)
    if n < FEWEST_SEEDS:
        variances = np.einsum("rkk->rk", scatter) / (n - 1)
        return Draws(noise, *unpaired(variances, arms, n, interaction))
    if min(arms) < FEWEST_ARMS:
        return Draws(noise, *paired)
    freedom = np.repeat([(n - 1) * (k - 1) / k for k in arms], arms)
    alike = (bartlett(totals / freedom, freedom) >= homogeneity_level(n))[:, None]
    se = np.where(alike, np.sqrt(np.maximum(pooled, own) / n), paired[0])
    return Draws(noise, se, np.where(alike, float(df), paired[1]))


def unpaired(variances: Floats, arms: tuple[int, ...], n: int, interaction: bool) -> tuple[Floats, Floats]:
    """Return standard errors and degrees of freedom [R, J] of Welch's tests, from arms' variances [R, K]."""
    weights = contrasts(arms)
    if interaction:
        weights = (weights[0] - weights[arms[0] - 1])[None]
    total, squares = variances @ (weights**2).T, variances**2 @ (weights**4).T
    return np.sqrt(total / n), (n - 1) * total**2 / squares


def wishart(random: np.random.Generator, draws: int, columns: int, df: int) -> Floats:
    """Return scatter matrices [R, K, K] of `df` independent rows of K standard normal numbers.

    With fewer rows than columns from the rows themselves, else by Bartlett's decomposition, whose cost does not grow
    with `df`.

    Source: Bartlett 1933, Proceedings of the Royal Society of Edinburgh 53.
    """
    if df < columns:
        rows = random.standard_normal((draws, df, columns))
        return np.asarray(np.swapaxes(rows, 1, 2) @ rows)
    lower = np.tril(random.standard_normal((draws, columns, columns)), -1)
    at = np.arange(columns)
    lower[:, at, at] = np.sqrt(random.chisquare(df - at, (draws, columns)))
    return np.asarray(lower @ np.swapaxes(lower, 1, 2))


def residual_sums(scatter: Floats, arms: tuple[int, ...]) -> Floats:
    """Return each arm's sum of squares [R, K] after the means of arm and seed, from scatter around the arms' means."""
    sums, first = [], 0
    for size in arms:
        block = scatter[:, first : first + size, first : first + size]
        rows = block.mean(axis=2)
        sums.append(np.einsum("rkk->rk", block) - 2 * rows + rows.mean(axis=1, keepdims=True))
        first += size
    return np.concatenate(sums, axis=1)


@dataclass(frozen=True)
class RulePower:
    """Power of a report's rule for one true difference beside others that are zero.

    Args:
        arms: columns of each block, the baseline included; for `welch` of no meaning.
        family: tests that Holm's method corrects for; the largest p that can be significant is 0.05 over this number.
        analysis: choice of the report.
        interaction: interactions in place of gains.
    """

    arms: tuple[int, ...]
    family: int
    analysis: Analysis
    interaction: bool = False

    @property
    def level(self) -> float:
        return ALPHA / max(1, self.family)

    def power(self, ratio: float, n: int) -> float:
        """Return the chance that a true difference is significant.

        Args:
            ratio: true difference, in standard deviations of a run within its arm and seed.
            n: seeds per arm, at least 2.
        """
        if self.analysis == Analysis.WELCH:
            return self.power_of_welch(ratio, n)
        draws = simulate(capped(self.arms), n, self.analysis, self.interaction).first()
        return float(np.mean(abs(draws.noise + ratio) >= draws.margin(self.level)))

    def power_of_welch(self, ratio: float, n: int) -> float:
        """Return the power of independent arms with equal spreads, by the noncentral F distribution."""
        count = 4 if self.interaction else 2
        df, noncentrality = count * (n - 1), ratio**2 * n / count
        return float(stats.ncf.sf(stats.f.isf(self.level, 1, df), 1, df, max(noncentrality, 1e-12)))

    def detectable(self, n: int) -> float:
        """Return the smallest true difference, in standard deviations, that is found with 80 % power; NaN below 2."""
        if n < 2:
            return math.nan
        if self.analysis == Analysis.WELCH:
            most = CERTAIN * 4 / math.sqrt(n) + 10 * stats.t.isf(self.level / 2, n - 1)
            return float(optimize.brentq(lambda ratio: self.power_of_welch(ratio, n) - POWER, 1e-9, most))
        draws = simulate(capped(self.arms), n, self.analysis, self.interaction).first()
        return float(np.quantile(draws.margin(self.level) - draws.noise, POWER))

    def needed(self, ratio: float) -> int | None:
        """Return the seeds per arm that find a true difference with 80 % power; None if a million are too few."""
        if not ratio > 0:
            return None
        n = math.ceil(LARGE * (self.detectable(LARGE) / ratio) ** 2)  # as if the spread were known
        if n > LARGE:
            return n if n <= MOST_SEEDS else None
        return fewest(lambda seeds: self.power(ratio, seeds), guess=max(2, n))


def spread_interval(std: float, df: int) -> tuple[float, float]:
    """Return the 95 % interval of a standard deviation known from `df` degrees of freedom, by the chi distribution."""
    if not (std > 0 and df > 0):
        return math.nan, math.nan
    low, high = (std * math.sqrt(df / float(stats.chi2.isf(tail, df))) for tail in (ALPHA / 2, 1 - ALPHA / 2))
    return low, high


@lru_cache(maxsize=64)
def joint_level(arms: tuple[int, ...], n: int, analysis: Analysis, others: int) -> float:
    """Return the level of each interval of a family so that all hold at once with 95 %: the max-t method.

    Args:
        arms: columns of each block whose gains belong to the family.
        n: seeds per arm.
        analysis: choice of the report.
        others: intervals of the family outside of blocks, which count as independent.

    Source: Dunnett 1955, Journal of the American Statistical Association 50, for one baseline and a common variance.
    """
    if analysis == Analysis.WELCH or not arms:
        count = others + sum(size - 1 for size in arms)
        return float(1 - (1 - ALPHA) ** (1 / max(1, count)))
    smallest = simulate(arms, n, analysis).p().min(axis=1)
    if others:
        smallest = np.minimum(smallest, 1 - (1 - np.random.default_rng(1).random(len(smallest))) ** (1 / others))
    return float(min(ALPHA, np.quantile(smallest, ALPHA)))
