"""Primary analysis of gains and interactions, and everything that follows from it: the columns that the verdict reads.

Families for Holm's correction: the distilled gains of a report without those of one teacher that a pooled gain
summarises; likewise the interactions; controls apart.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from kdbench.report import statistics as st
from kdbench.report.columns import CAPACITY, row
from kdbench.report.design import FEWEST_ARMS, FEWEST_SEEDS, Analysis, Block, Design, Estimate
from kdbench.report.estimates import PlacedDesign, estimate_capacity, estimate_gain, estimate_interaction
from kdbench.report.gains import Gain, decide
from kdbench.report.groups import CONTROL
from kdbench.report.images import Correctness, WithImages, correctness_of, image_variances
from kdbench.report.interactions import StudentPair
from kdbench.report.power import RulePower, joint_level, spread_interval
from kdbench.report.sizes import exaggeration, shrink

PRIMARY, SECONDARY = "primary", "secondary"
"""Families; the third is `CONTROL`."""
SIZES = {0.1: "0p1", 0.2: "0p2"}
"""Differences in points whose needed seeds are reported, by the end of the column's name."""
WHOLE = [f"needed_{name}{end}" for name in SIZES.values() for end in ("", "_low", "_high")]
"""Columns of whole numbers."""


def capacity_table(pairs: Sequence[StudentPair], placed: PlacedDesign) -> pd.DataFrame:
    """Return the content of capacity.csv: whether one student gains more than another over all methods and teachers.

    Args:
        pairs: the two students of each row.
        placed: design of the report.
    """
    rows = []
    for pair in pairs:
        of_a, of_b = pair.of_a, pair.of_b
        estimate = estimate_capacity(of_a, of_b, placed)
        parts = [correctness_parts(gain) for gain in (*of_a, *of_b)]
        weights = [1 / len(of_a)] * len(of_a) + [-1 / len(of_b)] * len(of_b)
        cells = cells_of(estimate, parts, weights)
        rows.append(
            {name: value for name, value in cells.items() if name in CAPACITY}
            | row(
                student_a=of_a[0].group.shared.student, student_b=of_b[0].group.shared.student, gains_a=len(of_a),
                gains_b=len(of_b), gain_a=float(np.mean([gain.delta for gain in of_a])),
                gain_b=float(np.mean([gain.delta for gain in of_b])), difference=estimate.difference,
                gains_common=len(pair.matched),
                difference_common=float(np.mean([a.delta - b.delta for a, b in pair.matched])),
            )
        )  # fmt: skip
    return pd.DataFrame(rows, columns=CAPACITY)


def correctness_parts(gain: Gain) -> Correctness | None:
    """Return the correctness of a gain's runs and baseline runs, or None where logits are missing."""
    if gain.baseline is None or len(gain.group.runs) < 2 or len(gain.baseline.runs) < 2:
        return None
    base = correctness_of(gain.baseline.runs)
    runs = [correctness_of(group.runs) for group in gain.groups]
    known = [own for own in runs if own is not None]
    if base is None or len(known) < len(runs) or not all(np.array_equal(labels, base[1]) for _, labels in known):
        return None
    is_paired = all(group.seeds == gain.baseline.seeds for group in gain.groups)
    of_base = np.tile(base[0], (len(known), 1)) if is_paired else base[0]
    return Correctness(np.concatenate([own for own, _ in known]), of_base, is_paired, base[1])


@dataclass(frozen=True)
class Count:
    """Numbers of gains of the primary family."""

    significant: int
    tested: int
    losses: int
    """Significant ones below zero."""


def count_gains(gains: Sequence[Gain], placed: PlacedDesign) -> Count:
    """Return how many of some gains, one family, are tested and significant after Holm."""
    estimates = [estimate_gain(gain, placed) for gain in gains]
    adjusted = st.holm([estimate.p for estimate in estimates])
    found = [estimate for estimate, p in zip(estimates, adjusted, strict=True) if p < st.ALPHA]
    losses = sum(estimate.difference < 0 for estimate in found)
    return Count(len(found), sum(estimate.se > 0 for estimate in estimates), losses)


