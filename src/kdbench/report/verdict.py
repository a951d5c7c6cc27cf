"""Conclusions from the numbers, as sentences."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from kdbench.report.groups import DISTILLED
from kdbench.report.runs import rows_of
from kdbench.report.select import Selection, reporting_seeds
from kdbench.report.statistics import ALPHA


def verdict(gains: pd.DataFrame, interactions: pd.DataFrame, std: float, margin: float) -> list[str]:
    """Return the report's first lines: a sentence each on gains, seeds, equivalence and interactions of distillation.

    Controls are in the tables, but are no distillation.
    """
    distilled = gains[gains.role == DISTILLED]
    return [*judge_gains(distilled, std, margin), *judge_interactions(interactions[interactions.role == DISTILLED])]


def judge_gains(gains: pd.DataFrame, std: float, margin: float) -> list[str]:
    computed, tested = int(gains.delta.notna().sum()), int(gains.p_holm.notna().sum())
    if not len(gains):
        return ["There is no distilled student here, so there is no gain to report."]
    if not computed:
        return ["No gain can be computed: no distilled student has its baseline beside it."]
    if not tested:
        return [
            f"No gain can be tested: of {computed} computed, none has two seeds or more in both arms that vary. "
            "The numbers below are single numbers or means, and prove nothing."
        ]
    significant = gains[gains.significant.fillna(False).astype(bool)]
    lines = [
        f"{len(significant)} of {tested} gains {be(len(significant))} significant after Holm{list_gains(significant)}."
    ]
    if computed > tested:
        lines.append(
            f"{computed - tested} more {'have' if computed - tested > 1 else 'has'} no test: "
            "too few seeds, or no variation."
        )
    if std > 0:
        seeds = {0.1: gains.seeds_for_0p1.dropna().min(), 0.2: gains.seeds_for_0p2.dropna().min()}
        needed = " and ".join(f"{size} points would need {seed_count(n)}" for size, n in seeds.items())
        lines.append(
            f"At the seeds' standard deviation here, {std:.2f} points, {needed} seeds per arm "
            "(80 % power in one test at 0.05, before any correction)."
        )
    equivalent = int(gains.equivalent.fillna(False).astype(bool).sum())
    lines.append(f"{equivalent} of {tested} gains {be(equivalent)} shown to be within ±{margin:g} points of zero.")
    return lines


def judge_interactions(interactions: pd.DataFrame) -> list[str]:
    tested = interactions[interactions.p_holm.notna()]
    if not len(tested):
        return ["Whether one student gains more than another cannot be tested here."] if len(interactions) else []
    significant = tested[tested.p_holm < ALPHA]
    return [
        f"{len(significant)} of {len(tested)} interactions (one student gains more than the other) "
        f"{be(len(significant))} significant after Holm; the smallest that would be detected is "
        f"{tested.mde80.min():.2f} points (80 % power in one test at 0.05, before any correction)."
    ]


def be(n: int) -> str:
    return "is" if n == 1 else "are"


def seed_count(n: Any) -> str:
    return "more than a million" if pd.isna(n) else str(n)


def list_gains(significant: pd.DataFrame) -> str:
    """Return the significant gains as text, by name and size."""
    found = [
        f"{gain.student} from {gain.teacher} by {gain.method}{f' ({gain.setting})' if gain.setting else ''} "
        f"{gain.delta:+.2f}"
        for gain in rows_of(significant)
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
    compared = [w for w in selection.winners if w.margin is not None and w.noise is not None]
    close = [w for w in compared if (w.margin or 0) < 2 * (w.noise or 0)]
    if compared:
        lines.append(
            f"{len(close)} of {len(compared)} choices were closer than twice their noise: chance could have made them."
        )
    return lines


def join(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
