"""Figure of transfer: how much closer to their teacher students are than their control, by distance and condition."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdbench.metrics import DISTANCES
from kdbench.report.anchors import row_anchor
from kdbench.report.column import P
from kdbench.report.columns import format_value, is_missing
from kdbench.report.drawing import GREY, INK, LINE, PAPER, fit, hide_vertical_axis, legend_below, round_ticks
from kdbench.report.figures.sheet import Sheet, first_of, is_true, mark_of_run
from kdbench.report.functional.build import Functional
from kdbench.report.functional.conditions import OTHER_TEACHER
from kdbench.report.functional.transfer import PRIMARY, ControlComparison, name_of_control
from kdbench.report.gains import group_by
from kdbench.report.groups import BASELINE, DIDDO, SIDDO
from kdbench.report.runs import rows_of

MOST_ROWS = 30
NAMES = 1.15
"""Width of the column of names, in panels."""
OTHER_MARKERS = {SIDDO: "d", BASELINE: "+", DIDDO: "x", OTHER_TEACHER: "^"}
"""Markers of controls that are not the primary one; control methods have a bar."""
LANE = 0.14
"""Height of the marks of other controls above the interval, inches."""
ROOM = 0.34
"""Height of an interval with its seeds below the label, inches."""


@dataclass(frozen=True, eq=False)
class NumberedRow:
    """Row of transfer.csv with its number, from 1, and its comparison."""

    number: int
    own: ControlComparison
    row: Any

    @property
    def condition(self) -> tuple[Any, ...]:
        """Key of the condition: its group, or of pooled rows what they are over."""
        own = self.own
        return (own.arm, own.setting, own.note) if own.is_pooled else (id(own.group),)

    @property
    def text(self) -> str:
        """Comparison with its numbers."""
        row = self.row
        p = f", p {format_value(row.p_adjusted, P)} after correction" if not is_missing(row.p_adjusted) else ""
        interval = "" if is_missing(row.transfer_low) else f" [{row.transfer_low:+.4f}, {row.transfer_high:+.4f}]"
        return (
            f"{self.own.name}, {name_of(row.metric)} against {name_of_control(row.control)}: {row.transfer:+.4f}"
            f"{interval} ({row.value:.4f} against {row.control_value:.4f}){p}"
        )


def numbered_rows(functional: Functional) -> list[NumberedRow]:
    """Return the rows of transfer.csv with their comparisons."""
    comparisons = [own for own in functional.transfers for _ in DISTANCES]
    pairs = zip(comparisons, rows_of(functional.transfer), strict=True)
    return [NumberedRow(number, own, row) for number, (own, row) in enumerate(pairs, 1)]


def draw_transfer(sheet: Sheet) -> tuple[Figure, str] | str:
    rows = numbered_rows(sheet.report.functional)
    conditions = list(dict.fromkeys(found.condition for found in rows if found.own.family == PRIMARY))
    if not conditions:
        return "no run with logits has a teacher with logits and a control"
    shown, cut = first_of(conditions, MOST_ROWS, "conditions")
    drawn = [found for found in rows if found.condition in set(shown)]
    is_wide = sheet.width.columns > 1
    figure = Figure(figsize=(sheet.width.inches, 1), layout="constrained")
    if is_wide:  # a column of names, and a panel for each distance beside it
        ratios = [NAMES, *([1.0] * len(DISTANCES))]
        column, *all_axes = figure.subplots(1, len(ratios), sharey=True, width_ratios=ratios)
        column.set_axis_off()
    else:
        all_axes = list(figure.subplots(len(DISTANCES), 1, squeeze=False).flat)
    height = 0.0
    for place, (metric, axes) in enumerate(zip(DISTANCES, all_axes, strict=True)):
        of_metric = [found for found in drawn if found.row.metric == metric]
        names = Names(column, sheet.width.inches * NAMES / sum(ratios) - 0.2, 0.0) if is_wide else Names(
            axes, sheet.width.inches / 1.15 - 0.4, 1.0
        )  # fmt: skip
        height = draw_panel(sheet, axes, place, of_metric, names, with_names=place == 0 or not is_wide)
        axes.set_title(name_of(metric))
    figure.set_figheight((height + 0.9) * (1 if is_wide else len(DISTANCES)))
    legend_below(figure, legend_of(drawn))
    return figure, f"{describe([found.own for found in drawn])}{cut}"


def name_of(metric: str) -> str:
    """Return the name of a distance as text."""
    return metric.replace("_", " ").replace("js ", "JS ")


@dataclass(frozen=True, eq=False)
class Names:
    """Place of the conditions' names."""

    axes: Axes
    inches: float
    """Width of a line."""
    above: float
    """1 where names stand above the intervals, 0 where they stand beside them."""


