"""Slope chart of interactions: the gain of the smaller student beside that of the larger one."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdbench.report.anchors import row_anchor
from kdbench.report.column import P
from kdbench.report.columns import format_value, is_missing
from kdbench.report.drawing import INK, fit, name_panel, panel_inches, panel_legends_below, panels
from kdbench.report.figures.sheet import Sheet, arm, first_of, interval_text, is_true, points
from kdbench.report.gains import group_by
from kdbench.report.runs import rows_of

MOST_PANELS, MOST_LINES = 6, 6


def draw_interactions(sheet: Sheet) -> tuple[Figure, str] | str:
    numbered = list(enumerate(rows_of(sheet.report.interactions_table), 1))
    if not numbered:
        return "no two students have gains that can be compared"
    pairs = group_by(numbered, lambda item: (item[1].student_b, item[1].student_a))
    shown, cut = first_of(pairs, MOST_PANELS, "pairs of students")
    figure, all_axes = panels(len(shown), sheet.width, 3.8)
    gains = {place_of(row, row.student, row.setting): row for row in rows_of(sheet.report.gains_table)}
    legends, most = [], 0
    for axes, ((smaller, larger), rows) in zip(all_axes, shown, strict=True):
        most = max(most, len(rows))
        rows.sort(key=lambda item: sheet.looks.is_grey(item[1]))  # stable: else in the order of the table
        legends.append((axes, draw_pair(sheet, axes, rows[:MOST_LINES], gains)))
        name_panel(axes, "", "", "gain, points")
        inches = panel_inches(axes) / 2 - 0.6
        axes.set_xticks([0, 1], [f"{fit(name, inches)}\n({size})" for name, size in named(smaller, larger)])
        axes.set_xlim(-0.35, 1.35)
        axes.grid(axis="x", visible=False)
    panel_legends_below(figure, legends, below=0.75)
    few = f" Of each pair, {MOST_LINES} lines are shown, methods in colour first." if most > MOST_LINES else ""
    return figure, (
        "Each line is a method and a teacher: the gain of the smaller student on the left, of the larger on the right, "
        "with their 95 % intervals, each for itself. A line that rises: the larger student gains more. Whether the two "
        f"gains differ is the test of the line, whose numbers stand in the legend (★: significant).{cut}{few}"
    )


def named(smaller: str, larger: str) -> list[tuple[str, str]]:
    return [(smaller, "smaller"), (larger, "larger")]


def place_of(row: Any, student: str, setting: str) -> tuple[Any, ...]:
    """Return what identifies a gain in both tables."""
    return student, row.teacher, row.method, row.role, setting, row.teacher_seed


def draw_pair(sheet: Sheet, axes: Axes, rows: list[tuple[int, Any]], gains: dict[Any, Any]) -> dict[str, Any]:
    """Draw the lines of two students side by side; return a handle for each."""
    axes.axhline(0, color=INK, lw=1)
    handles: dict[str, Any] = {}
    of_method: dict[str, int] = {}
    for place, (number, row) in enumerate(rows):
        colour, marker = sheet.looks.colour(row), sheet.looks.marker(row)
        nth = of_method[row.method] = of_method.get(row.method, -1) + 1
        shift = min(0.05, 0.36 / len(rows)) * (place - (len(rows) - 1) / 2)
        (line,) = axes.plot(
            [shift, 1 + shift], [row.gain_b, row.gain_a], color=colour, marker=marker, ms=6, mfc=colour,
            lw=1.8, linestyle=sheet.looks.dashes(row, nth),
        )  # fmt: skip
        parts = [line]
        for at, student, setting in ((shift, row.student_b, row.setting_b), (1 + shift, row.student_a, row.setting_a)):
            gain = gains.get(place_of(row, student, setting))
            ends = [float(end) for end in (gain.primary_low, gain.primary_high) if not is_missing(end)] if gain else []
            parts += axes.plot([at] * len(ends), ends, color=colour, lw=1.2)
        text = interaction_text(row)
        name = f"{arm(row)}{f' {row.setting_a}' if row.setting_a == row.setting_b and row.setting_a else ''}"
        sheet.mark(
            row_anchor("interactions", number), f"{row.student_a} against {row.student_b}, {name}: {text}", parts
        )
        label = f"{'★ ' if is_significant(row) else ''}{name}: {points(row.difference)} {difference_interval(row)}"
        handles[label.strip()] = line
    return handles


def difference_interval(row: Any) -> str:
    return interval_text(row.primary_low, row.primary_high)


def is_significant(row: Any) -> bool:
    """Return whether the two gains differ after correction."""
    return is_true(row.significant)


def interaction_text(row: Any) -> str:
    """Return both gains and their difference as text."""
    p = row.p_adjusted
    tested = f", p {format_value(p, P)} after correction" if not is_missing(p) else ", not tested"
    return (
        f"gains {points(row.gain_a)} and {points(row.gain_b)}, difference {points(row.difference)} points "
        f"{difference_interval(row)}".strip()
        + tested
    )
