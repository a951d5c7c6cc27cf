"""Figure of the number of seeds that a gain needs."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdbench.report import statistics as st
from kdbench.report.columns import is_missing
from kdbench.report.drawing import COLOURS, INK, label_log_axis, legend_below, name_panel, panels
from kdbench.report.figures.sheet import Sheet, count
from kdbench.report.groups import DISTILLED
from kdbench.report.runs import rows_of

MARKED = {0.1: ("s", "needed_0p1"), 0.2: ("D", "needed_0p2")}
"""Marker and column for each gain that has a mark, points."""


def draw_power(sheet: Sheet) -> tuple[Figure, str] | str:
    std = sheet.report.std
    if not std > 0:
        return "no group has two seeds that vary, so there is no standard deviation to compute with"
    figure, (axes,) = panels(1, sheet.width)
    smallest, largest = min(0.25 * std, 0.07), max(8 * std, 0.4)
    sizes, handles = np.geomspace(smallest, largest, 50), dict[str, Any]()
    for needed, dashes, colour, label in (
        (st.seeds_for, "-", INK, "to detect a gain, one uncorrected test"),
        (st.seeds_for_equivalence, "--", COLOURS[1], "to show equivalence within this margin"),
    ):
        values = [needed(float(size), std) or np.nan for size in sizes]
        (handles[label],) = axes.plot(sizes, values, linestyle=dashes, color=colour)
    for size, (marker, column) in MARKED.items():
        n = st.seeds_for(size, std)
        if n:
            text = f"{size} points: {count(n)}, one uncorrected test"
            (handles[text],) = axes.plot([size], [n], linestyle="", marker=marker, color=INK, ms=7)
            sheet.mark("gains", text, [handles[text]])
        if rule := seeds_by_rule(sheet.report.gains_table, column):
            text, handle = draw_rule(sheet, axes, size, marker, rule)
            handles[text] = handle
    axes.set_xscale("log")
    axes.set_yscale("log")
    name_panel(axes, "", "true gain, or margin, in points", "seeds per arm")
    label_log_axis(axes.xaxis, 7 if sheet.width.inches > 6 else 5)
    label_log_axis(axes.yaxis)
    legend_below(figure, handles)
    return figure, (
        "Lines: a two-sided test at 0.05 with 80 % power, and two one-sided tests where there is no gain at all, for "
        f"the standard deviation {std:.3f} points, pooled over all groups here."
        + (
            " Hollow marks: the seeds that the rule of this report, correction included, needs, with what the "
            "uncertainty of the spread makes of them."
            if any("by this report" in text for text in handles)
            else ""
        )
    )


def seeds_by_rule(gains: pd.DataFrame, column: str) -> tuple[int, Any, Any] | None:
    """Return the fewest seeds that any distilled gain needs by the report's own rule, with the ends of their range."""
    names = (column, f"{column}_low", f"{column}_high")
    rows = [tuple(getattr(row, name) for name in names) for row in rows_of(gains[gains.role == DISTILLED])]
    known = [row for row in rows if not is_missing(row[0])]
    if not known:
        return None
    n, low, high = min(known, key=lambda row: row[0])
    return int(n), low, high


def draw_rule(sheet: Sheet, axes: Axes, size: float, marker: str, rule: tuple[int, Any, Any]) -> tuple[str, Any]:
    """Draw the seeds that the rule needs for a gain, with their range; return their description and handle."""
    n, low, high = rule
    parts = axes.plot([size], [n], linestyle="", marker=marker, mfc="none", mec=COLOURS[0], mew=1.6, ms=11)
    handle = parts[0]
    extent = ""
    if not is_missing(low) and not is_missing(high):
        parts += axes.plot([size, size], [low, high], color=COLOURS[0], lw=1.5)
        extent = f" ({int(low):,} to {int(high):,})"
    text = f"{size} points: {count(n)}{extent}, by this report's rule"
    sheet.mark("gains", text, parts)
    return text, handle
