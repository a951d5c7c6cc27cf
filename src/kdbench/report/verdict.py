"""Conclusions from the numbers, as sentences."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from kdbench.report import statistics as st
from kdbench.report.columns import P, format_value
from kdbench.report.design import FEWEST_SEEDS, Analysis
from kdbench.report.failures import FailedRun
from kdbench.report.gains import Gain
from kdbench.report.groups import DISTILLED
from kdbench.report.primary import PRIMARY, PlacedDesign, count_significant
from kdbench.report.runs import rows_of
from kdbench.report.select import Selection, reporting_seeds


def verdict(
    gains: Sequence[Gain],
    gains_table: pd.DataFrame,
    interactions: pd.DataFrame,
    capacity: pd.DataFrame,
    placed: PlacedDesign,
    margin: float,
) -> list[str]:
    """Return the report's first lines: sentences on gains, their test, size and power, equivalence and interactions.

    Only the primary family counts: controls, and rows that a pooled row summarises, are in the tables alone.

    Args:
        gains: gains of the report.
        gains_table: their table, with the columns of the primary analysis.
        interactions: table of interactions, likewise.
        capacity: table of differences between students over all methods and teachers.
        placed: design of the report.
        margin: margin of equivalence, points.
    """
    is_primary = (gains_table.role == DISTILLED) & (gains_table.family == PRIMARY)
    counted = [gain for gain, primary in zip(gains, is_primary, strict=True) if primary]
    of_interest = interactions[(interactions.role == DISTILLED) & (interactions.family == PRIMARY)]
    return [
        *judge_gains(counted, gains_table[is_primary], placed, margin),
        *judge_interactions(of_interest),
        *judge_capacity(capacity),
    ]


def judge_gains(gains: Sequence[Gain], table: pd.DataFrame, placed: PlacedDesign, margin: float) -> list[str]:
    computed, tested = int(table.delta.notna().sum()), int(table.p_adjusted.notna().sum())
    if not len(table):
        return ["There is no distilled student here, so there is no gain to report."]
    if not computed:
        return ["No gain can be computed: no distilled student has its baseline beside it."]
    if not tested:
        return [
            f"No gain can be tested: of {computed} computed, none has two seeds or more in both arms that vary. "
            "The numbers below are single numbers or means, and prove nothing."
        ]
    significant = table[is_true(table.significant)]
    lines = [
        f"{len(significant)} of {tested} gains {be(len(significant))} significant after Holm{list_gains(significant)}."
    ]
    if computed > tested:
        lines.append(
            f"{computed - tested} more {'have' if computed - tested > 1 else 'has'} no test: "
            "too few seeds, no variation, or crossed seeds that are no replicates."
        )
    equivalent = int(is_true(table.equivalent_adjusted).sum())
    return [
        *lines,
        *describe_size(significant),
        describe_analysis(gains, table, placed),
        *describe_images(table, tested),
        *describe_power(table),
        f"{equivalent} of {tested} gains {be(equivalent)} shown to be within ±{margin:g} points of zero after Holm.",
    ]


def describe_size(significant: pd.DataFrame) -> list[str]:
    """Return how much too large the significant gains may be."""
    known = significant[significant.exaggeration.notna()]
    if not len(known):
        empty = (
            "The significant gains are no larger than gains of this spread are by chance: shrunken, nothing is left."
        )
        return [empty] if len(significant) else []
    low, high = known.exaggeration.min(), known.exaggeration.max()
    factors = f"{low:.1f}" if f"{low:.1f}" == f"{high:.1f}" else f"{low:.1f} to {high:.1f}"
    shrunken = ", ".join(f"{value:+.2f}" for value in known.shrunken)
    return [
        "Gains that are named because they are significant are too large on average, here by an estimated factor of "
        f"{factors}; shrunken towards zero {'they are' if len(known) > 1 else 'it is'} {shrunken}."
    ]


def describe_analysis(gains: Sequence[Gain], table: pd.DataFrame, placed: PlacedDesign) -> str:
    """Return the primary analysis with its reason, and the counts by the other ones."""
    kinds = [kind for kind in Analysis if kind in set(table.analysis.dropna())]
    chosen = "; ".join(REASONS[kind](placed) for kind in kinds)
    others = [kind for kind in (Analysis.BLOCKS, Analysis.PAIRED, Analysis.WELCH) if kind not in kinds]
    counts = [f"{count_significant(gains, placed, kind)} by {NAMES[kind]}" for kind in others]
    beside = f" Beside it, by analyses that do not count: {', '.join(counts)}." if counts else ""
    return f"Primary analysis: {chosen}.{beside}{describe_correlation(placed)}"


def reason_for_blocks(placed: PlacedDesign) -> str:
    if placed.design.analysis == Analysis.BLOCKS:
        return "seeds as blocks over all arms with one spread, as declared"
    p = placed.design.p_homogeneity
    return f"seeds as blocks over all arms with one spread, which Bartlett's test does not find to differ (p = {p:.2f})"


def reason_for_pairs(placed: PlacedDesign) -> str:
    if placed.design.analysis == Analysis.PAIRED:
        return "paired t-tests over seeds, as declared"
    p = placed.design.p_homogeneity
    return f"paired t-tests over seeds, since the arms' spreads may differ (Bartlett's test, p = {p:.2f})"


def reason_for_welch(placed: PlacedDesign) -> str:
    if placed.design.analysis == Analysis.WELCH:
        return "Welch's t-tests, as declared"
    return (
        "Welch's t-tests, where seeds are not those of the baseline, or are fewer than "
        f"{FEWEST_SEEDS} with no like spreads to pool"
    )


REASONS = {
    Analysis.BLOCKS: reason_for_blocks,
    Analysis.PAIRED: reason_for_pairs,
    Analysis.WELCH: reason_for_welch,
    Analysis.CROSSED: lambda placed: "teachers and seeds (or first weights and orders of images) as crossed samples",
}
NAMES = {
    Analysis.BLOCKS: "seeds as blocks with one spread",
    Analysis.PAIRED: "paired t-tests",
    Analysis.WELCH: "Welch's t-tests",
}


def describe_correlation(placed: PlacedDesign) -> str:
    """Return how alike the accuracies of one seed are in the arms of a student."""
    known = [f"{block.correlation:.2f}" for block in placed.design.blocks if not pd.isna(block.correlation)]
    if not known:
        return ""
    return f" Accuracies of one seed correlate between arms by {', '.join(known)}: what pairing brings."


def describe_images(table: pd.DataFrame, tested: int) -> list[str]:
    """Return what the verdict is about, and how it reads for other test images."""
    known = table[table.p_images.notna()]
    if not len(known):
        return ["The verdict is about other seeds on these very test images; without logits of all runs, no more."]
    adjusted = pd.Series(st.holm(known.p_images.astype(float).tolist()))
    count = int((adjusted < st.ALPHA).sum())
    missing = f" ({tested - len(known)} lack logits)" if tested > len(known) else ""
    return [
        "The verdict is about other seeds on these very test images. For other test images of the same kind too, "
        f"{count} of {len(known)} gains {be(count)} significant after Holm{missing}; their intervals are beside it."
    ]


def describe_power(table: pd.DataFrame) -> list[str]:
    """Return the power of the rule: what these seeds find, and the seeds that small gains need."""
    known = table[table.detectable.notna()]
    if not len(known):
        return []
    best = rows_of(known.sort_values("detectable", kind="stable"))[0]
    needed = " and ".join(
        f"{size} points would need {seed_range(*values)}"
        for size, values in (
            ("0.1", (best.needed_0p1, best.needed_0p1_low, best.needed_0p1_high)),
            ("0.2", (best.needed_0p2, best.needed_0p2_low, best.needed_0p2_high)),
        )
    )
    return [
        f"By this rule, correction included, these seeds find a true gain of {best.detectable:.2f} points 4 times in 5 "
        f"({best.detectable_low:.2f} to {best.detectable_high:.2f}, as the spread is known); {needed} seeds per arm."
    ]


def seed_range(n: Any, low: Any, high: Any) -> str:
    return f"{seed_count(n)} ({seed_count(low)} to {seed_count(high)})"


def judge_interactions(interactions: pd.DataFrame) -> list[str]:
    tested = interactions[interactions.p_adjusted.notna()]
    if not len(tested):
        return ["Whether one student gains more than another cannot be tested here."] if len(interactions) else []
    significant = tested[is_true(tested.significant)]
    power = ""
    if tested.detectable.notna().any():
        best = rows_of(tested[tested.detectable.notna()].sort_values("detectable", kind="stable"))[0]
        power = (
            f"; these seeds find a difference of {best.detectable:.2f} points 4 times in 5 ({best.detectable_low:.2f} "
            f"to {best.detectable_high:.2f}), and 0.2 points would need "
            f"{seed_range(best.needed_0p2, best.needed_0p2_low, best.needed_0p2_high)} seeds per arm"
        )
    return [
        f"{len(significant)} of {len(tested)} interactions (one student gains more than the other) "
        f"{be(len(significant))} significant after Holm{list_interactions(significant)}{power}."
    ]


def judge_capacity(capacity: pd.DataFrame) -> list[str]:
    """Return the difference of the mean gains of the largest and the next student over all methods and teachers."""
    tested = capacity[capacity.p_primary.notna()]
    several = tested[(tested.gains_a > 1) | (tested.gains_b > 1)]
    also = (
        f" This is one of {len(several)} pairs of students, each with an uncorrected test." if len(several) > 1 else ""
    )
    return [
        f"Over all methods and teachers {pair.student_a} gains {pair.difference:+.2f} points beside {pair.student_b} "
        f"(95 % {pair.primary_low:+.2f} to {pair.primary_high:+.2f}, p = {format_value(pair.p_primary, P)}, one "
        f"test).{also}"
        for pair in rows_of(several)[:1]
    ]


def is_true(column: "pd.Series[Any]") -> "pd.Series[bool]":
    return column.fillna(False).astype(bool)


def be(n: int) -> str:
    return "is" if n == 1 else "are"


def seed_count(n: Any) -> str:
    return "more than a million" if pd.isna(n) else str(n)


def list_gains(significant: pd.DataFrame) -> str:
    """Return the significant gains as text, by name and size; losses are called so."""
    found = [
        f"{gain.student} {f'from {gain.teacher} ' if gain.teacher else ''}by {gain.method}"
        f"{f' ({gain.setting})' if gain.setting else ''} {gain.delta:+.2f}{' (a loss)' if gain.delta < 0 else ''}"
        for gain in rows_of(significant)
    ]
    return f": {', '.join(found)}" if found else ""


def list_interactions(significant: pd.DataFrame) -> str:
    """Return the significant interactions as text, with the student that gains more."""
    found = [
        f"{pair.student_a if pair.difference > 0 else pair.student_b} gains {abs(pair.difference):.2f} more than "
        f"{pair.student_b if pair.difference > 0 else pair.student_a} by {pair.method}"
        f"{f' from {pair.teacher}' if pair.teacher else ''}"
        for pair in rows_of(significant)
    ]
    return f": {', '.join(found)}" if found else ""


def describe_selection(selection: Selection | None, runs: pd.DataFrame) -> list[str]:
    """Return what a reader must know about how settings were chosen."""
    if selection is None:
        return []
    lines = [
        f"Settings were chosen by {selection.chosen_by} on seeds {join(selection.selection_seeds)} in the study "
        f"{selection.study}, and are reported with seeds {join(reporting_seeds(runs))}."
    ]
    overlap = sorted(set(selection.selection_seeds) & set(reporting_seeds(runs)))
    if overlap:
        lines.append(
            f"MARKED: seeds {join(overlap)} both chose the settings and report them, so gains over the baseline are "
            "biased upwards."
        )
    return lines


def judge_failures(
    failed: Sequence[FailedRun], without: tuple[int, int], with_them: tuple[int, int] | None
) -> list[str]:
    """Return what failed runs would change, as sentences.

    Args:
        failed: runs that failed.
        without: numbers of significant and of tested gains of the report.
        with_them: the same with failed runs at chance accuracy; None if none of them counts.
    """
    if not failed:
        return []
    arms: dict[str, list[str]] = {}
    for run in failed:
        arms.setdefault(run.arm, []).append(str(run.seed))
    named = "; ".join(f"{arm}: seed {', '.join(seeds)}" for arm, seeds in arms.items())
    lines = [
        f"{len(failed)} {'runs' if len(failed) > 1 else 'run'} failed and {'have' if len(failed) > 1 else 'has'} no "
        f"result ({named})."
    ]
    if with_them is None:
        return [
            *lines,
            "The reasons lie in the machine (memory, disk, locks), so repeat the runs; nothing else is assumed.",
        ]
    return [
        *lines,
        f"Without them {without[0]} of {without[1]} gains {be(without[0])} significant after Holm; with those that the "
        f"machine did not stop, at the accuracy of chance, {with_them[0]} of {with_them[1]}.",
    ]


def join(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
