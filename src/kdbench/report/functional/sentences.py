"""Sentences of the functional view: findings, their test, other controls, and the asymmetry."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from kdbench.report.columns import format_value, is_missing
from kdbench.report.functional.asymmetry import NEGATIVE, NO_GAIN, POSITIVE
from kdbench.report.functional.inference import RankTest
from kdbench.report.functional.transfer import ONE_TEACHER, PRIMARY, name_of_control
from kdbench.report.gains import group_by
from kdbench.report.runs import first_lines, rows_of

TESTS = {
    RankTest.SIGNED_RANK: "Wilcoxon's signed-rank test over pairs of one seed",
    RankTest.MANN_WHITNEY: "the Mann-Whitney test",
}
WORDS = {
    NEGATIVE: "wrong answers are taken over more than right ones",
    POSITIVE: "right answers are taken over more than wrong ones",
    NO_GAIN: "agreement with right and with wrong answers changes differently, and no gain is shown",
}
"""Findings of the asymmetry in words; without an interval that shows one, there is none."""


def describe_transfer(transfer: pd.DataFrame, asymmetry: pd.DataFrame) -> list[str]:
    """Return the sentences of the functional view; none without a comparison."""
    rows = [row for row in rows_of(transfer) if row.family != ONE_TEACHER]
    lines = []
    for control, of_control in group_by([row for row in rows if row.family == PRIMARY], lambda row: row.control):
        lines += judge_transfer(name_of_control(control), of_control)
    lines += describe_accuracy([row for row in rows if row.family == PRIMARY])
    lines += judge_others([row for row in rows if row.family != PRIMARY])
    return [*lines, *judge_asymmetry([row for row in rows_of(asymmetry) if row.family == PRIMARY])]


def judge_transfer(control: str, rows: Sequence[Any]) -> list[str]:
    """Return how many distances of students are smaller than those of their primary control, and by which test."""
    tested = [row for row in rows if not is_missing(row.p_adjusted)]
    closer = sum(row.transfer < 0 for row in rows)
    effect = (
        f"In {closer} of {len(rows)} distances students are closer to their teacher than {control}; they change by "
        f"{describe_shares([row.relative for row in rows if not is_missing(row.relative)])} of the control's"
    )
    if not tested:
        reasons = first_lines(list(dict.fromkeys(row.remarks for row in rows if row.remarks)))
        return [f"{effect}. There is no test: {'; '.join(reasons)}."]
    decided = [row for row in tested if not is_missing(row.significant)]
    test = f"by {TESTS[tested[0].test]}, one-sided, over {seeds_of(tested)} seeds"
    if not decided:
        return [
            f"{effect}. That is an effect without a verdict: {test}, the smallest possible p is "
            f"{min(row.p_smallest for row in tested):.2g}, which Holm's correction for all primary tests raises to "
            "0.05 or more."
        ]
    significant = sum(bool(row.significant) for row in decided)
    without = f"; {len(rows) - len(decided)} more have no verdict" if len(rows) > len(decided) else ""
    best = f"the smallest p that could be reached is {min(row.p_smallest_adjusted for row in decided):.2g}"
    return [
        f"{significant} of {len(decided)} distances of students to their teacher are significantly smaller than those "
        f"of {control}, after Holm{without} ({test}; {best}). {effect}."
    ]


def describe_accuracy(rows: Sequence[Any]) -> list[str]:
    """Return how much more accurate students are than their primary controls, which alone makes them closer."""
    known = [row.accuracy_change for row in rows if not is_missing(row.accuracy_change)]
    if not known:
        return []
    low, high = f"{min(known):+.2f}", f"{max(known):+.2f}"
    span = f"{low} points" if low == high else f"{low} to {high} points"
    return [
        f"Their accuracy differs from that of these controls by {span}, and a more accurate network is closer to any "
        "good teacher: only students of another teacher seed, and agreement at equal accuracy (table Fidelity), "
        "leave that out."
    ]


def judge_others(rows: Sequence[Any]) -> list[str]:
    """Return how many distances are smaller than those of the other controls, each by tests of its own."""
    parts = []
    for control, of_control in group_by(rows, lambda row: row.control):
        decided = [row for row in of_control if not is_missing(row.significant)]
        closer = sum(row.transfer < 0 for row in of_control)
        found = f"{sum(bool(row.significant) for row in decided)} of {len(decided)} significantly smaller"
        found += f" ({len(of_control) - len(decided)} more without a verdict)" if len(of_control) > len(decided) else ""
        if not decided:
            found = f"{closer} of {len(of_control)} smaller, without a verdict"
        parts.append(f"{name_of_control(control)}: {found}")
    if not parts:
        return []
    listed = "; ".join(parts)
    return [f"Against other controls, each a question of its own and corrected by itself: {listed}."]


def judge_asymmetry(rows: Sequence[Any]) -> list[str]:
    """Return which knowledge is taken over more: right or wrong answers of the teacher."""
    known = [row for row in rows if not is_missing(row.asymmetry)]
    if not known:
        return []
    correct, incorrect = (
        describe_counts([getattr(row, name) for row in known]) for name in ("correct_change", "incorrect_change")
    )
    right, wrong = (
        describe_shares([getattr(row, name) for row in known]) for name in ("correct_gain", "incorrect_gain")
    )
    changes = (
        f"over all conditions, agreement where the teacher is right changes by {correct} images, sharing its "
        f"mistakes by {incorrect}; of the room that the control leaves, by {right} and {wrong}"
    )
    with_interval = [row for row in known if not is_missing(row.finding)]
    if not with_interval:
        return [f"Asymmetry: {changes}. There are too few seeds, or no independent ones, for an interval."]
    total = len(with_interval)
    counted = {kind: sum(row.finding == kind for row in with_interval) for kind in WORDS}
    found = [f"{words} in {counted[kind]} of {total} conditions" for kind, words in WORDS.items() if counted[kind]]
    listed = "; ".join(found) or f"no condition of {total} shows that right or wrong answers are taken over more"
    return [
        f"Asymmetry, relative to the room that the control leaves: {listed} (95 % intervals over seeds, not "
        f"corrected). {changes[0].upper()}{changes[1:]}."
    ]


def describe_counts(values: Sequence[float]) -> str:
    """Return the range of some changes in images as text."""
    low, high = f"{min(values):+.0f}", f"{max(values):+.0f}"
    return low if low == high else f"{low} to {high}"


def describe_shares(values: Sequence[float]) -> str:
    """Return the range of some shares in per cent as text."""
    if not values:
        return "an unknown share"
    low, high = f"{min(values):+.1f} %", f"{max(values):+.1f} %"
    return low if low == high else f"{low} to {high}"


def seeds_of(rows: Sequence[Any]) -> str:
    """Return the numbers of seeds of both arms as text."""
    sizes = sorted({(int(row.n), int(row.n_control)) for row in rows})
    texts = [format_value(n, "d") if n == m else f"{n} against {m}" for n, m in sizes]
    return " and ".join(first_lines(texts))
