"""Figure of the expected best of k trials of a search."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdbench.report.anchors import row_anchor
from kdbench.report.drawing import COLOURS, DASHES, GREY, INK, MARKERS, name_panel, panel_legends_below, panels
from kdbench.report.figures.sheet import Sheet, first_of
from kdbench.report.groups import BASELINE
from kdbench.report.search.build import SearchedArm, counted
from kdbench.report.search.expected import expected_best, quantiles_of_best

DOTTED: dict[str, Any] = {"lw": 1.1, "ls": (0, (1, 2))}
MOST_PANELS = 12
BAND = (0.1, 0.9)
"""Quantiles that bound a band."""
MOST_BANDS = 4
"""Largest number of lines in a panel that have bands."""
MOST_POINTS = 200
"""Largest number of points of a line; longer ones are thinned out."""


def draw_search(sheet: Sheet) -> tuple[Figure, str] | str:
    by_student: dict[str, list[SearchedArm]] = {}
    for searched in sheet.report.search.arms:
        by_student.setdefault(searched.arm[0], []).append(searched)
    if not by_student:
        return "no search was given"
    shown, cut = first_of(list(by_student.items()), MOST_PANELS, "students")
    figure, all_axes = panels(len(shown), sheet.width)
    legends = []
    for axes, (student, arms) in zip(all_axes, shown, strict=True):
        legends.append((axes, draw_student(sheet, axes, arms)))
        name_panel(axes, student, "trials", "expected best validation accuracy, %", integer=True)
    panel_legends_below(figure, legends)
    return figure, (
        "The best validation accuracy that so many trials of the search would have found on average, over all choices "
        "of them. The band is from the 10th to the 90th percentile of the best; panels of more than "
        f"{MOST_BANDS} lines have none. Dotted, in the colour of the curve: the default setting. Compare lines at the "
        f"same number of trials.{cut}"
    )


def draw_student(sheet: Sheet, axes: Axes, arms: Sequence[SearchedArm]) -> dict[str, Any]:
    """Draw the curves of a student's arms; return a handle for each, and for their default settings."""
    handles: dict[str, Any] = {}
    others = 0
    for searched in sorted(arms, key=lambda own: own.role != BASELINE):
        if searched.role == BASELINE:
            colour, marker, dashes = INK, "o", "-"
        else:
            place, others = others, others + 1
            colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
            dashes = DASHES[place // len(COLOURS) % len(DASHES)]
        count = len(searched.trials)
        trials = np.unique(np.linspace(1, count, min(count, MOST_POINTS)).round().astype(int))
        expected = np.array([expected_best(searched.scores, int(k)) for k in trials])
        (line,) = axes.plot(
            trials, expected, color=colour, marker=marker, markevery=max(1, len(trials) // 6), ms=4.5, lw=1.6,
            linestyle=dashes, zorder=3,
        )  # fmt: skip
        if len(arms) <= MOST_BANDS:
            ends = np.array([quantiles_of_best(searched.scores, int(k), BAND) for k in trials])
            axes.fill_between(trials, ends[:, 0], ends[:, 1], color=colour, alpha=0.12, lw=0)
        parts = [line]
        if searched.default is not None:
            parts.append(axes.axhline(searched.default, color=colour, zorder=1.5, **DOTTED))
        best = "no complete one" if searched.best is None else f"best {searched.best:.2f} %"
        text = f"{searched.name}: {counted(count)}, {best}, of one {expected[0]:.2f} % on average"
        number = list(sheet.report.search.arms).index(searched) + 1
        sheet.mark(row_anchor("search", number), text, parts)
        handles[f"{searched.name.partition(' ')[2]} (n={count})"] = line
    if any(searched.default is not None for searched in arms):
        handles["default setting"] = Line2D([], [], color=GREY, **DOTTED)
    return handles
