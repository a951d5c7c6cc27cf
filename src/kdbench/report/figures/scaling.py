"""Figure of transfer against the student's size, the temperature and the weight of the distillation term."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FixedFormatter, FixedLocator, NullLocator

from kdbench.report.anchors import row_anchor
from kdbench.report.columns import is_missing
from kdbench.report.drawing import (
    COLOURS,
    INK,
    MARKERS,
    name_panel,
    panel_inches,
    panel_legends_below,
    panels,
    width_of,
)
from kdbench.report.figures.sheet import Sheet, first_of
from kdbench.report.figures.transfer import NumberedRow, numbered_rows
from kdbench.report.functional.conditions import ALPHA_KEY, TEMPERATURE_KEY
from kdbench.report.functional.transfer import name_of_control
from kdbench.report.gains import group_by
from kdbench.report.groups import METHOD, STUDENT, TEACHER, columns_of, key_text
from kdbench.rundir.summary import KEY

METRIC = "prediction_disagreement"
QUANTITIES = {"params": "parameters of the student", "temperature": "temperature", "alpha": "alpha"}
MOST_LINES = len(COLOURS)


def draw_scaling(sheet: Sheet) -> tuple[Figure, str] | str:
    rows = [
        found
        for found in numbered_rows(sheet.report.functional)
        if found.row.metric == METRIC and not found.own.is_pooled
    ]
    found = {quantity: lines_along(quantity, rows) for quantity in QUANTITIES}
    shown = {quantity: lines for quantity, lines in found.items() if lines}
    if not shown:
        return "no two conditions differ in the student's size, the temperature or alpha alone"
    figure, all_axes = panels(len(shown), sheet.width)
    legends, more = [], ""
    for axes, (quantity, lines) in zip(all_axes, shown.items(), strict=True):
        drawn, cut = first_of(lines, MOST_LINES, "lines of a panel")
        more = more or cut
        legends.append((axes, draw_lines(sheet, axes, quantity, drawn)))
        label_axis(axes, quantity, [getattr(found.row, quantity) for _, line in drawn for found in line])
    limits = [axes.get_ylim() for axes in all_axes]
    for axes in all_axes:  # one scale, so that panels can be compared
        axes.set_ylim(min(low for low, _ in limits), max(high for _, high in limits))
    panel_legends_below(figure, legends)
    return figure, (
        "Agreement with the own teacher that students have more than their control, in points of test images,"
        " against what varies while all else is equal, a line for each teacher; no tests. Bars:"
        f" 95 % interval over seeds, where there are five seeds or more.{more}"
    )


def lines_along(quantity: str, rows: Sequence[NumberedRow]) -> list[tuple[str, list[NumberedRow]]]:
    """Return the rows that differ in one quantity alone, in its order; each line with what its rows have in common.

    Rows of one line have the same control: the first of those that most of them have.
    """
    known = [found for found in rows if not is_missing(getattr(found.row, quantity))]
    lines = []
    for _, of_line in group_by(known, lambda found: in_common(quantity, found)):
        by_control = group_by(of_line, lambda found: found.own.control)  # in the order of the conditions' controls
        _, items = max(by_control, key=lambda of_control: len(of_control[1]))
        values = [getattr(found.row, quantity) for found in items]
        if len(set(values)) == len(values) > 1:
            items.sort(key=lambda found: getattr(found.row, quantity))
            lines.append((name_line(quantity, items[0]), items))
    return lines


def in_common(quantity: str, found: NumberedRow) -> str:
    """Return everything but one quantity in which conditions may differ, as text."""
    group = found.own.group
    columns = columns_of(group.runs.columns, (*STUDENT, *METHOD, *TEACHER))
    varied = {"params": (KEY.student, KEY.num_params), "temperature": (TEMPERATURE_KEY,), "alpha": (ALPHA_KEY,)}[
        quantity
    ]
    return key_text({column: group.shared[column] for column in columns if column not in varied})


def name_line(quantity: str, found: NumberedRow) -> str:
    """Return what the rows of a line have in common as text."""
    own, shared = found.own, found.own.group.shared
    student = "" if quantity == "params" else f"{shared.student} "
    seed = "" if is_missing(own.teacher_seed) else f" seed {own.teacher_seed}"
    words = [w for w in own.setting.split(" ") if w and not w.startswith((f"{quantity}=", "teacher_"))]
    fixed = [f"{name}={getattr(found.row, name):g}" for name in ("temperature", "alpha")
             if name != quantity and not is_missing(getattr(found.row, name))
             and not any(w.startswith(f"{name}=") for w in words)]  # fmt: skip
    rest = " ".join([*words, *fixed])
    return f"{student}{shared.method} from {shared.teacher}{seed}, {rest}, against {name_of_control(own.control)}"


def draw_lines(
    sheet: Sheet, axes: Axes, quantity: str, lines: Sequence[tuple[str, list[NumberedRow]]]
) -> dict[str, Any]:
    """Draw the lines of a panel; return their handles."""
    axes.axhline(0, color=INK, lw=1)
    handles: dict[str, Any] = {}
    for place, (name, items) in enumerate(lines):
        colour, marker = COLOURS[place], MARKERS[place % len(MARKERS)]
        xs = [float(getattr(found.row, quantity)) for found in items]
        axes.plot(xs, [-100 * found.row.transfer for found in items], color=colour, lw=1.3)
        for x, found in zip(xs, items, strict=True):
            row = found.row
            parts = axes.plot([x], [-100 * row.transfer], marker=marker, color=colour, ms=7, ls="")
            if not is_missing(row.transfer_low):
                parts += axes.plot([x, x], [-100 * row.transfer_low, -100 * row.transfer_high], color=colour, lw=1)
            sheet.mark(row_anchor("transfer", found.number), found.text, parts)
        (handles[name],) = axes.plot([], [], color=colour, marker=marker, ms=7, lw=1.3)
    return handles


def label_axis(axes: Axes, quantity: str, values: Sequence[float]) -> None:
    """Name the axes of a panel, logarithmic ones of sizes and temperatures, with ticks at values as there is room."""
    name_panel(axes, "", QUANTITIES[quantity], "agreement gained, points")
    is_log = quantity != "alpha"
    places = sorted({float(value) for value in values})
    form = EngFormatter(places=0) if quantity == "params" else None
    labels = {place: form(place) if form else f"{place:g}" for place in places}
    along = {place: math.log(place) if is_log else place for place in places}
    inch = (along[places[-1]] - along[places[0]]) / (panel_inches(axes) - 1.6) or 1.0
    kept: list[float] = []
    for place in places:
        width = (width_of(labels[place]) + width_of(labels[kept[-1]])) / 2 + 0.1 if kept else 0.0
        if not kept or along[place] - along[kept[-1]] >= width * inch:
            kept.append(place)
    if is_log:
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.xaxis.set_major_formatter(FixedFormatter([labels[place] for place in kept]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.margins(x=0.12)
