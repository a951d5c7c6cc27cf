"""Agreement with a teacher at equal accuracy: how much of it an undistilled network of that accuracy would have.

Two networks that are right on more images agree on more images, whether or not one was trained with the other. The line
through the undistilled runs of a report measures how much; only what exceeds it is a trace of the teacher. All numbers
are in per cent or points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from kdbench.metrics.correctness import count_agreement
from kdbench.report.columns import row
from kdbench.report.predictions import Predictions
from kdbench.report.statistics import ALPHA, NAN

CLEAR_POINTS, CLEAR_DEVIATIONS = 1.0, 3.0
"""Distance between the lowest and the highest mean accuracy of undistilled groups from which a slope is computed, in
points and in standard deviations within groups."""
CLEAR_ERRORS = 2.0
"""Number of standard errors from which a raw excess is large enough to be divided into shares."""

Arm = tuple[Sequence[float], Sequence[float]]
"""Accuracy, and agreement with the teacher, of each run of a group."""


@dataclass(frozen=True)
class Slope:
    """Points of agreement with a teacher that an undistilled network gains per point of accuracy."""

    value: float
    se: float
    """Standard error; NaN where two runs leave nothing to estimate it from."""
    df: int
    lowest: float
    """Accuracy of the worst undistilled run."""
    highest: float


def slope_of(arms: Sequence[Arm]) -> Slope | None:
    """Return the least-squares slope over undistilled runs; None where their accuracies do not differ clearly.

    Runs and not means of groups are fitted: accuracy and agreement of a run are counted on the same images, so the
    spread over seeds follows the same line, groups with more runs weigh more, and the residuals measure the error.

    Args:
        arms: undistilled groups.
    """
    arms = [arm for arm in arms if len(arm[0])]
    means = [float(np.mean(accuracies)) for accuracies, _ in arms]
    if len(arms) < 2 or max(means) - min(means) < max(CLEAR_POINTS, CLEAR_DEVIATIONS * spread_within(arms)):
        return None
    x, y = (np.concatenate([np.asarray(arm[part], dtype=float) for arm in arms]) for part in (0, 1))
    line = stats.linregress(x, y)
    df = len(x) - 2
    return Slope(float(line.slope), float(line.stderr) if df else NAN, df, float(x.min()), float(x.max()))


def spread_within(arms: Sequence[Arm]) -> float:
    """Return the standard deviation of accuracies within groups, pooled; 0 where every group is one run."""
    freedom = sum(len(accuracies) - 1 for accuracies, _ in arms)
    return math.sqrt(sum(len(a) * float(np.var(a)) for a, _ in arms) / freedom) if freedom else 0.0


def excess_row(distilled: Arm, base: Arm, slope: Slope | None) -> dict[str, Any]:
    """Return the columns of fidelity.csv on agreement at equal accuracy; none without a slope.

    The expected agreement lies on a line of that slope through the own baseline, so that a trait of the architecture
    counts for neither side. The interval holds the spread over seeds of both arms, about that line, and the error of
    the slope (degrees of freedom by Satterthwaite).

    Args:
        distilled: distilled runs.
        base: runs of their baseline.
        slope: slope of undistilled runs for the same teacher.
    """
    if slope is None or not distilled[0] or not base[0]:
        return {}
    gain, raw = (float(np.mean(ours) - np.mean(theirs)) for ours, theirs in zip(distilled, base, strict=True))
    excess = raw - slope.value * gain
    spread = [mean_error(np.subtract(arm[1], np.multiply(slope.value, arm[0]))) for arm in (distilled, base)]
    low, high = interval_of_sum(excess, [*spread, (gain * slope.se, slope.df)])
    error = math.hypot(*(mean_error(agreements)[0] for _, agreements in (distilled, base)))
    is_clear = raw > (0 if math.isnan(error) else CLEAR_ERRORS * error)
    return row(
        agreement_slope=slope.value,
        agreement_expected=float(np.mean(base[1])) + slope.value * gain,
        agreement_excess=excess,
        agreement_excess_low=low,
        agreement_excess_high=high,
        agreement_explained=100 * slope.value * gain / raw if is_clear else NAN,
    )


def mean_error(values: Any) -> tuple[float, int]:
    """Return the standard error of the mean of some runs' values, NaN for one run, and its degrees of freedom."""
    n = len(values)
    return (float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else NAN), n - 1


def interval_of_sum(centre: float, parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Return the 95 % interval of a sum whose parts have these standard errors and degrees of freedom, or NaN."""
    variance = sum(se**2 for se, _ in parts)
    if not variance > 0:
        return NAN, NAN
    df = variance**2 / sum(se**4 / of for se, of in parts)
    low, high = stats.t.interval(1 - ALPHA, df, loc=centre, scale=math.sqrt(variance))
    return float(low), float(high)


def agreement_rates(student: Predictions, teacher: Predictions) -> tuple[float, float]:
    """Return agreement where the teacher is right, and the rate of equal mistakes where it is wrong, per cent.

    Images on which the kept logits of either leave the class open are left out.
    """
    known = ~(student.tied | teacher.tied)
    found = count_agreement(student.predicted[known], teacher.predicted[known], teacher.labels[known])
    return 100 * found.correct_rate, 100 * found.incorrect_rate
