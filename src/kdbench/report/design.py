"""The primary analysis: which test a comparison gets, by a rule that is fixed before any result is seen.

Arms of one student share first weights and order of images, seed by seed, so seeds are blocks. The rule (`auto`):

1. Rows over several teachers, or over crossed seeds, are `crossed`: every factor is a random sample of its kind.
2. An arm whose seeds are not those of its baseline has no blocks: `welch`.
3. With `FEWEST_SEEDS` seeds and `FEWEST_ARMS` arms or more, where Bartlett's test does not find the arms' spreads
   different, `blocks`: one residual variance pooled over all such arms, or the variance of the comparison's own paired
   differences if that is larger. Otherwise `paired`: the paired t-test over seeds, valid whatever the spreads are.
4. With fewer seeds a pairing has too few degrees of freedom, and no test can tell whether spreads are equal: `welch`.

Step 3 reads spreads and never a difference or a p. Values are accuracies in per cent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from kdbench.report.statistics import ALPHA, NAN, Comparison, contrast, varies

Floats = NDArray[np.float64]


class Analysis(StrEnum):
    """Primary analysis of a report (`--analysis`), or of a row."""

    AUTO = "auto"
    BLOCKS = "blocks"
    PAIRED = "paired"
    WELCH = "welch"
    CROSSED = "crossed"
    """Analysis of rows over several teachers or crossed seeds; no choice of a report."""


WORDS = {
    Analysis.BLOCKS: "seeds as blocks with one spread",
    Analysis.PAIRED: "the paired t-test over seeds",
    Analysis.WELCH: "Welch's t-test",
    Analysis.CROSSED: "teachers and seeds crossed",
}
"""Analyses of rows in words."""
FEWEST_SEEDS = 5
"""Fewest seeds per arm for pooled variances: with fewer, no test can tell whether the arms' spreads differ."""
FEWEST_ARMS = 4
"""Fewest arms of a student, its baseline included, for pooled variances: fewer arms do not show whether one of them
varies more than the others."""
MANY_SEEDS = 8

RULE = (
    "rows over several teachers or crossed seeds: all factors crossed; arms without the seeds of the baseline, or with "
    f"fewer than {FEWEST_SEEDS}: Welch's t-test; else, for students with {FEWEST_ARMS} arms or more, seeds as "
    f"blocks over these arms where Bartlett's test finds their spreads alike (level 0.7, from {MANY_SEEDS} seeds on "
    "0.3); else the paired t-test; never by the p of a gain"
)
"""The rule of `auto` in a sentence, for plans."""


def homogeneity_level(seeds: int) -> float:
    """Return the level of Bartlett's test below which the arms' spreads count as different.

    High, because a wrong pooling costs more than a wrong pairing, and higher with few seeds, where the test is weak.
    """
    return 0.7 if seeds < MANY_SEEDS else 0.3


@dataclass(frozen=True)
class Estimate:
    """Difference of means with its standard error, degrees of freedom, and the analysis that they come from."""

    analysis: Analysis
    difference: float
    se: float
    df: float

    @property
    def p(self) -> float:
        """Two-sided p; NaN without a standard error above 0."""
        return self.p_of(0.0)

    def p_of(self, difference: float) -> float:
        """Return the two-sided p of another true difference."""
        return float(2 * stats.t.sf(abs(self.difference - difference) / self.se, self.df)) if self.se > 0 else NAN

    def interval(self, level: float = 1 - ALPHA) -> tuple[float, float]:
        """Return the two-sided interval of a level, (NaN, NaN) without a standard error above 0."""
        if not self.se > 0:
            return NAN, NAN
        half = float(stats.t.isf((1 - level) / 2, self.df)) * self.se
        return self.difference - half, self.difference + half

    def p_equivalence(self, margin: float) -> float:
        """Return the p of two one-sided tests: small where the difference lies within +-margin.

        Source: Schuirmann 1987, Journal of Pharmacokinetics and Biopharmaceutics 15.
        """
        return float(stats.t.sf((margin - abs(self.difference)) / self.se, self.df)) if self.se > 0 else NAN