def count_significant(gains: Sequence[Gain], placed: PlacedDesign, analysis: Analysis) -> int | None:
    """Return how many gains of one family another primary analysis would find significant after Holm.

    None if it does not apply to all of them, as pairs where seeds do not match.
    """
    other = PlacedDesign(replace(placed.design, analysis=analysis), placed.places, placed.students)
    tested = [gain for gain in gains if estimate_gain(gain, placed).se > 0]
    applies = all(estimate_gain(gain, other).analysis == analysis for gain in tested)
    return count_gains(tested, other).significant if applies else None


def count_verdict(gains: Sequence[Gain], placed: PlacedDesign) -> Count:
    """Return the counts of the primary family of a report."""
    return count_gains([gain for gain in gains if family_of(gain) == PRIMARY], placed)


def add_primary_to_gains(
    table: pd.DataFrame, gains: Sequence[Gain], placed: PlacedDesign, margin: float
) -> pd.DataFrame:
    """Return gains.csv with the columns of the primary analysis.

    Args:
        table: a row for each gain.
        gains: gains of the report.
        placed: design of the report.
        margin: margin of equivalence, points.
    """
    estimates = [estimate_gain(gain, placed) for gain in gains]
    families = [family_of(gain) for gain in gains]
    cells = [
        cells_of(estimate, [correctness_parts(gain)], [1.0])
        | row(family=family, correlation=correlation(gain), p_equivalence_adjusted=estimate.p_equivalence(margin))
        for gain, estimate, family in zip(gains, estimates, families, strict=True)
    ]
    added = pd.DataFrame(cells, columns=[c for c in table.columns if c in cells[0]] if cells else [], index=table.index)
    for family in (PRIMARY, CONTROL):
        of = [i for i, own in enumerate(families) if own == family]
        fill_family(added, of, [gains[i] for i in of], [estimates[i] for i in of], placed)
    return finished(table, added)


def family_of(gain: Gain) -> str:
    if gain.group.shared.role == CONTROL:
        return CONTROL
    return SECONDARY if gain.is_summarised else PRIMARY


def fill_family(
    added: pd.DataFrame, at: list[int], gains: Sequence[Gain], estimates: Sequence[Estimate], placed: PlacedDesign
) -> None:
    """Fill in what depends on the whole family: corrected p, simultaneous intervals, shrunken gains, power."""
    if not at:
        return
    index = added.index[at]
    correct(added, index)
    added.loc[index, "p_equivalence_adjusted"] = st.holm(
        added.loc[index, "p_equivalence_adjusted"].astype(float).tolist()
    )
    tested = sum(estimate.se > 0 for estimate in estimates)
    in_blocks = [placed.place(gain) for gain in gains]
    sizes = [1 + sum(p is not None and p[0] is block for p in in_blocks) for block in placed.design.blocks]
    arms = placed.alike(tuple(size for size in sizes if size > 1))
    others = tested - sum(size - 1 for size in arms)
    rule = RulePower(placed.arms, tested, placed.design.analysis)
    level = st.ALPHA / max(1, tested)
    usual = [with_usual_spread(e, p, placed.design) for e, p in zip(estimates, in_blocks, strict=True)]
    for i, gain, estimate, typical, small in zip(index, gains, estimates, usual, shrink(usual), strict=True):
        n = len(gain.values)
        is_found = added.loc[i, "p_adjusted"] < st.ALPHA
        factor = exaggeration(typical, small, level) if is_found else math.nan
        cells: dict[str, Any] = row(shrunken=small, exaggeration=factor)
        if estimate.se > 0:
            joint = joint_level(arms, max(2, n), placed.design.analysis, max(0, others))
            low, high = estimate.interval(1 - joint)
            cells |= row(joint_low=low, joint_high=high)
        if estimate.analysis != Analysis.CROSSED and estimate.se > 0 and not gain.is_pooled:
            own_rule = rule_for(rule, estimate, placed, [gain])
            cells |= power_cells(own_rule, min(n, len(gain.base_values)), placed, gains)
        for name, value in cells.items():
            added.loc[i, name] = value


