"""Right and wrong knowledge that is taken over: agreement where the teacher is right, and where it is wrong."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdbench.metrics import headroom_gain
from kdbench.metrics.correctness import count_agreement
from kdbench.report.columns import row
from kdbench.report.functional.transfer import ControlComparison
from kdbench.report.functional_columns import ASYMMETRY
from kdbench.report.predictions import known_pair

Floats = NDArray[np.float64]
CORRECT, INCORRECT, RIGHT, WRONG = range(4)
"""Places in a vector of counts: agreement where the teacher is right and wrong, and how often it is right and wrong."""
NEGATIVE, POSITIVE, NO_GAIN, UNDECIDED = "negative", "positive", "no gain", "undecided"


def count_pair(run: Path, teacher: Path) -> Floats | None:
    """Return the counts of a run beside a teacher [4]; None where logits of the same images are not there.

    Images on which the kept logits of either leave the class open are left out.
    """
    pair = known_pair(run, teacher)
    if pair is None:
        return None
    found = count_agreement(*pair)
    return np.array([found.correct, found.incorrect, found.teacher_right, found.teacher_wrong], dtype=np.float64)


def rates(counts: Floats) -> Floats:
    """Return the rates of correct and of incorrect agreement [B, 2] of mean counts [B, 4]; NaN without such images."""
    whole = counts[:, [RIGHT, WRONG]]
    return np.divide(counts[:, [CORRECT, INCORRECT]], whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def headroom_gains(values: Floats, control: Floats) -> Floats:
    """Return the gains of correct and of incorrect agreement as shares of the control's room, and their difference.

    Args:
        values: mean counts [B, 4] of students.
        control: mean counts [B, 4] of controls.

    Returns:
        [B, 3]: gain of correct agreement, gain of incorrect agreement (`kdbench.metrics.headroom_gain`), and the
        asymmetry, the first minus the second; NaN where the teacher has no such images or the control no room.
    """
    gains = headroom_gain(rates(values), rates(control))
    return np.column_stack([gains, gains[:, 0] - gains[:, 1]])


def gains_by_seed(own: ControlComparison) -> Floats:
    """Return these gains of every student [n, 3], beside its own control or the mean of the controls."""
    controls = own.control_values
    return headroom_gains(
        own.values, controls if own.is_paired else np.broadcast_to(controls.mean(0), own.values.shape)
    )


def asymmetry_table(comparisons: Sequence[ControlComparison]) -> pd.DataFrame:
    """Return the content of asymmetry.csv: a row for each comparison, whose vectors are counts, in turn."""
    rows = [asymmetry_row(own) for own in comparisons]
    return pd.DataFrame(rows, columns=ASYMMETRY).astype({"n": "Int64", "n_control": "Int64"})


def asymmetry_row(own: ControlComparison) -> dict[str, Any]:
    """Return the row of a comparison: counts per run, gains in per cent of their room, and the finding."""
    shared = own.group.shared
    means, base = own.values.mean(axis=0), own.control_values.mean(axis=0)
    gains = 100 * headroom_gains(means[None], base[None])[0]
    changes = (rates(means[None]) - rates(base[None]))[0] * means[[RIGHT, WRONG]]  # open classes differ between runs
    lows, highs = (100 * end for end in own.interval(headroom_gains))
    return row(
        student=shared.student, teacher=shared.teacher, method=shared.method, setting=own.setting, control=own.control,
        n=len(own.seeds), n_control=len(own.control_seeds), teacher_right=means[RIGHT], teacher_wrong=means[WRONG],
        correct=means[CORRECT], correct_change=changes[0], incorrect=means[INCORRECT],
        incorrect_change=changes[1], correct_gain=gains[0], correct_gain_low=lows[0],
        correct_gain_high=highs[0], incorrect_gain=gains[1], incorrect_gain_low=lows[1], incorrect_gain_high=highs[1],
        asymmetry=gains[2], asymmetry_low=lows[2], asymmetry_high=highs[2], finding=finding(lows, highs),
        family=own.family, accuracy_change=own.accuracy_change, teacher_seed=own.teacher_seed, remarks=own.remark,
    )  # fmt: skip


def finding(lows: Floats, highs: Floats) -> str | None:
    """Return what intervals of correct gain, incorrect gain and asymmetry [3] support; None without them.

    A difference of the gains says nothing about what is taken over where the larger one is no gain: a student that is
    merely less accurate loses correct agreement.
    """
    if not lows[2] <= highs[2]:  # NaN
        return None
    if highs[2] < 0:
        return NEGATIVE if lows[1] > 0 else NO_GAIN
    if lows[2] > 0:
        return POSITIVE if lows[0] > 0 else NO_GAIN
    return UNDECIDED