@dataclass(frozen=True, eq=False)
class Block:
    """Baseline of one student with all arms that have exactly its seeds."""

    values: Floats
    """Accuracies [n, K], a row per seed; column 0 is the baseline."""

    @property
    def n(self) -> int:
        return self.values.shape[0]

    @property
    def arms(self) -> int:
        return self.values.shape[1]

    @cached_property
    def residuals(self) -> Floats:
        """Accuracies without the means of arm and seed."""
        y = self.values
        return y - y.mean(axis=0) - y.mean(axis=1, keepdims=True) + y.mean()

    @property
    def df(self) -> int:
        return (self.n - 1) * (self.arms - 1)

    @property
    def arm_variances(self) -> Floats:
        """Residual variance of each arm, with (n - 1)(K - 1) / K degrees of freedom."""
        return (self.residuals**2).sum(axis=0) / (self.df / self.arms)

    @property
    def correlation(self) -> float:
        """Intraclass correlation of accuracies of one seed: the share of the spread that arms have in common."""
        between = self.arms * float(np.var(self.values.mean(axis=1), ddof=1))
        within = float((self.residuals**2).sum()) / self.df
        total = between + (self.arms - 1) * within
        return (between - within) / total if total > 0 else NAN


@dataclass(frozen=True, eq=False)
class Design:
    """Blocks of a report with the analysis that the rule gives their comparisons."""

    blocks: Sequence[Block]
    analysis: Analysis
    """Choice of the report."""

    @property
    def residual_df(self) -> int:
        return sum(block.df for block in self.blocks)

    @property
    def residual_std(self) -> float:
        """Standard deviation of a run within its arm and seed, over all blocks, points; NaN without variation."""
        return math.sqrt(pool(self.blocks)[0])

    @cached_property
    def poolable(self) -> list[Block]:
        """Blocks over which the residual variance is pooled."""
        if self.analysis == Analysis.BLOCKS:
            return list(self.blocks)
        return [block for block in self.blocks if block.n >= FEWEST_SEEDS and block.arms >= FEWEST_ARMS]

    @cached_property
    def pooled(self) -> tuple[float, int]:
        """Residual variance of the poolable blocks and its degrees of freedom; NaN without any."""
        return pool(self.poolable)

    @cached_property
    def p_homogeneity(self) -> float:
        """P of Bartlett's test that all arms of the poolable blocks have one residual variance; NaN without any.

        Source: Bartlett 1937, Proceedings of the Royal Society A 160.
        """
        blocks = self.poolable
        if not blocks:
            return NAN
        variances = np.concatenate([block.arm_variances for block in blocks])
        freedom = np.concatenate([np.full(block.arms, block.df / block.arms) for block in blocks])
        return float(bartlett(variances[None], freedom)[0])

    @cached_property
    def of_blocks(self) -> Analysis:
        """Analysis of comparisons within poolable blocks: step 3 of the rule."""
        if self.analysis != Analysis.AUTO:
            return self.analysis
        blocks = self.poolable
        if not blocks:
            return Analysis.PAIRED
        alike = self.p_homogeneity >= homogeneity_level(min(block.n for block in blocks))
        return Analysis.BLOCKS if alike else Analysis.PAIRED

    def compare(self, gains: Sequence[tuple[Block, int]], weights: Sequence[float]) -> Estimate:
        """Return the estimate of a weighted sum of gains.

        Args:
            gains: for each gain its block and the arm's column.
            weights: weight of each gain; 1 for a gain, 1 and -1 for an interaction.
        """
        parts = contrasts_of(gains, weights)
        if self.analysis == Analysis.AUTO and any(block.n < FEWEST_SEEDS for block, _ in parts):
            return unpaired_estimate(parts)
        own = paired_estimate([block.values @ contrast for block, contrast in parts])
        variance, df = self.pooled
        if self.of_blocks != Analysis.BLOCKS or any(block not in self.poolable for block, _ in parts):
            return own
        se = math.sqrt(sum(float((contrast**2).sum()) * variance / block.n for block, contrast in parts))
        if self.analysis == Analysis.AUTO and own.se > se:
            se = own.se
        return Estimate(Analysis.BLOCKS, own.difference, se, df)


def pool(blocks: Sequence[Block]) -> tuple[float, int]:
    """Return the residual variance of blocks and its degrees of freedom; NaN where nothing but rounding varies."""
    df = sum(block.df for block in blocks)
    if not any(varies(block.residuals.ravel().tolist()) for block in blocks):
        return NAN, df
    return sum(float((block.residuals**2).sum()) for block in blocks) / df, df


