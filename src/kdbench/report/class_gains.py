"""Accuracies and gains of single classes, from the summaries."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from kdbench.report.columns import CLASS_GAINS, row
from kdbench.report.gains import Gain, are_replicates
from kdbench.report.groups import RunGroup
from kdbench.report.runs import first_lines
from kdbench.report.statistics import ALPHA

Accuracies = NDArray[np.float64]
"""[runs, classes], per cent; NaN for a class without test images."""
ROUNDING = 1e-9
"""Standard error in points up to which seeds do not vary."""


def class_accuracies(group: RunGroup) -> Accuracies | None:
    """Return the accuracy of each class in each run that records it; None without any, or if their numbers differ."""
    known = [accuracies for accuracies in group.runs.per_class_acc if accuracies]
    if not known or len({len(accuracies) for accuracies in known}) > 1:
        return None
    return 100 * np.array([[np.nan if a is None else a for a in accuracies] for accuracies in known], dtype=float)


def class_names(run: Any, count: int) -> list[str]:
    """Return the names of so many classes, as a run records them; their numbers where it does not."""
    names = run.class_names
    return list(names) if names and len(set(names)) == count == len(names) else list(map(str, range(count)))


def remark_classes(groups: Sequence[RunGroup]) -> list[str]:
    """Remark on groups whose class accuracies differ in number, or are not as many as their class names."""
    found = []
    for group in groups:
        counts = {len(accuracies) for accuracies in group.runs.per_class_acc if accuracies}
        names = group.shared.class_names
        if len(counts) > 1:
            found.append(f"{group.name}: runs have {' and '.join(map(str, sorted(counts)))} class accuracies")
        elif counts and names and not len(names) == len(set(names)) == max(counts):
            found.append(f"{group.name}: {len(set(names))} different class names for {max(counts)} class accuracies")
    if not found:
        return []
    return [f"classes have numbers for names, or are left out: {'; '.join(first_lines(found))}"]


def class_gains_table(gains: Sequence[Gain]) -> pd.DataFrame:
    """Return the content of class_gains.csv: the gain of each class of each group with a baseline."""
    rows = [cells for gain in gains if gain.baseline and not gain.is_pooled for cells in class_gain_rows(gain)]
    return pd.DataFrame(rows, columns=CLASS_GAINS)


def class_gain_rows(gain: Gain) -> list[dict[str, Any]]:
    """Return a row for each class, without an interval where runs are no independent samples."""
    ours = class_accuracies(gain.group)
    theirs = class_accuracies(gain.baseline) if gain.baseline else None
    if ours is None or theirs is None or ours.shape[1] != theirs.shape[1]:
        return []
    is_paired = gain.is_paired and len(ours) == len(gain.values) and len(theirs) == len(gain.base_values)
    differences, lows, highs = paired(ours - theirs) if is_paired else unpaired(ours, theirs)
    if not all(are_replicates(group.seeds) for group in (gain.group, gain.baseline) if group):
        lows, highs = np.full_like(lows, np.nan), np.full_like(highs, np.nan)
    shared = gain.group.shared
    return [
        row(
            student=shared.student, teacher=shared.teacher, method=shared.method, role=shared.role,
            setting=gain.setting, class_name=name, class_index=index, n=len(ours), gain=float(differences[index]),
            class_low=float(lows[index]), class_high=float(highs[index]),
        )
        for index, name in enumerate(class_names(shared, ours.shape[1]))
    ]  # fmt: skip


def paired(differences: Accuracies) -> tuple[Accuracies, Accuracies, Accuracies]:
    """Return the mean difference of each class over pairs of runs of one seed, with the ends of its 95 % interval."""
    n = len(differences)
    variance = differences.var(axis=0, ddof=1) / n if n > 1 else np.full(differences.shape[1], np.nan)
    return with_interval(differences.mean(axis=0), variance, np.full(len(variance), n - 1.0))


def unpaired(ours: Accuracies, theirs: Accuracies) -> tuple[Accuracies, Accuracies, Accuracies]:
    """Return the difference of the means of each class, with the ends of its 95 % interval (Welch)."""
    differences = ours.mean(axis=0) - theirs.mean(axis=0)
    if min(len(ours), len(theirs)) < 2:
        return with_interval(differences, np.full(len(differences), np.nan), np.ones(len(differences)))
    parts = [(arm.var(axis=0, ddof=1) / len(arm), len(arm) - 1) for arm in (ours, theirs)]
    variance = sum(part for part, _ in parts)
    with np.errstate(invalid="ignore"):  # 0 / 0 where a class does not vary, which has no interval
        df = variance**2 / sum(part**2 / of for part, of in parts)
    return with_interval(differences, variance, df)


def with_interval(centre: Accuracies, variance: Any, df: Accuracies) -> tuple[Accuracies, Accuracies, Accuracies]:
    """Return values with the ends of their 95 % intervals, NaN where nothing varies."""
    se = np.sqrt(np.where(variance > ROUNDING**2, variance, np.nan))
    half = stats.t.ppf(1 - ALPHA / 2, df) * se
    return centre, centre - half, centre + half
