"""Figure of validation accuracy by epoch."""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdbench.report.drawing import name_panel, panel_legends_below, panels
from kdbench.report.figures.sheet import Sheet, arm, first_of
from kdbench.report.groups import BASELINE, RunGroup
from kdbench.report.runs import read_history

MOST_PANELS = 12
MOST_BANDS = 8
"""Largest number of lines in a panel that have bands."""
MOST_EPOCHS = 400
"""Largest number of points of a line; longer histories are thinned out."""


def draw_curves(sheet: Sheet) -> tuple[Figure, str] | str:
    curves: dict[str, list[tuple[RunGroup, pd.DataFrame]]] = {}
    for group in sheet.report.groups:
        if not group.shared.validation:  # its validation images are trained on
            continue
        histories = [history for folder in group.runs.path if (history := read_history(folder)) is not None]
        if histories:
            table = pd.concat([100 * history for history in histories], axis=1)
            curves.setdefault(group.shared.student, []).append((group, table.iloc[:: -(-len(table) // MOST_EPOCHS)]))
    if not curves:
        held_out = any(group.shared.validation for group in sheet.report.groups)
        return "no run has a metrics.csv" if held_out else "no run has validation images that were held out"
    shown, cut = first_of(list(curves.items()), MOST_PANELS, "students")
    figure, all_axes = panels(len(shown), sheet.width)
    legends = []
    for axes, (student, groups) in zip(all_axes, shown, strict=True):
        legends.append((axes, draw_student(sheet, axes, groups)))
        name_panel(axes, student, "epoch", "validation accuracy, %", integer=True)
    panel_legends_below(figure, legends)
    return figure, (
        "Mean over seeds; the band is one standard deviation to each side, absent with one seed and in panels of more "
        f"than {MOST_BANDS} lines."
        f"{sheet.looks.caption()}{cut}"
    )


def draw_student(sheet: Sheet, axes: Axes, groups: list[tuple[RunGroup, pd.DataFrame]]) -> dict[str, Any]:
    """Draw the curves of a student, grey ones behind; return a handle for each in colour, and one for all grey."""
    looks, handles = sheet.looks, dict[str, Any]()
    drawn: dict[str, int] = {}
    for group, table in sorted(groups, key=lambda item: not looks.is_grey(item[0].shared)):
        shared, mean, spread = group.shared, table.mean(axis=1), table.std(axis=1)
        colour, grey = looks.colour(shared), looks.is_grey(shared)
        number = drawn[shared.method] = drawn.get(shared.method, -1) + 1
        (line,) = axes.plot(
            mean.index, mean, color=colour, lw=0.8 if grey else 1.6, alpha=0.7 if grey else 1.0,
            marker=None if grey else looks.marker(shared), markevery=max(1, len(mean) // 6), ms=4.5,
            linestyle=looks.dashes(shared, 0 if grey else number), zorder=1.5 if grey else 3.0,
        )  # fmt: skip
        best = f"highest mean {mean.max():.2f} % at epoch {mean.idxmax()}" if mean.notna().any() else "no values"
        sheet.mark_group(group, best, [line])
        if not grey:
            if len(groups) <= MOST_BANDS:
                axes.fill_between(mean.index, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)
            source = BASELINE if shared.role == BASELINE else arm(shared)
            handles[f"{source} {group.setting}".strip() + f" (n={len(group.runs)})"] = line
        else:
            handles.setdefault("other methods", line)
    if "other methods" in handles:
        handles["other methods"] = handles.pop("other methods")  # the last entry
    return handles