def with_usual_spread(estimate: Estimate, place: tuple[Block, int] | None, design: Design) -> Estimate:
    """Return an estimate with the standard error of the spread pooled over all blocks.

    That of its own few differences may be small by chance, most of all where the gain came out significant.
    """
    if place is None or not estimate.se > 0:
        return estimate
    return replace(estimate, se=design.residual_std * math.sqrt(2 / place[0].n))


def rule_for(rule: RulePower, estimate: Estimate, placed: PlacedDesign, gains: Sequence[Gain]) -> RulePower:
    """Return the rule for an estimate of some gains: Welch's test where an arm has no block."""
    places = [placed.place(gain) for gain in gains]
    own = tuple(place[0].arms for place in places if place)
    if len(own) == len(gains) and (estimate.analysis != Analysis.WELCH or rule.analysis == Analysis.AUTO):
        return replace(rule, arms=own if min(own) < FEWEST_ARMS else placed.alike(placed.arms))
    return RulePower((), rule.family, Analysis.WELCH, rule.interaction)


def spread_of(rule: RulePower, placed: PlacedDesign, gains: Sequence[Gain], n: int) -> tuple[float, int]:
    """Return the standard deviation that a rule's test of n seeds is up against, and its degrees of freedom.

    Within arm and seed where the test pairs, else within the arms.
    """
    design = placed.design
    pairs = rule.arms and rule.analysis != Analysis.WELCH
    if pairs and design.residual_df and (design.analysis in (Analysis.BLOCKS, Analysis.PAIRED) or n >= FEWEST_SEEDS):
        return design.residual_std, design.residual_df
    arms: list[Sequence[float]] = [column.tolist() for block in design.blocks for column in block.values.T]
    if not arms:
        of_gains = {id(arm): arm for gain in gains if not gain.is_pooled for arm in (gain.values, gain.base_values)}
        arms = [arm for arm in of_gains.values() if len(arm) > 1]
    return st.pooled_std(arms), sum(len(arm) - 1 for arm in arms)


def power_cells(rule: RulePower, n: int, placed: PlacedDesign, gains: Sequence[Gain]) -> Mapping[str, Any]:
    """Return the smallest detectable difference and the needed seeds, with their ranges over what the spread may be.

    Args:
        rule: its correction included.
        n: seeds per arm.
        placed: design of the report.
        gains: gains whose arms give the spread where there are no blocks.
    """
    spread, later = (spread_of(rule, placed, gains, seeds) for seeds in (n, FEWEST_SEEDS))
    return power_at(rule, n, spread, later) if spread[0] > 0 and n >= 2 else {}


@lru_cache(maxsize=1024)
def power_at(rule: RulePower, n: int, spread: tuple[float, int], later: tuple[float, int]) -> Mapping[str, Any]:
    """Return the columns of `power_cells`; rows with the same numbers of runs share them.

    Args:
        rule: its correction included.
        n: seeds per arm.
        spread: standard deviation that the test is up against, and its degrees of freedom.
        later: the same with as many seeds as are needed.
    """
    (std, df), ratio = spread, rule.detectable(n)
    low, high = spread_interval(std, df)
    cells: dict[str, Any] = row(detectable=ratio * std, detectable_low=ratio * low, detectable_high=ratio * high)
    std, df = later
    low, high = spread_interval(std, df)
    for size, name in SIZES.items():
        for end, value in (("", std), ("_low", low), ("_high", high)):
            cells[f"needed_{name}{end}"] = rule.needed(size / value) if value > 0 else None
    return cells


