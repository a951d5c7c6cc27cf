"""Figure of transfer: how much closer to their teacher students are than their control, by distance and condition."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdbench.metrics import DISTANCES
from kdbench.report.anchors import row_anchor
from kdbench.report.columns import P, format_value, is_missing
from kdbench.report.drawing import GREY, INK, LINE, PAPER, fit, hide_vertical_axis, legend_below, round_ticks
from kdbench.report.figures.sheet import Sheet, first_of, is_true, mark_of_run
from kdbench.report.functional.transfer import ONE_TEACHER, PRIMARY, Comparison
from kdbench.report.runs import rows_of

MOST_ROWS = 30
ROOM = 0.34
"""Height of an interval with its seeds below the label, inches."""


def condition_name(row: Any) -> str:
    """Return the name of a condition by its row in a table."""
    return f"{row.student} {row.method} from {row.teacher} {row.setting or ''}".strip()


def draw_transfer(sheet: Sheet) -> tuple[Figure, str] | str:
    functional = sheet.report.functional
    numbered = list(enumerate(rows_of(functional.transfer), 1))
    shown = [own for own in functional.transfers if own.family == PRIMARY and own.seeds and len(own.control_values)]
    if not shown:
        return "no run with logits has a teacher with logits and a control"
    drawn, cut = first_of(shown, MOST_ROWS, "conditions")
    is_wide = sheet.width.columns > 1
    size = (1, len(DISTANCES)) if is_wide else (len(DISTANCES), 1)
    figure = Figure(figsize=(sheet.width.inches, 1), layout="constrained")
    all_axes = list(figure.subplots(*size, squeeze=False, sharey=is_wide).flat)
    height = 0.0
    for place, (metric, axes) in enumerate(zip(DISTANCES, all_axes, strict=True)):
        rows = {(condition_name(row), row.control): (number, row) for number, row in numbered if row.metric == metric}
        height = draw_panel(sheet, axes, place, drawn, rows, with_names=place == 0 or not is_wide)
        axes.set_title(name_of(metric))
    figure.set_figheight((height + 0.9) * size[0])
    legend_below(figure, legend_of(rows_of(functional.transfer)))
    return figure, f"{describe(drawn)}{cut}"


def name_of(metric: str) -> str:
    """Return the name of a distance as text."""
    return metric.replace("_", " ").replace("js ", "JS ")


def draw_panel(sheet: Sheet, axes: Axes, place: int, shown: Sequence[Comparison], rows: Any, with_names: bool) -> float:
    """Draw the conditions of one distance below each other, and return their height in inches.

    Args:
        sheet: looks of the methods.
        axes: panel whose vertical axis counts inches downwards.
        place: place of the distance in the vectors.
        shown: comparisons with the primary control.
        rows: number and row of transfer.csv by name of condition and control.
        with_names: whether the names of the conditions stand in this panel.
    """
    axes.axvline(0, color=INK, lw=1)
    low, high = limits_of(place, shown)
    top = 0.05
    for own in shown:
        shared = own.group.shared
        name = f"{shared.student} {shared.method} from {shared.teacher} {own.setting}".strip()
        label = fit(name, sheet.width.inches / 1.15 - 0.4, lines=2)
        if with_names:
            axes.text(0, top, label, transform=axes.get_yaxis_transform(), va="top", ha="left", in_layout=False,
                      zorder=5, bbox={"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.5})  # fmt: skip
        at = top + LINE * (label.count("\n") + 1) + 0.1
        colour = sheet.looks.colour(shared)
        for (condition, control), (number, row) in rows.items():
            if condition == name and control != own.control:
                inside = min(max(row.transfer, low), high)
                marker = "|" if inside == row.transfer else "<" if inside == low else ">"
                parts = axes.plot([inside], [at], marker, color=GREY, ms=9 if marker == "|" else 5, mew=1.6)
                sheet.mark(row_anchor("transfer", number), text_of(row), parts)
        number, row = rows[name, own.control]
        parts = []
        if not is_missing(row.transfer_low):
            ends = [row.transfer_low, row.transfer_high]
            parts += axes.plot(ends, [at, at], color=colour, lw=3, solid_capstyle="butt")
        face = colour if is_true(row.significant) else PAPER
        parts += axes.plot([row.transfer], [at], "D", ms=6.5, mfc=face, mec=colour, mew=1.5)
        sheet.mark(row_anchor("transfer", number), text_of(row), parts)
        values = own.differences[:, place].tolist()
        (dots,) = axes.plot(values, [at + 0.13] * len(values), "o", ms=4, mfc="none", mec=colour, mew=1)
        texts = [f"{name_of(row.metric)} {value:+.4f} against {own.control}" for value in values]
        runs = [own.students.runs[pair] for pair in own.seeds]
        sheet.mark_points(dots, [mark_of_run(run, text) for run, text in zip(runs, texts, strict=True)])
        top = at + ROOM - 0.09
        axes.axhline(top - 0.03, color=GREY, lw=0.4, alpha=0.6)
    axes.set_ylim(top, 0)
    hide_vertical_axis(axes)
    axes.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))
    axes.xaxis.set_major_locator(round_ticks(most=4))
    axes.set_xlabel("student minus control")
    axes.grid(axis="y", visible=False)
    return top


def limits_of(place: int, shown: Sequence[Comparison]) -> tuple[float, float]:
    """Return the ends of a distance's scale: all seeds and zero, with room at either side.

    Other controls may lie far away, such as networks that random targets kept from learning; they stand at the end.
    """
    values = np.concatenate([[0.0], *(own.differences[:, place] for own in shown)])
    room = 0.35 * (float(np.ptp(values)) or 1e-3)
    return float(values.min()) - room, float(values.max()) + room


def text_of(row: Any) -> str:
    """Return a row of transfer.csv as text."""
    p = f", p {format_value(row.p_adjusted, P)} after correction" if not is_missing(row.p_adjusted) else ""
    interval = "" if is_missing(row.transfer_low) else f" [{row.transfer_low:+.4f}, {row.transfer_high:+.4f}]"
    return (
        f"{condition_name(row)}, {name_of(row.metric)} against {row.control}: {row.transfer:+.4f}{interval} "
        f"({row.value:.4f} against {row.control_value:.4f}){p}"
    )


def legend_of(rows: Sequence[Any]) -> dict[str, Any]:
    """Return a handle for each kind of mark that the figure has."""
    primary = [row for row in rows if row.family == PRIMARY]
    controls = " or ".join(dict.fromkeys(row.control for row in primary))
    handles: dict[str, Any] = {}
    if any(is_true(row.significant) for row in primary):
        handles["significant after correction"] = Line2D([], [], marker="D", ls="", ms=6.5, mfc=INK, mec=INK)
    handles[f"against {controls}"] = Line2D([], [], marker="D", ls="", ms=6.5, mfc=PAPER, mec=INK, mew=1.5)
    if any(not is_missing(row.transfer_low) for row in primary):
        handles["95 % interval over seeds"] = Line2D([], [], color=INK, lw=3, solid_capstyle="butt")
    handles["one seed"] = Line2D([], [], marker="o", ls="", ms=4, mfc="none", mec=INK)
    if any(row.family not in (PRIMARY, ONE_TEACHER) for row in rows):
        handles["mean against each other control"] = Line2D([], [], marker="|", ls="", ms=9, mew=1.6, color=GREY)
        handles["the same, beyond the scale"] = Line2D([], [], marker="<", ls="", ms=5, mew=1.6, color=GREY)
    return handles


def describe(shown: Sequence[Comparison]) -> str:
    """Return the caption."""
    pooled = " Over several teachers, a circle is the mean over them." if any(own.is_pooled for own in shown) else ""
    return (
        "Distance of students to their own teacher minus that of the control to this very teacher: left of "
        f"zero, students are closer.{pooled} More accurate networks are closer to any good teacher; agreement "
        "at equal accuracy is in the table Fidelity."
    )
