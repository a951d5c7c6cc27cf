"""What the functional view supports, in sentences: findings, their test, other controls, and the asymmetry."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from kdbench.report.columns import format_value, is_missing
from kdbench.report.functional.asymmetry import NEGATIVE, POSITIVE
from kdbench.report.functional.conditions import OTHER_TEACHER
from kdbench.report.functional.inference import RankTest
from kdbench.report.functional.transfer import ONE_TEACHER, PRIMARY
from kdbench.report.gains import group_by
from kdbench.report.runs import first_lines, rows_of

TESTS = {
    RankTest.SIGNED_RANK: "Wilcoxon's signed-rank test over pairs of one seed",
    RankTest.MANN_WHITNEY: "the Mann-Whitney test",
}


def describe(transfer: pd.DataFrame, asymmetry: pd.DataFrame) -> list[str]:
    """Return the sentences of the functional view; none without a comparison."""
    rows = [row for row in rows_of(transfer) if row.family != ONE_TEACHER]
    lines = []
    for control, of_control in group_by([row for row in rows if row.family == PRIMARY], lambda row: row.control):
        lines += judge_transfer(control, of_control)
    others = [row for row in rows if row.family != PRIMARY]
    lines += judge_others(others)
    return [*lines, *judge_asymmetry([row for row in rows_of(asymmetry) if row.family == PRIMARY])]


def judge_transfer(control: str, rows: Sequence[Any]) -> list[str]:
    """Return how many distances of students are smaller than those of their primary control, and by which test."""
    tested = [row for row in rows if not is_missing(row.p_adjusted)]
    closer = sum(row.transfer < 0 for row in rows)
    if not tested:
        reasons = first_lines(list(dict.fromkeys(row.remarks for row in rows if row.remarks)))
        return [
            f"Distilled students are closer to their teacher than {control} in {closer} of {len(rows)} distances; "
            f"without a test: {'; '.join(reasons)}."
        ]
    decided = [row for row in tested if not is_missing(row.significant)]
    test = f"by {TESTS[tested[0].test]}, one-sided, over {seeds_of(tested)} seeds"
    if not decided:
        best = min(row.p_smallest_adjusted for row in tested)
        return [
            f"Distilled students are closer to their teacher than {control} in {closer} of {len(rows)} distances. No p "
            f"of {len(tested)} tests can be below 0.05 after Holm with these seeds ({test}; the smallest that could be "
            f"reached is {best:.2g}), so this is an effect without a verdict."
        ]
    significant = sum(bool(row.significant) for row in decided)
    best = min(row.p_smallest_adjusted for row in decided)
    return [
        f"Distilled students are closer to their teacher than {control}: {significant} of {len(tested)} distances "
        f"after Holm ({test}; the smallest p that could be reached is {best:.2g}). {describe_range(rows)}"
    ]


def describe_range(rows: Sequence[Any]) -> str:
    """Return between which shares of the control's value the distances change."""
    changes = [row.relative for row in rows if not is_missing(row.relative)]
    if not changes:
        return ""
    low, high = min(changes), max(changes)
    return f"The distances change by {low:+.0f} % to {high:+.0f} % of the control's."


def judge_others(rows: Sequence[Any]) -> list[str]:
    """Return how many distances are smaller than those of the other controls, each by tests of its own."""
    parts = []
    for control, of_control in group_by(rows, lambda row: row.control):
        decided = [row for row in of_control if not is_missing(row.significant)]
        closer = sum(row.transfer < 0 for row in of_control)
        if decided:
            found = f"{sum(bool(row.significant) for row in decided)} of {len(decided)} significant"
        else:
            found = f"closer in {closer} of {len(of_control)}, no verdict"
        name = "students of another teacher seed" if control == OTHER_TEACHER else control
        parts.append(f"{name}: {found}")
    return [f"Against other controls, each corrected by itself: {'; '.join(parts)}."] if parts else []


def judge_asymmetry(rows: Sequence[Any]) -> list[str]:
    """Return which knowledge is taken over more: right or wrong answers of the teacher."""
    known = [row for row in rows if not is_missing(row.asymmetry)]
    if not known:
        return []
    changes = (
        f"agreement where the teacher is right changes by {describe_counts([row.correct_change for row in known])} "
        f"images, sharing its mistakes by {describe_counts([row.incorrect_change for row in known])}; of the room that "
        f"the control leaves, by {describe_shares([row.correct_gain for row in known])} and "
        f"{describe_shares([row.incorrect_gain for row in known])}"
    )
    with_interval = [row for row in known if row.finding]
    if not with_interval:
        return [f"Asymmetry: {changes}. There are too few seeds for an interval."]
    negative, positive = (sum(row.finding == kind for row in with_interval) for kind in (NEGATIVE, POSITIVE))
    total = len(with_interval)
    if negative and not positive:
        found = f"wrong answers are taken over more than right ones in {negative} of {total} conditions"
    elif positive and not negative:
        found = f"right answers are taken over more than wrong ones in {positive} of {total} conditions"
    elif positive and negative:
        found = f"wrong answers are taken over more in {negative}, right ones more in {positive} of {total} conditions"
    else:
        found = f"no condition of {total} shows that right or wrong answers are taken over more"
    return [f"Asymmetry: {found} (95 % intervals of the gains' difference, not corrected): {changes}."]


def describe_counts(values: Sequence[float]) -> str:
    """Return the range of some changes in images as text."""
    low, high = f"{min(values):+.0f}", f"{max(values):+.0f}"
    return low if low == high else f"{low} to {high}"


def describe_shares(values: Sequence[float]) -> str:
    """Return the range of some shares as text."""
    low, high = f"{min(values):+.1f}", f"{max(values):+.1f}"
    return f"{low} %" if low == high else f"{low} to {high} %"


def seeds_of(rows: Sequence[Any]) -> str:
    """Return the numbers of seeds of both arms as text."""
    sizes = sorted({(int(row.n), int(row.n_control)) for row in rows})
    texts = [format_value(n, "d") if n == m else f"{n} against {m}" for n, m in sizes]
    return " and ".join(first_lines(texts))