def contrasts_of(gains: Sequence[tuple[Block, int]], weights: Sequence[float]) -> list[tuple[Block, Floats]]:
    """Return the weights of a weighted sum of gains over the columns of each block, whose baseline they share."""
    found: list[tuple[Block, Floats]] = []
    for (block, column), weight in zip(gains, weights, strict=True):
        contrast = next((own for other, own in found if other is block), None)
        if contrast is None:
            contrast = np.zeros(block.arms)
            found.append((block, contrast))
        contrast[column] += weight
        contrast[0] -= weight
    return found


def unpaired_estimate(parts: Sequence[tuple[Block, Floats]]) -> Estimate:
    """Return Welch's estimate of a sum of contrasts, all arms independent."""
    arms = [
        (block.values[:, at].tolist(), float(contrast[at])) for block, contrast in parts for at in contrast.nonzero()[0]
    ]
    return welch_estimate([values for values, _ in arms], [weight for _, weight in arms])


def paired_estimate(differences: Sequence[Floats]) -> Estimate:
    """Return the estimate of a sum of means of differences, seed by seed.

    Differences over as many seeds are added seed by seed; others count as independent (Welch and Satterthwaite).

    Args:
        differences: of each block, [n].
    """
    value = float(sum(d.mean() for d in differences))
    if len({len(d) for d in differences}) == 1:
        differences = [np.sum(differences, axis=0)]
    if not any(varies(d.tolist()) for d in differences):
        return Estimate(Analysis.PAIRED, value, NAN, NAN)
    parts = [float(np.var(d, ddof=1)) / len(d) for d in differences]
    df = sum(parts) ** 2 / sum(part**2 / (len(d) - 1) for part, d in zip(parts, differences, strict=True))
    return Estimate(Analysis.PAIRED, value, math.sqrt(sum(parts)), df)


def bartlett(variances: Floats, freedom: Floats) -> Floats:
    """Return the p of Bartlett's test for rows of variances [R, K] with their degrees of freedom [K]."""
    k, total = len(freedom), freedom.sum()
    if k < 2:
        return np.ones(len(variances))
    floor = 1e-12 * np.maximum(variances.max(axis=1, keepdims=True), 1e-300)
    variances = np.maximum(variances, floor)  # an arm without any variation has the logarithm of a small number
    pooled = variances @ freedom / total
    statistic = total * np.log(pooled) - np.log(variances) @ freedom
    correction = 1 + ((1 / freedom).sum() - 1 / total) / (3 * (k - 1))
    return np.asarray(stats.chi2.sf(statistic / correction, k - 1))


def crossed_estimate(gains: Floats) -> Estimate:
    """Return the estimate of the mean of gains, one for each combination of the levels of some random factors.

    The variance of the mean is the sum over the factors of the variance of its level means over its number of levels.
    What is left beside the factors counts once in each of them, so the sum is at least the true variance.

    Args:
        gains: with a factor for each axis, such as [teachers, seeds]; two levels or more in each.
    """
    difference, parts, freedom = float(gains.mean()), [], []
    for axis, levels in enumerate(gains.shape):
        means = gains.mean(axis=tuple(other for other in range(gains.ndim) if other != axis))
        parts.append(float(np.var(means, ddof=1)) / levels)
        freedom.append(levels - 1)
    if not varies(gains.ravel().tolist()) or not sum(parts) > 0:
        return Estimate(Analysis.CROSSED, difference, NAN, NAN)
    df = sum(parts) ** 2 / sum(part**2 / f for part, f in zip(parts, freedom, strict=True))
    return Estimate(Analysis.CROSSED, difference, math.sqrt(sum(parts)), df)


def welch_estimate(arms: Sequence[Sequence[float]], weights: Sequence[float]) -> Estimate:
    """Return the estimate of a weighted sum of independent arms' means, each arm with a variance of its own."""
    return from_comparison(contrast(arms, weights))


def from_comparison(comparison: Comparison) -> Estimate:
    return Estimate(Analysis.WELCH, comparison.difference, comparison.se, comparison.df)