def draw_panel(
    sheet: Sheet, axes: Axes, place: int, rows: Sequence[NumberedRow], names: Names, with_names: bool
) -> float:
    """Draw the conditions of one distance below each other, and return their height in inches.

    Args:
        sheet: looks of the methods.
        axes: panel whose vertical axis counts inches downwards.
        place: place of the distance in the vectors.
        rows: rows of this distance, of every condition and control.
        names: place of the conditions' names.
        with_names: whether they are to be written.
    """
    axes.axvline(0, color=INK, lw=1)
    limits = limits_of(place, [found.own for found in rows if found.own.family == PRIMARY])
    top = 0.05
    for _, of_condition in group_by(rows, lambda found: found.condition):
        primary = next(found for found in of_condition if found.own.family == PRIMARY)
        label = fit(primary.own.name, names.inches, lines=3)
        tall = LINE * (label.count("\n") + 1)
        if with_names:
            names.axes.text(0, top, label, transform=names.axes.get_yaxis_transform(), va="top", ha="left",
                            in_layout=False, zorder=5, bbox={"fc": PAPER, "ec": "none", "pad": 0.5})  # fmt: skip
        at = top + names.above * tall + 0.1
        others = [found for found in of_condition if found is not primary]
        for found in others:
            draw_other_control(sheet, axes, at, found, limits)
        at += LANE if others else 0.0
        draw_primary(sheet, axes, at, place, primary)
        top = max(at + ROOM - 0.09, top + tall + 0.06)
        axes.axhline(top - 0.03, color=GREY, lw=0.4, alpha=0.6)
    axes.set_ylim(top, 0)
    hide_vertical_axis(axes)
    room = 0.06 * (limits[1] - limits[0])
    axes.set_xlim(limits[0] - room, limits[1] + room)
    axes.xaxis.set_major_locator(round_ticks(most=4))
    axes.set_xlabel("student minus control")
    axes.grid(axis="y", visible=False)
    return top


def draw_other_control(sheet: Sheet, axes: Axes, at: float, found: NumberedRow, limits: tuple[float, float]) -> None:
    """Draw the mean transfer against another control, at the end of the scale where it lies beyond."""
    inside = min(max(found.row.transfer, limits[0]), limits[1])
    beyond = "<" if inside > found.row.transfer else ">"
    marker = marker_of(found.own.control) if inside == found.row.transfer else beyond
    parts = axes.plot([inside], [at], marker, color=GREY, ms=7, mew=1.4, mfc="none")
    sheet.mark(row_anchor("transfer", found.number), found.text, parts)


def marker_of(control: str) -> str:
    """Return the marker of a control that is not the primary one."""
    return OTHER_MARKERS.get(control, "|")


def draw_primary(sheet: Sheet, axes: Axes, at: float, place: int, found: NumberedRow) -> None:
    """Draw interval, mean and every seed of the transfer against the primary control."""
    own, row, colour = found.own, found.row, sheet.looks.colour(found.own.group.shared)
    parts = []
    if not is_missing(row.transfer_low):
        ends = [row.transfer_low, row.transfer_high]
        parts += axes.plot(ends, [at, at], color=colour, lw=3, solid_capstyle="butt")
    face = colour if is_true(row.significant) else PAPER
    parts += axes.plot([row.transfer], [at], "D", ms=6.5, mfc=face, mec=colour, mew=1.5)
    sheet.mark(row_anchor("transfer", found.number), found.text, parts)
    values = own.differences[:, place].tolist()
    (dots,) = axes.plot(values, [at + 0.13] * len(values), "o", ms=4, mfc="none", mec=colour, mew=1)
    texts = [f"{name_of(row.metric)} {value:+.4f} against {name_of_control(own.control)}" for value in values]
    runs = [own.students.runs[pair] for pair in own.seeds]
    sheet.mark_points(dots, [mark_of_run(run, text) for run, text in zip(runs, texts, strict=True)])


def limits_of(place: int, shown: Sequence[ControlComparison]) -> tuple[float, float]:
    """Return the ends of a distance's scale: all seeds and zero, with room at either side.

    Other controls may lie far away, such as networks that random targets kept from learning; they stand at the end.
    """
    values = np.concatenate([[0.0], *(own.differences[:, place] for own in shown)])
    room = 0.35 * (float(np.ptp(values)) or 1e-3)
    return float(values.min()) - room, float(values.max()) + room


def legend_of(drawn: Sequence[NumberedRow]) -> dict[str, Any]:
    """Return a handle for each kind of mark that the figure has."""
    primary = [found.row for found in drawn if found.own.family == PRIMARY]
    controls = " or ".join(dict.fromkeys(name_of_control(row.control) for row in primary))
    handles: dict[str, Any] = {}
    if any(is_true(row.significant) for row in primary):
        handles["significant after correction"] = Line2D([], [], marker="D", ls="", ms=6.5, mfc=INK, mec=INK)
    handles[f"against {controls}"] = Line2D([], [], marker="D", ls="", ms=6.5, mfc=PAPER, mec=INK, mew=1.5)
    if any(not is_missing(row.transfer_low) for row in primary):
        handles["95 % interval over seeds"] = Line2D([], [], color=INK, lw=3, solid_capstyle="butt")
    handles["one seed"] = Line2D([], [], marker="o", ls="", ms=4, mfc="none", mec=INK)
    if any(found.own.family != PRIMARY for found in drawn):
        others = dict.fromkeys(found.own.control for found in drawn if found.own.family != PRIMARY)
        named = {control: marker_of(control) for control in others if control in OTHER_MARKERS}
        named |= {"a control method": "|"} if len(named) < len(others) else {}
        for control, marker in [*named.items(), ("another control, beyond the scale", "<")]:
            style: Any = {"marker": marker, "ls": "", "ms": 7, "mew": 1.4, "mfc": "none", "color": GREY}
            handles[f"mean against {name_of_control(control)}"] = Line2D([], [], **style)
    return handles


def describe(shown: Sequence[ControlComparison]) -> str:
    """Return the caption."""
    pooled = " Over several teachers, a circle is the mean over them." if any(own.is_pooled for own in shown) else ""
    return (
        "Distance of students to their own teacher minus that of the control to this very teacher: left of "
        f"zero, students are closer.{pooled} Tests are one-sided and corrected, intervals are neither. More accurate "
        "networks are closer to any good teacher; agreement at equal accuracy is in the table Fidelity."
    )