def add_primary_to_interactions(
    table: pd.DataFrame, pairs: Sequence[tuple[Gain, Gain]], placed: PlacedDesign
) -> pd.DataFrame:
    """Return interactions.csv with the columns of the primary analysis.

    Args:
        table: a row for each pair of gains.
        pairs: gain of the larger and of the smaller student of each row.
        placed: design of the report.
    """
    estimates = [estimate_interaction(a, b, placed) for a, b in pairs]
    families = [family_of(a) for a, _ in pairs]
    cells = [
        cells_of(estimate, [correctness_parts(a), correctness_parts(b)], [1.0, -1.0]) | row(family=family)
        for (a, b), estimate, family in zip(pairs, estimates, families, strict=True)
    ]
    added = pd.DataFrame(cells, columns=[c for c in table.columns if c in cells[0]] if cells else [], index=table.index)
    for family in (PRIMARY, CONTROL):
        of = [i for i, own in enumerate(families) if own == family]
        if not of:
            continue
        correct(added, added.index[of])
        rule = RulePower(
            placed.arms if len(placed.arms) > 1 else (), sum(estimates[i].se > 0 for i in of),
            placed.design.analysis, interaction=True,
        )  # fmt: skip
        for i in of:
            a, b = pairs[i]
            if estimates[i].analysis != Analysis.CROSSED and estimates[i].se > 0 and not a.is_pooled:
                n = min(len(arm) for gain in (a, b) for arm in (gain.values, gain.base_values))
                own = power_cells(rule_for(rule, estimates[i], placed, [a, b]), n, placed, [a, b])
                for name, value in own.items():
                    added.loc[added.index[i], name] = value
    return finished(table, added)


def cells_of(estimate: Estimate, parts: Sequence[Correctness | None], weights: Sequence[float]) -> dict[str, Any]:
    """Return the columns of an estimate on its own, and with other test images of the same kind."""
    low, high = estimate.interval()
    cells = row(
        analysis=estimate.analysis.value if estimate.se > 0 else None, primary_se=estimate.se, primary_df=estimate.df,
        primary_low=low, primary_high=high, p_primary=estimate.p, p_adjusted=math.nan, image_se=math.nan,
        images_low=math.nan, images_high=math.nan, p_images=math.nan,
    )  # fmt: skip
    known = [part for part in parts if part is not None]
    same = all(np.array_equal(part.labels, known[0].labels) for part in known)
    if len(known) < len(parts) or not same or not estimate.se > 0:
        return cells
    whole, own = image_variances(known, weights)
    both = WithImages(estimate, math.sqrt(own))
    low, high = both.interval()
    return cells | row(image_se=math.sqrt(whole), images_low=low, images_high=high, p_images=both.p)


def correct(added: pd.DataFrame, index: Any) -> None:
    """Fill in Holm's adjusted p of the primary analysis over the rows of one family."""
    added.loc[index, "p_adjusted"] = st.holm(added.loc[index, "p_primary"].astype(float).tolist())


def finished(table: pd.DataFrame, added: pd.DataFrame) -> pd.DataFrame:
    """Return a table with the added columns and the decisions by them; whole numbers are whole."""
    decided = {"significant": "p_adjusted", "equivalent_adjusted": "p_equivalence_adjusted"}
    given = {name: added[name] for name in added.columns}
    given |= {name: added[p].map(decide) for name, p in decided.items() if name in table.columns and p in added.columns}
    table = table.assign(**given)
    types = dict.fromkeys(WHOLE, "Int64") | dict.fromkeys((name for name in decided if name in table), "boolean")
    return table.astype({name: kind for name, kind in types.items() if name in table})


def correlation(gain: Gain) -> float:
    """Return the correlation of the accuracies of one seed in both arms; NaN for fewer than three pairs."""
    if not gain.is_paired or len(gain.values) < 3 or not (st.varies(gain.values) and st.varies(gain.base_values)):
        return math.nan
    return float(np.corrcoef(gain.values, gain.base_values)[0, 1])
