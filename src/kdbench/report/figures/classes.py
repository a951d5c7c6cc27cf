"""Figure of the gain of each class."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdbench.report.anchors import row_anchor
from kdbench.report.columns import is_missing
from kdbench.report.drawing import INK, fit_ends, name_panel, panel_inches, panels
from kdbench.report.figures.sheet import Sheet, arm, first_of, interval_text, points
from kdbench.report.gains import group_by
from kdbench.report.runs import rows_of

MOST_CLASSES, MOST_PANELS = 20, 9
GROUP = ["student", "teacher", "method", "role", "setting"]
LEAST = 0.1
"""Points that the scale reaches to either side at least: smaller differences are rounding."""


def draw_classes(sheet: Sheet) -> tuple[Figure, str] | str:
    table = sheet.report.class_gains
    if not len(table) or not table.gain.notna().any():
        return "no gain of a class can be computed"
    largest = table.assign(size=table.gain.abs()).groupby("class_index")["size"].max()
    classes = sorted(largest.sort_values(ascending=False, kind="stable").index[:MOST_CLASSES])
    few = "" if len(largest) <= MOST_CLASSES else (
        f" The {MOST_CLASSES} of {len(largest)} classes with the largest difference in any panel are shown."
    )  # fmt: skip
    groups = group_by(rows_of(table), lambda row: tuple(plain_text(getattr(row, key)) for key in GROUP))
    looks = sheet.looks
    groups.sort(key=lambda item: looks.is_grey(item[1][0]))  # stable: else in the order of the table
    shown, cut = first_of(groups, MOST_PANELS, "groups")
    figure, all_axes = panels(len(shown), sheet.width, 1.3 + 0.22 * max(len(classes), 6))
    anchors = gain_anchors(sheet)
    for axes, (group, rows) in zip(all_axes, shown, strict=True):
        by_class = {row.class_index: row for row in rows}
        draw_group(sheet, axes, [by_class[index] for index in classes if index in by_class], anchors.get(group))
    limits = [axes.get_xlim() for axes in all_axes]
    for axes in all_axes:  # one scale, so that panels can be compared
        low, high = min(low for low, _ in limits), max(high for _, high in limits)
        axes.set_xlim(min(low, -LEAST), max(high, LEAST))
    intervals = ", without an interval, since there are too few runs or they are no independent samples."
    if table.class_low.notna().any():
        intervals = (
            ", with its 95 % interval, not corrected for the number of classes: of twenty such intervals, one leaves "
            "out zero by chance."
        )
    return figure, f"Gain of each class in points of its own test images{intervals}{few}{cut}"


def plain_text(value: Any) -> str:
    """Return a cell as text; a missing one is empty."""
    return "" if is_missing(value) else str(value)


def gain_anchors(sheet: Sheet) -> dict[tuple[str, ...], str]:
    """Return the anchor of each gain, by what identifies its group."""
    rows = rows_of(sheet.report.gains_table)
    return {
        tuple(plain_text(getattr(row, key)) for key in GROUP): row_anchor("gains", number)
        for number, row in enumerate(rows, 1)
    }


def draw_group(sheet: Sheet, axes: Axes, rows: list[Any], anchor: str | None) -> None:
    """Draw a row for each class of a group, the first on top."""
    axes.axvline(0, color=INK, lw=1)
    first, inches = rows[0], panel_inches(axes)
    colour = sheet.looks.colour(first)
    for place, row in enumerate(rows):
        if is_missing(row.gain):
            continue
        parts = []
        if not is_missing(row.class_low):
            parts += axes.plot([row.class_low, row.class_high], [place, place], "|-", color=colour, lw=2, ms=11, mew=2)
        parts += axes.plot([row.gain], [place], marker=sheet.looks.marker(first), color=colour, ms=6)
        name = f"{first.student} {arm(first)} {plain_text(first.setting)}".strip()
        low_high = interval_text(row.class_low, row.class_high)
        text = f"{name}, class {row.class_name}: gain {points(row.gain)} points {low_high}".strip()
        sheet.mark(anchor or "gains", text, parts)
    name_panel(
        axes,
        f"{first.student} {arm(first)} {plain_text(first.setting)}".strip(),
        "gain, points of the class's images",
        "",
    )
    axes.set_yticks(range(len(rows)), [fit_ends(str(row.class_name), min(1.3, inches / 3)) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
