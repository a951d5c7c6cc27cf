"""Interactions: whether one student gains more than another, from the same teacher by the same method."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdbench.report import statistics as st
from kdbench.report.columns import INTERACTIONS, row
from kdbench.report.gains import Gain, group_by, holm_by_role, settings
from kdbench.report.groups import DISTILLED, METHOD, STUDENT, key_text
from kdbench.rundir.summary import KEY

SHARED = tuple(key for key in STUDENT if key not in (KEY.student, KEY.num_params))
"""Keys that two students share whose gains are compared."""


def match_students(gains: Sequence[Gain]) -> tuple[list[tuple[Gain, Gain]], list[str]]:
    """Return the gains of two students that are compared, for every method and teacher: the larger student's first.

    Returns:
        The pairs, and a line for each pair of students whose groups cannot be matched.
    """
    pairs, remarks = list[tuple[Gain, Gain]](), []
    for _, comparable in group_by([gain for gain in gains if gain.baseline], interaction_key):
        students = group_by(comparable, lambda gain: gain.group.shared.student)
        by_size = larger_first(students)
        if by_size is None:
            remarks.append(f"no interaction of {', '.join(name for name, _ in students)}: their sizes are not known")
            continue
        for (name_a, of_a), (name_b, of_b) in itertools.combinations(by_size, 2):
            matched = match_gains(of_a, of_b)
            pairs += matched
            if not matched:
                first = of_a[0].group.shared
                remarks.append(
                    f"no interaction of {name_a} and {name_b} by {first.method} from {first.teacher}: several "
                    "settings, none that both have (choose one each: --select)"
                )
    return pairs, remarks


@dataclass(frozen=True)
class StudentPair:
    """Distilled gains of two students that are compared as a whole; those of the larger student are `of_a`."""

    of_a: Sequence[Gain]
    of_b: Sequence[Gain]
    matched: Sequence[tuple[Gain, Gain]]
    """Gains by the same method from the same teacher."""


def match_capacity(gains: Sequence[Gain]) -> list[StudentPair]:
    """Return the students of one protocol and recipe that have a method and a teacher in common.

    Rows that a pooled row summarises are left out.
    """
    counted = [g for g in gains if g.baseline and g.group.shared.role == DISTILLED and not g.is_summarised]
    pairs = []
    for _, comparable in group_by(counted, lambda gain: settings(gain.group, SHARED)):
        students = larger_first(group_by(comparable, lambda gain: gain.group.shared.student)) or []
        for (_, of_a), (_, of_b) in itertools.combinations(students, 2):
            by_teacher = dict(group_by(of_b, interaction_key))
            matched = [
                pair
                for key, own in group_by(of_a, interaction_key)
                for pair in match_gains(own, by_teacher.get(key, []))
            ]
            if matched:
                pairs.append(StudentPair(of_a, of_b, matched))
    return pairs


def interactions_table(pairs: Sequence[tuple[Gain, Gain]], std: float) -> pd.DataFrame:
    """Return the content of interactions.csv without the columns of the primary analysis.

    Args:
        pairs: gain of the larger and of the smaller student of each row.
        std: standard deviation within groups, pooled over the report, points.
    """
    table = pd.DataFrame([interaction_row(a, b, std) for a, b in pairs], columns=INTERACTIONS)
    return table.assign(p_holm=holm_by_role(table, table.p))


def larger_first(students: list[tuple[str, list[Gain]]]) -> list[tuple[str, list[Gain]]] | None:
    """Return students with their gains by falling size, or None if no measure of size is known for all of several."""
    measure = next((k for k in (KEY.num_params, KEY.macs) if all(size(of, k) is not None for of in students)), None)
    if measure is None and len(students) > 1:
        return None
    return sorted(students, key=lambda of: (size(of, measure) if measure else 0, of[0]), reverse=True)


def size(student: tuple[str, list[Gain]], key: str) -> Any:
    """Return the size of a student with its gains."""
    return student[1][0].group.shared[key]


def interaction_key(gain: Gain) -> str:
    """Return what two students share whose gains may be compared: everything but student and setting."""
    method = [key for key in METHOD if key != KEY.method_params]
    teacher = (gain.teacher_seed, None if gain.is_pooled else gain.group.shared.teacher_key)
    return key_text([settings(gain.group, (*SHARED, *method)), teacher])


def match_gains(of_a: Sequence[Gain], of_b: Sequence[Gain]) -> list[tuple[Gain, Gain]]:
    """Return the gains of two students that belong together: the only ones, or those with equal method parameters."""
    if len(of_a) == len(of_b) == 1:
        return [(of_a[0], of_b[0])]
    params = (KEY.method_params,)
    return [(a, b) for a in of_a for b in of_b if settings(a.group, params) == settings(b.group, params)]


def interaction_row(a: Gain, b: Gain, std: float) -> dict[str, Any]:
    """Return a row of interactions.csv without Holm's correction."""
    arms, shared = (a.values, a.base_values, b.values, b.base_values), a.group.shared
    test = st.contrast(arms, (1.0, -1.0, -1.0, 1.0))
    return row(
        method=shared.method, teacher=shared.teacher, role=shared.role, teacher_seed=a.teacher_seed,
        student_a=shared.student, student_b=b.group.shared.student, gain_a=a.delta, gain_b=b.delta,
        difference=test.difference, se=test.se, df=test.df, ci_low=test.low, ci_high=test.high, p=test.p,
        mde80=math.nan if a.is_pooled else st.smallest_detectable(std, tuple(len(arm) for arm in arms)),
        n_a=len(a.values), n_base_a=len(a.base_values), n_b=len(b.values), n_base_b=len(b.base_values),
        setting_a=a.setting, setting_b=b.setting,
    )  # fmt: skip
