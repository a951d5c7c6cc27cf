"""Figure of the asymmetry plane: gain of agreement where the teacher is wrong against that where it is right."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdbench.report.anchors import row_anchor
from kdbench.report.columns import is_missing
from kdbench.report.drawing import COLOURS, GREY, INK, MARKERS, fit, legend_below, panel_inches, panels, round_ticks
from kdbench.report.figures.sheet import Sheet, first_of, mark_of_run
from kdbench.report.functional.asymmetry import gains_by_seed
from kdbench.report.functional.transfer import PRIMARY, ControlComparison, name_of_control
from kdbench.report.runs import rows_of

MOST = 2 * len(COLOURS)


def draw_asymmetry(sheet: Sheet) -> tuple[Figure, str] | str:
    functional = sheet.report.functional
    items = [
        (number, row, own)
        for number, (row, own) in enumerate(zip(rows_of(functional.asymmetry), functional.counts, strict=True), 1)
        if own.family == PRIMARY and not is_missing(row.asymmetry)
    ]
    if not items:
        return "no run with logits has a teacher with logits, with right and wrong answers, and a control"
    shown, cut = first_of(items, MOST, "conditions")
    figure, (axes,) = panels(1, sheet.width, 4.6)
    axes.axhline(0, color=INK, lw=0.8)
    axes.axvline(0, color=INK, lw=0.8)
    handles: dict[str, Any] = {}
    for place, (number, row, own) in enumerate(shown):
        style: Any = {
            "color": COLOURS[place % len(COLOURS)],
            "marker": MARKERS[(place + place // len(COLOURS)) % len(MARKERS)],
        }
        draw_seeds(sheet, axes, own, **style)
        (point,) = axes.plot([row.correct_gain], [row.incorrect_gain], ls="", ms=9, mec=INK, mew=0.8, zorder=4, **style)
        parts = [point]
        if not is_missing(row.correct_gain_low):
            lines: Any = {"color": style["color"], "lw": 1.4, "zorder": 3}
            parts += axes.plot([row.correct_gain_low, row.correct_gain_high], [row.incorrect_gain] * 2, **lines)
            parts += axes.plot([row.correct_gain] * 2, [row.incorrect_gain_low, row.incorrect_gain_high], **lines)
        sheet.mark(row_anchor("asymmetry", number), text_of(own, row), parts)
        handles[f"{own.name}, against {name_of_control(own.control)}"] = point
    name_plane(axes)
    legend_below(figure, handles)
    return figure, (
        "Gains of agreement with the own teacher over the control, each in per cent of the room that the "
        "control leaves: to the right where the teacher is right, upwards where it is wrong, which is sharing"
        " its very mistakes. Above the dashed line of equal gains, wrong answers are taken over more than "
        "right ones (negative asymmetry). Large: means with 95 % intervals over seeds, where there are five "
        f"seeds or more; small: every seed.{cut}"
    )


def draw_seeds(sheet: Sheet, axes: Axes, own: ControlComparison, color: str, marker: str) -> None:
    """Draw the gains of every seed, linked to the run."""
    gains = 100 * gains_by_seed(own)
    known = [(gain, pair) for gain, pair in zip(gains, own.seeds, strict=True) if np.isfinite(gain).all()]
    if not known:
        return
    (dots,) = axes.plot(
        [gain[0] for gain, _ in known], [gain[1] for gain, _ in known], marker, ms=4.5, mfc="none", mec=color, mew=1
    )
    marks = [
        mark_of_run(own.students.runs[pair], f"correct gain {gain[0]:+.1f} %, incorrect gain {gain[1]:+.1f} %")
        for gain, pair in known
    ]
    sheet.mark_points(dots, marks)


def name_plane(axes: Axes) -> None:
    """Name the axes of the plane and draw the line of equal gains across it."""
    limits = axes.get_xlim(), axes.get_ylim()
    axes.axline((0, 0), slope=1, color=GREY, lw=1, ls=(0, (4, 3)), zorder=1)
    axes.set_xlim(limits[0])
    axes.set_ylim(limits[1])
    axes.set_xlabel(fit("gain where the teacher is right, % of the room", panel_inches(axes) - 0.9))
    axes.set_ylabel("gain where it is wrong, % of the room")
    axes.xaxis.set_major_locator(round_ticks())
    axes.yaxis.set_major_locator(round_ticks())


def text_of(own: ControlComparison, row: Any) -> str:
    """Return a comparison with its row of asymmetry.csv as text."""
    found = "" if is_missing(row.finding) else f", {row.finding}"
    return (
        f"{own.name} against {name_of_control(own.control)}: correct gain {row.correct_gain:+.1f} % "
        f"({row.correct_change:+.0f} images), incorrect gain {row.incorrect_gain:+.1f} % ({row.incorrect_change:+.0f} "
        f"images), asymmetry {row.asymmetry:+.1f}{found}"
    )
