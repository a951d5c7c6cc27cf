"""What the numbers support, in words, and no more."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from kdbench.report.groups import Group
from kdbench.report.select import Selection


def verdict(gains: pd.DataFrame, interactions: pd.DataFrame, std: float, margin: float) -> list[str]:
    """The report's first lines: one sentence each on gains, seeds, equivalence and interactions."""
    return [*on_gains(gains, std, margin), *on_interactions(interactions)]


def on_gains(gains: pd.DataFrame, std: float, margin: float) -> list[str]:
    computed, tested = int(gains["delta"].notna().sum()), int(gains["p_holm"].notna().sum())
    if not len(gains):
        return ["There is no distilled student here, so there is no gain to speak of."]
    if not computed:
        return ["No gain can be computed: no distilled student has its undistilled one beside it."]
    if not tested:
        return [
            f"No gain can be tested: of {computed} computed, none has two seeds or more in both arms that vary. "
            "What stands below are single numbers or means, and prove nothing."
        ]
    significant = gains[gains["significant"].fillna(False).astype(bool)]
    lines = [
        f"{len(significant)} of {tested} gains {are(len(significant))} significant after Holm{named(significant)}."
    ]
    if computed > tested:
        lines.append(
            f"{computed - tested} more {'have' if computed - tested > 1 else 'has'} no test: "
            "too few seeds, or no variation."
        )
    if std > 0:
        seeds = {size: gains[f"seeds_for_{column}"].dropna().min() for size, column in ((0.1, "0p1"), (0.2, "0p2"))}
        said = " and ".join(f"{size} points would need {count(n)}" for size, n in seeds.items())
        lines.append(
            f"At the seeds' standard deviation here, {std:.2f} points, {said} seeds per arm "
            "(80 % power in one test at 0.05, before any correction)."
        )
    equivalent = int(gains["equivalent"].fillna(False).astype(bool).sum())
    lines.append(f"{equivalent} of {tested} gains {are(equivalent)} shown to be within ±{margin:g} points of zero.")
    return lines


def on_interactions(interactions: pd.DataFrame) -> list[str]:
    tested = interactions[interactions["p_holm"].notna()]
    if not len(tested):
        return ["Whether one student gains more than another cannot be tested here."] if len(interactions) else []
    significant = tested[tested["p_holm"] < 0.05]
    return [
        f"{len(significant)} of {len(tested)} interactions (one student gains more than the other) "
        f"{are(len(significant))} significant after Holm; the smallest that would be noticed is "
        f"{tested['mde80'].min():.2f} points (80 % power in one test at 0.05, before any correction)."
    ]


def are(n: int) -> str:
    return "is" if n == 1 else "are"


def count(n: Any) -> str:
    return "more than a million" if pd.isna(n) else str(n)


def named(significant: pd.DataFrame) -> str:
    """The significant gains by name and size."""
    rows = []
    for row in significant.to_dict("records"):
        setting = f" ({row['setting']})" if row["setting"] else ""
        rows.append(f"{row['student']} from {row['teacher']} by {row['method']}{setting} {row['delta']:+.2f}")
    return f": {', '.join(rows)}" if rows else ""


def on_selection(selection: Selection | None, groups: Sequence[Group]) -> list[str]:
    """What a reader must know of how settings were chosen."""
    if selection is None:
        return []
    lines = [
        f"Settings were chosen by {selection.chosen_by} on seeds {joined(selection.selection_seeds)} in the study "
        f"{selection.study}, and are reported with seeds "
        f"{joined(selection.reporting_seeds(groups)) or 'of none'}."
    ]
    overlap = selection.overlap(groups)
    if overlap:
        lines.append(
            f"MARKED: seeds {joined(overlap)} both chose the settings and report them, so gains over "
            "undistilled students are biased upwards."
        )
    close = [w for w in selection.winners if w["margin"] is not None and w["margin"] < 2 * w["noise"]]
    compared = [w for w in selection.winners if w["margin"] is not None]
    if compared:
        lines.append(
            f"{len(close)} of {len(compared)} choices were closer than twice their noise: chance could have made them."
        )
    return lines


def joined(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))
