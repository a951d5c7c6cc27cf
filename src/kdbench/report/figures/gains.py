"""Figure of every gain: its interval, every seed, and whether it is significant."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from kdbench.errors import printable
from kdbench.report.anchors import link, row_anchor
from kdbench.report.column import P
from kdbench.report.columns import format_value, is_missing
from kdbench.report.drawing import BAND, GREY, INK, LINE, PAPER, fit, hide_vertical_axis, legend_below, round_ticks
from kdbench.report.figures.sheet import (
    Mark,
    Sheet,
    count,
    first_of,
    interval_text,
    is_true,
    mark_of_run,
    points,
)
from kdbench.report.gains import Gain
from kdbench.report.groups import CONTROL, DISTILLED
from kdbench.report.runs import rows_of

MOST_ROWS = 60
TALL = 6.0
"""Height, inches, above which the horizontal axis has numbers at its upper end too."""
ROOM = 0.36
"""Height of an interval with its seeds below the label, inches."""

EDGE: Any = {"color": GREY, "ls": (0, (1, 1.5)), "lw": 1.2}
"""Line at an end of the band of equivalence."""


def draw_gains(sheet: Sheet) -> tuple[Figure, str] | str:
    report = sheet.report
    numbered = enumerate(zip(report.gains, rows_of(report.gains_table), strict=True), 1)
    computed = [(number, gain, row) for number, (gain, row) in numbered if gain.baseline]
    if not computed:
        return "no gain can be computed"
    shown, cut = first_of(computed, MOST_ROWS, "gains")
    figure = Figure(figsize=(sheet.width.inches, 1), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(-report.margin, report.margin, color=BAND, alpha=0.2, lw=0)
    for end in (-report.margin, report.margin):  # a band that is narrower than the line at 0 is seen by its edges
        axes.axvline(end, **EDGE)
    axes.axvline(0, color=INK, lw=1)
    top = 0.05
    seeds: dict[str, list[tuple[float, float, Mark]]] = {}
    for number, gain, row in shown:
        at = label_row(sheet, axes, top, gain, row)
        draw_row(sheet, axes, at, number, gain, row)
        own = [(value, at + 0.14, mark) for value, mark in seeds_of(gain, number)]
        seeds.setdefault(sheet.looks.colour(gain.group.shared), []).extend(own)
        top = at + ROOM - 0.09
        axes.axhline(top - 0.03, color=GREY, lw=0.4, alpha=0.6)
    for colour, dots in seeds.items():
        xs, ys, marks = zip(*dots, strict=True)
        (line,) = axes.plot(xs, ys, "o", ms=4.5, mfc="none", mec=colour, mew=1)
        sheet.mark_points(line, marks)
    figure.set_figheight(top + 0.6)
    axes.set_ylim(top, 0)
    hide_vertical_axis(axes)
    axes.set_xlabel("gain in points of test accuracy")
    axes.xaxis.set_major_locator(round_ticks(most=9 if sheet.width.inches > 6 else 5))
    axes.grid(axis="y", visible=False)
    if top > TALL:
        axes.tick_params(top=True, labeltop=True)
    legend_below(figure, legend_of(shown))
    return figure, f"{describe(shown)}{sheet.looks.caption()}{cut}"


def label_row(sheet: Sheet, axes: Axes, top: float, gain: Gain, row: Any) -> float:
    """Write the name and the numbers of a gain above its place; return the height of its interval.

    Args:
        sheet: width of the figure.
        axes: panel whose vertical axis counts inches downwards.
        top: upper end of the row.
        gain: gain to be named.
        row: row of the gain in gains.csv.
    """
    inches, significant = sheet.width.inches - 0.3, is_true(row.significant)
    numbers = f"{points(row.delta)} {interval_text(row.primary_low, row.primary_high)}".strip()
    is_wide = inches > 6
    name = fit(f"{'★ ' if significant else ''}{row_name(gain)}", (inches - 2.6 if is_wide else inches) / 1.12, lines=2)
    if not is_wide:
        name = f"{name}\n{numbers}"
    style: Any = {
        "transform": axes.get_yaxis_transform(), "va": "top", "weight": "bold" if significant else "normal",
        "bbox": {"facecolor": PAPER, "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        "in_layout": False,  # it lies within the axes, and measuring it takes long
    }  # fmt: skip
    axes.text(0, top, name, ha="left", **style)
    if is_wide:
        axes.text(1, top, numbers, ha="right", **style)
    return top + LINE * (name.count("\n") + 1) + 0.1


def draw_row(sheet: Sheet, axes: Axes, at: float, number: int, gain: Gain, row: Any) -> None:
    """Draw interval and mean of a gain, and link them to its row."""
    shared, significant = gain.group.shared, is_true(row.significant)
    colour = sheet.looks.colour(shared)
    low, high = row.primary_low, row.primary_high
    parts = []
    if not is_missing(row.joint_low):
        parts += axes.plot([row.joint_low, row.joint_high], [at, at], color=colour, lw=1)
    if not is_missing(low):
        parts += axes.plot([low, high], [at, at], color=colour, lw=3.5, solid_capstyle="butt")
    face = colour if significant else PAPER
    parts += axes.plot([row.delta], [at], "D", ms=7, mfc=face, mec=colour, mew=1.6)
    sheet.mark(row_anchor("gains", number), gain_text(gain, row), parts)


def seeds_of(gain: Gain, number: int) -> list[tuple[float, Mark]]:
    """Return the gain of every seed, or teacher if pooled, with its link."""
    if gain.is_pooled:
        address = link(row_anchor("gains", number))
        name = printable(row_name(gain))
        return [(value, Mark(address, f"{name}: mean of a teacher, {points(value)} points")) for value in gain.single]
    return [
        (value, mark_of_run(run, f"gain {points(value)} points, test accuracy {100 * run.test_acc_best:.2f} %"))
        for value, run in zip(gain.single, gain.group.rows, strict=True)
    ]


def gain_text(gain: Gain, row: Any) -> str:
    """Return a gain with its interval and p as text."""
    corrected = row.p_adjusted
    low_high = interval_text(row.primary_low, row.primary_high)
    p = f", p {format_value(corrected, P)} after correction" if not is_missing(corrected) else ", not tested"
    found = ", significant" if is_true(row.significant) else ""
    return f"{row_name(gain)}: gain {points(row.delta)} points {low_high}".strip() + f"{p}{found}"


def row_name(gain: Gain) -> str:
    shared = gain.group.shared
    source = f" from {shared.teacher}" if shared.teacher else ""
    control = f"{CONTROL}, " if shared.role == CONTROL else ""
    of = f"{len(gain.values)} teachers" if gain.is_pooled else count(len(gain.values))
    setting = (
        gain.setting.removesuffix(f"{len(gain.values)} teachers pooled").strip() if gain.is_pooled else gain.setting
    )
    return f"{shared.student} {shared.method}{source} ({control}{of}) {setting}".strip()


def legend_of(shown: Sequence[tuple[int, Gain, Any]]) -> dict[str, Any]:
    """Return a handle for each kind of mark that the figure has."""
    rows = [row for _, _, row in shown]
    handles: dict[str, Any] = {}
    if any(is_true(row.significant) for row in rows):
        handles["★ significant gain"] = Line2D([], [], marker="D", ls="", ms=7, mfc=INK, mec=INK)
    tested = [not is_missing(row.p_adjusted) for row in rows if row.role == DISTILLED]
    others = "not significant" if all(tested) else "not significant or not tested" if any(tested) else "not tested"
    handles[f"gain, {others}"] = Line2D([], [], marker="D", ls="", ms=7, mfc=PAPER, mec=INK, mew=1.6)
    if any(not is_missing(row.primary_low) for row in rows):
        handles["95 % interval"] = Line2D([], [], color=INK, lw=3.5, solid_capstyle="butt")
    if any(not is_missing(row.joint_low) for row in rows):
        handles["simultaneous interval"] = Line2D([], [], color=INK, lw=1)
    handles["one seed"] = Line2D([], [], marker="o", ls="", ms=4.5, mfc="none", mec=INK)
    handles["margin of equivalence"] = (Patch(color=BAND, alpha=0.2, lw=0), Line2D([], [], **EDGE))
    return handles


def describe(shown: Sequence[tuple[int, Gain, Any]]) -> str:
    """Return the caption."""
    rows = [row for _, _, row in shown]
    distilled = [row for row in rows if row.role == DISTILLED]
    found = sum(is_true(row.significant) for row in distilled)
    seen = np.array([row.delta for row in distilled], dtype=float)
    extent = f" Gains lie between {points(seen.min())} and {points(seen.max())} points." if len(seen) > 1 else ""
    interval = " Thick lines: 95 % interval of the primary analysis, for each gain alone." if any(
        not is_missing(row.primary_low) for row in rows
    ) else ""  # fmt: skip
    joint = " Thin lines: intervals that all hold at once, 19 times in 20." if any(
        not is_missing(row.joint_low) for row in rows
    ) else ""  # fmt: skip
    if any(is_true(row.significant) and row.joint_low <= 0 <= row.joint_high for row in rows):
        joint += " A ★ whose thin line crosses zero is no contradiction: Holm's method finds more than these intervals."
    return (
        f"Every gain over the baseline. Significant after correction (★, filled): {found} of the {len(distilled)} "
        f"distilled gains here.{extent}{interval}{joint} Circles: "
        "every seed, over the baseline run of the same seed where seeds match, else over the baseline's mean. Shaded "
        "between dotted lines: the margin of equivalence."
    )
