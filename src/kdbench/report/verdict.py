"""Conclusions from the numbers, as sentences."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from kdbench.report import statistics as st
from kdbench.report.column import P
from kdbench.report.columns import format_value
from kdbench.report.design import FEWEST_ARMS, FEWEST_SEEDS, Analysis
from kdbench.report.estimates import PlacedDesign, depends_on_shared, why_untested
from kdbench.report.failures import FailedRun
from kdbench.report.gains import Gain
from kdbench.report.groups import DISTILLED
from kdbench.report.primary import PRIMARY, Count, count_significant
from kdbench.report.runs import rows_of
from kdbench.report.select import Selection, reporting_seeds

FEW = 3
"""Largest number of significant gains whose intervals are in the first sentence."""


def verdict(
    gains: Sequence[Gain],
    gains_table: pd.DataFrame,
    interactions: pd.DataFrame,
    capacity: pd.DataFrame,
    placed: PlacedDesign,
    margin: float,
    limits: Sequence[str] = (),
) -> list[str]:
    """Return the report's first lines: findings first, then their test, other readings and power.

    Only the primary family counts: controls, and rows that a pooled row summarises, are in the tables alone.

    Args:
        gains: gains of the report.
        gains_table: their table, with the columns of the primary analysis.
        interactions: table of interactions, likewise.
        capacity: table of differences between students over all methods and teachers.
        placed: design of the report.
        margin: margin of equivalence, points.
        limits: sentences on failed runs and baselines that were not tuned; they follow the first finding.
    """
    is_primary = (gains_table.role == DISTILLED) & (gains_table.family == PRIMARY)
    counted = [gain for gain, primary in zip(gains, is_primary, strict=True) if primary]
    table = gains_table[is_primary]
    of_interest = interactions[(interactions.role == DISTILLED) & (interactions.family == PRIMARY)]
    lines = [*judge_gains(counted, table), *limits]
    if table.p_adjusted.notna().any():
        lines += describe_size(table[true_rows(table.significant)])
    lines += [*judge_interactions(of_interest), *judge_capacity(capacity)]
    if table.p_adjusted.notna().any():
        lines += [
            judge_equivalence(table, margin), describe_analysis(counted, table, placed), *describe_images(table),
            *describe_power(table, of_interest),
        ]  # fmt: skip
    return lines


def judge_gains(gains: Sequence[Gain], table: pd.DataFrame) -> list[str]:
    """Return how many gains are significant and which, and how many have no test."""
    computed, tested = int(table.delta.notna().sum()), int(table.p_adjusted.notna().sum())
    if not len(table):
        return ["There is no distilled student here, so there is no gain to report."]
    if not computed:
        return ["No gain can be computed: no distilled student has its baseline beside it."]
    if not tested:
        return [
            f"No gain can be tested, of {computed} computed: {list_reasons(gains, table)}. "
            "The numbers below are single numbers or means, and prove nothing."
        ]
    significant = table[true_rows(table.significant)]
    lines = [
        f"{len(significant)} of {tested} gains {be(len(significant))} significant after Holm{list_gains(significant)}."
    ]
    if computed > tested:
        have = "have" if computed - tested > 1 else "has"
        lines.append(f"{computed - tested} more {have} no test: {list_reasons(gains, table)}.")
    return lines


def list_reasons(gains: Sequence[Gain], table: pd.DataFrame) -> str:
    """Return the reasons why some gains have no test, in words."""
    untested = (table.delta.notna() & table.p_adjusted.isna()).tolist()
    reasons = [why_untested(gain) for gain, without in zip(gains, untested, strict=True) if without]
    return "; ".join(dict.fromkeys(reasons))


def judge_equivalence(table: pd.DataFrame, margin: float) -> str:
    """Return how many gains are shown to be within the margin."""
    equivalent, tested = int(true_rows(table.equivalent_adjusted).sum()), int(table.p_adjusted.notna().sum())
    return f"{equivalent} of {tested} gains {be(equivalent)} shown to be within ±{margin:g} points of zero after Holm."


def describe_size(significant: pd.DataFrame) -> list[str]:
    """Return how much too large the significant gains may be."""
    known = significant[significant.exaggeration.notna()]
    if not len(known):
        empty = (
            "The significant gains are no larger than gains of this spread are by chance: shrunken, nothing is left."
        )
        return [empty] if significant.shrunken.notna().any() else []
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
    by_kind = {kind: [gain for gain, own in zip(gains, table.analysis, strict=True) if own == kind] for kind in kinds}
    chosen = "; ".join(reason for kind, of in by_kind.items() for reason in REASONS[kind](of, placed))
    declared = placed.design.analysis
    if declared not in (Analysis.AUTO, *kinds):
        chosen += f" (the declared analysis, {OTHERS[declared]}, applies to none of these gains)"
    elif declared in (Analysis.BLOCKS, Analysis.PAIRED) and len(kinds) > 1:
        chosen += f", where the declared analysis, {OTHERS[declared]}, does not apply"
    if declared == Analysis.WELCH and any(map(depends_on_shared, gains)):
        chosen += " (which takes what teachers or crossed seeds share as independent, and so finds too much)"
    others = [kind for kind in OTHERS if kind not in kinds]
    counts = [f"{n} by {OTHERS[kind]}" for kind in others if (n := count_significant(gains, placed, kind)) is not None]
    beside = f" Other analyses, which do not count, would find {', '.join(counts)}." if counts else ""
    return f"Primary analysis: {chosen}.{beside}{describe_correlation(placed)}"


def reasons_for_blocks(gains: Sequence[Gain], placed: PlacedDesign) -> list[str]:
    """Return why seeds are blocks."""
    if placed.design.analysis == Analysis.BLOCKS:
        return ["seeds as blocks over all arms with one spread, as declared"]
    p = placed.design.p_homogeneity
    return [f"seeds as blocks over all arms with one spread, which Bartlett's test finds alike (p = {p:.2f})"]


def reasons_for_pairs(gains: Sequence[Gain], placed: PlacedDesign) -> list[str]:
    """Return why seeds are paired."""
    if placed.design.analysis == Analysis.PAIRED:
        return ["paired t-tests over seeds, as declared"]
    large = [place[0].arms >= FEWEST_ARMS for gain in gains if (place := placed.place(gain))]
    found = []
    if any(large):
        p = placed.design.p_homogeneity
        found.append(f"paired t-tests over seeds, since the arms' spreads may differ (Bartlett's test, p = {p:.2f})")
    if not all(large):
        found.append(
            f"paired t-tests over seeds, since students with fewer than {FEWEST_ARMS - 1} arms beside the baseline do "
            "not show whether spreads are alike"
        )
    return found


def reasons_for_welch(gains: Sequence[Gain], placed: PlacedDesign) -> list[str]:
    """Return why arms are independent: a reason for each kind of gain here."""
    if placed.design.analysis == Analysis.WELCH:
        return ["Welch's t-tests, as declared"]
    places = [placed.place(gain) for gain in gains]
    found = []
    if any(place is not None for place in places):
        found.append(
            f"Welch's t-tests, since fewer than {FEWEST_SEEDS} seeds are too few to pair or to compare spreads"
        )
    unplaced = [gain for place, gain in zip(places, gains, strict=True) if place is None]
    if any(not gain.is_pooled for gain in unplaced):
        found.append("Welch's t-tests, where an arm has other seeds than its baseline")
    if any(gain.is_pooled for gain in unplaced):
        found.append("Welch's t-tests over teachers whose students share no seed")
    return found


def reasons_for_crossing(gains: Sequence[Gain], placed: PlacedDesign) -> list[str]:
    """Return what is crossed."""
    return ["teachers and seeds (or first weights and orders of images) as crossed samples"]


REASONS = {
    Analysis.BLOCKS: reasons_for_blocks,
    Analysis.PAIRED: reasons_for_pairs,
    Analysis.WELCH: reasons_for_welch,
    Analysis.CROSSED: reasons_for_crossing,
}
OTHERS = {
    Analysis.BLOCKS: "seeds as blocks (which takes all spreads as equal)",
    Analysis.PAIRED: "paired t-tests",
    Analysis.WELCH: "Welch's t-tests",
}
"""Analyses that may be declared, in words for the count beside the primary one."""


def describe_correlation(placed: PlacedDesign) -> str:
    """Return how alike the accuracies of one seed are in the arms of a student."""
    known = [
        (block.correlation, student)
        for block, student in zip(placed.design.blocks, placed.students, strict=True)
        if not pd.isna(block.correlation)
    ]
    if not known:
        return ""
    named = ", ".join(f"{round(value, 2) + 0:.2f} ({student})" for value, student in known)  # -0.00 is 0.00
    helps = "where that is above zero, seeds in common lower the error of a gain"
    return f" Accuracies of one seed correlate between arms by {named}: {helps}."


def describe_images(table: pd.DataFrame) -> list[str]:
    """Return what the verdict is about, and how it reads for other test images."""
    tested, known = int(table.p_adjusted.notna().sum()), table[table.p_images.notna()]
    about = "The verdict is about other seeds on these very test images."
    if not len(known):
        return [
            f"{about} For other test images the logits of all runs on the same images are "
            "needed, and some are missing or belong to others."
        ]
    adjusted = pd.Series(st.holm(known.p_images.astype(float).tolist()))
    count = int((adjusted < st.ALPHA).sum())
    missing = f" ({tested - len(known)} lack logits)" if tested > len(known) else ""
    return [
        f"{about} For other test images of the same kind too, {count} of {len(known)} gains {be(count)} "
        f"significant after Holm{missing}; the table of gains has their intervals (images_low, images_high)."
    ]


def describe_power(gains: pd.DataFrame, interactions: pd.DataFrame) -> list[str]:
    """Return the power of the rule: what these seeds find, and the seeds that small differences need."""
    lines = []
    for table, words in ((gains, "gain"), (interactions, "difference of gains")):
        known = table[table.detectable.notna()]
        if len(known):
            best = rows_of(known.sort_values("detectable", kind="stable"))[0]
            lines.append(
                f"By this rule, correction included, and at the spread of all arms, these seeds find a true {words} of "
                f"{best.detectable:.2f} points 4 times in 5 (between {best.detectable_low:.2f} and "
                f"{best.detectable_high:.2f}, since the spread is uncertain); 0.1 points would need "
                f"{seed_range(best.needed_0p1, best.needed_0p1_low, best.needed_0p1_high)} and 0.2 points would need "
                f"{seed_range(best.needed_0p2, best.needed_0p2_low, best.needed_0p2_high)} seeds per arm."
            )
        elif table.p_adjusted.notna().any():
            lines.append(f"The power to find a {words} over several teachers or crossed seeds is not computed.")
    return lines


def seed_range(n: Any, low: Any, high: Any) -> str:
    return f"{seed_count(n)} ({seed_count(low)} to {seed_count(high)})"


def judge_interactions(interactions: pd.DataFrame) -> list[str]:
    """Return how many interactions are significant, and which student gains more."""
    tested = interactions[interactions.p_adjusted.notna()]
    if not len(tested):
        return ["Whether one student gains more than another cannot be tested here."] if len(interactions) else []
    significant = tested[true_rows(tested.significant)]
    return [
        f"{len(significant)} of {len(tested)} interactions (one student gains more than the other) "
        f"{be(len(significant))} significant after Holm{list_interactions(significant)}."
    ]


def judge_capacity(capacity: pd.DataFrame) -> list[str]:
    """Return the difference of the mean gains of the largest and the next student over all methods and teachers."""
    tested = capacity[capacity.p_primary.notna()]
    several = tested[(tested.gains_a > 1) | (tested.gains_b > 1)]
    also = (
        f" This is one of {len(several)} pairs of students, each with an uncorrected test." if len(several) > 1 else ""
    )
    return [
        f"Over all methods and teachers {pair.student_a} gains {pair.difference:+.2f} points more than "
        f"{pair.student_b} (95 % {pair.primary_low:+.2f} to {pair.primary_high:+.2f}, "
        f"p = {format_value(pair.p_primary, P)}, one test).{describe_common(pair)}{also}"
        for pair in rows_of(several)[:1]
    ]


def describe_common(pair: Any) -> str:
    """Return the difference over what two students have in common, where the one over all includes more."""
    if pair.gains_a == pair.gains_b == pair.gains_common:
        return ""
    common = "one is" if pair.gains_common == 1 else f"{pair.gains_common} are"
    return (
        f" Of their {pair.gains_a} and {pair.gains_b} gains only {common} by the same method from the same teacher: "
        f"over {'that' if pair.gains_common == 1 else 'those'} the difference is {pair.difference_common:+.2f}."
    )


def sentence(remark: str) -> str:
    """Return a remark as a sentence."""
    return f"{remark[0].upper()}{remark[1:]}."


def true_rows(column: "pd.Series[Any]") -> "pd.Series[bool]":
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
        + (f" (95 % {gain.primary_low:+.2f} to {gain.primary_high:+.2f})" if len(significant) <= FEW else "")
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


def judge_failures(failed: Sequence[FailedRun], without: Count, with_them: Count | None) -> list[str]:
    """Return what failed runs would change, as sentences.

    Args:
        failed: runs that failed.
        without: counts of the report.
        with_them: counts with failed runs at chance accuracy; None if none of them counts.
    """
    if not failed:
        return []
    arms: dict[str, list[str]] = {}
    for run in failed:
        arms.setdefault(run.arm, []).append(str(run.seed))
    named = "; ".join(f"{arm}: seed {', '.join(seeds)}" for arm, seeds in arms.items())
    runs, have = ("runs", "have") if len(failed) > 1 else ("run", "has")
    first = f"{len(failed)} {runs} failed and {have} no result ({named})."
    if with_them is None:
        return [f"{first} The reasons lie in the machine (memory, disk, locks): repeat the runs."]
    if not with_them.tested:
        return [f"{first} With them at the accuracy of chance no gain can be tested."]
    losses = (
        f", {with_them.losses} of them {'losses' if with_them.losses > 1 else 'a loss'}" if with_them.losses else ""
    )
    return [
        f"{first} Without them {count_found(without)}; with them at the accuracy of chance (but for those that ended "
        f"for want of memory, disk space or a lock) {with_them.significant} of {with_them.tested}{losses}."
    ]


def count_found(count: Count) -> str:
    """Return how many gains are significant, in words."""
    if not count.tested:
        return "no gain can be tested"
    return f"{count.significant} of {count.tested} gains {be(count.significant)} significant after Holm"


def join(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
