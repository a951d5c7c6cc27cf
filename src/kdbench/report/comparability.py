"""Remarks on comparisons that are not like with like, and on runs that are no independent samples."""

from collections import Counter
from collections.abc import Iterable, Sequence

import pandas as pd

from kdbench.report.columns import is_missing
from kdbench.report.design import Analysis
from kdbench.report.gains import Gain, group_by
from kdbench.report.groups import BASELINE, RunGroup
from kdbench.rundir.summary import KEY

SURROUNDINGS = {
    "device": "devices",
    "torch": "versions of torch",
    "cuda": "versions of CUDA",
    "threads": "numbers of threads",
    "profile": "profiles",
    "compile": "values of runtime.compile",
}
"""Keys of a run's environment that change numbers by rounding or more, in words."""
UNEQUAL = 2
"""Ratio of the numbers of runs from which arms are called unequal."""


def remark_comparability(groups: Sequence[RunGroup], gains: Sequence[Gain], table: pd.DataFrame) -> list[str]:
    """Return a sentence for each kind of comparison that is not like with like, with the groups and the remedy.

    Args:
        groups: groups of the report.
        gains: gains of the report.
        table: content of gains.csv, a row for each gain.
    """
    return [
        *remark_surroundings([gain for gain in gains if not gain.is_pooled]),
        *remark_precisions(groups, gains),
        *remark_constant_seed(groups, KEY.init_seed, "first weights", KEY.data_seed),
        *remark_constant_seed(groups, KEY.data_seed, "order of images", KEY.init_seed),
        *remark_crossed(groups),
        *remark_several_teachers(groups),
        *remark_unequal_arms(gains, table),
    ]


def remark_surroundings(gains: Iterable[Gain]) -> list[str]:
    """Remark on arms that were computed in other surroundings than their baseline; a line for each difference."""
    found = []
    for gain in gains:
        if gain.baseline is None:
            continue
        for key, words in SURROUNDINGS.items():
            ours, theirs = (values_of(group, f"{KEY.environment}.{key}") for group in (gain.group, gain.baseline))
            if ours and theirs and ours != theirs:
                found.append((f"{words}: {listed(ours)} against {listed(theirs)}", gain.group.name))
    return [
        f"{'; '.join(name for _, name in of)}: this arm and its baseline were computed on different {difference}; a "
        "part of the gain may be theirs, so train both arms on the same"
        for difference, of in group_by(found, lambda item: item[0])
    ]


def remark_precisions(groups: Sequence[RunGroup], gains: Iterable[Gain]) -> list[str]:
    """Remark on groups whose student has baselines at another precision only, which are not compared with it."""
    remarks = []
    for gain in gains:
        shared = gain.group.shared
        others = {
            str(group.shared.precision)
            for group in groups
            if group.shared.role == BASELINE and group.shared.student == shared.student
        }
        if gain.baseline is None and not gain.is_pooled and others and str(shared.precision) not in others:
            remarks.append(
                f"{gain.group.name}: trained at precision {shared.precision}, and the baselines of {shared.student} at "
                f"{listed(others)} only; train a baseline with runtime.precision={shared.precision}"
            )
    return remarks


def remark_constant_seed(groups: Iterable[RunGroup], constant: str, words: str, varied: str) -> list[str]:
    """Remark on groups in which one of the two seeds never changes, so that its part of the spread is not there.

    Args:
        groups: groups of the report.
        constant: key of that seed.
        words: part of a training that it determines.
        varied: key of the other seed.
    """
    found = [
        group.name
        for group in groups
        if len(set(group.runs[constant])) == 1
        and len(set(group.runs[varied])) > 1
        and group.runs[constant].notna().all()
    ]
    if not found:
        return []
    return [
        f"{'; '.join(found)}: all runs have one {constant}, so only {varied} varies; the spread is that of these "
        f"{words}, too small for others, so give seed=... in place of {varied}=..."
    ]


def remark_crossed(groups: Iterable[RunGroup]) -> list[str]:
    """Remark on groups in which several runs share first weights or an order of images, and other runs do not."""
    found = [group.name for group in groups if is_crossed(group)]
    if not found:
        return []
    return [
        f"{'; '.join(found)}: these runs are no replicates, since several share first weights (init_seed) or the order "
        "of images (data_seed); a test that takes them as independent finds a difference where there is none in up to "
        "31 % of cases instead of 5 %; complete crossings are analysed as such (analysis: crossed), others have no "
        "test, so give seed=0,1,2,... for gains"
    ]


def is_crossed(group: RunGroup) -> bool:
    """Return whether both seeds of the runs vary, and different runs share one of them."""
    shared = [seed for seed, _ in set(group.seeds)], [seed for _, seed in set(group.seeds)]
    return all(len(set(seeds)) > 1 for seeds in shared) and any(max(Counter(seeds).values()) > 1 for seeds in shared)


def remark_several_teachers(groups: Iterable[RunGroup]) -> list[str]:
    """Remark on groups whose runs had different teachers, which count as one."""
    found = [
        f"{group.name} ({max(counts)} teachers, {len(group.runs)} runs)"
        for group in groups
        if max(counts := [len(values_of(group, key)) for key in (KEY.teacher_key, KEY.teacher_weights_sha256)]) > 1
    ]
    if not found:
        return []
    return [
        f"{'; '.join(found)}: the runs had teachers with different weights, read as one: runs of one teacher are more "
        "alike than their number says, so train all of a group with the same teacher, or give each its teacher.seed"
    ]


def remark_unequal_arms(gains: Sequence[Gain], table: pd.DataFrame) -> list[str]:
    """Remark on gains by Welch's test whose arms are of very different size."""
    found = []
    for gain, analysis in zip(gains, table.analysis, strict=True):
        sizes = sorted((len(gain.values), len(gain.base_values)))
        by_welch = not gain.is_paired if is_missing(analysis) else analysis == Analysis.WELCH
        if by_welch and not gain.is_pooled and sizes[0] >= 2 and sizes[1] >= UNEQUAL * sizes[0]:
            found.append((f"{sizes[0]} runs against {sizes[1]}", gain.group.name))
    return [
        f"{'; '.join(name for _, name in of)}: {sizes} in the two arms; Welch's test then finds more than the stated "
        "5 % where there is nothing (simulated for eight gains, all tests together: 11 % at 3 against 10, 24 % at 2 "
        "against 10), so train the missing seeds of the smaller arm"
        for sizes, of in group_by(found, lambda item: item[0])
    ]


def values_of(group: RunGroup, column: str) -> set[str]:
    """Return the known values of a column in a group, as text."""
    if column not in group.runs:
        return set()
    return {str(value) for value in group.runs[column] if value is not None}


def listed(values: Iterable[str]) -> str:
    return " and ".join(sorted(values))
