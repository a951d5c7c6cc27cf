"""The report's figures, drawn by matplotlib without a display."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kdbench.report import statistics as st
from kdbench.report.build import Report
from kdbench.report.drawing import (
    COLOURS,
    DASHES,
    MARKERS,
    fit,
    label_log_axis,
    label_sizes,
    legend_below,
    name_panel,
    panel_legends_below,
    panels,
    round_ticks,
    style,
)
from kdbench.report.fidelity import agreement_arm, teacher_folder
from kdbench.report.gains import Gain, group_by
from kdbench.report.groups import BASELINE, CONTROL, RunGroup, percent, size_of
from kdbench.report.predictions import predictions_in
from kdbench.report.runs import METRICS, rows_of
from kdbench.rundir.summary import KEY

MOST_PANELS, MOST_ROWS = 40, 200
"""Largest numbers of students and gains in a figure; the tables have all."""


@dataclass(frozen=True, eq=False)
class Drawing:
    """Figure with what it shows."""

    name: str
    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True)
class Picture:
    """Figure in its two files, with what it shows."""

    name: str
    title: str
    caption: str
    png: Path
    svg: Path


def draw_figures(report: Report) -> tuple[list[Drawing], list[str]]:
    """Return every figure for which there is something to show, and a line for each of the others.

    To be called, and the figures saved, within `kdbench.report.drawing.style`.
    """
    drawings, left_out = [], []
    figures: list[tuple[str, str, Callable[[Report], tuple[Figure, str] | str]]] = [
        ("gains", "Gain over the baseline", draw_gains),
        ("curves", "Validation accuracy during training", draw_curves),
        ("size", "Accuracy against size", draw_size),
        ("agreement", "Agreement with the teacher against accuracy", draw_agreement),
        ("power", "Seeds that a gain needs", draw_power),
    ]
    for name, title, draw in figures:
        drawn = draw(report)
        if isinstance(drawn, str):
            left_out.append(f"no figure “{title}”: {drawn}")
        else:
            drawings.append(Drawing(name, title, drawn[1], drawn[0]))
    return drawings, left_out


def save_figures(report: Report, folder: Path) -> tuple[list[Picture], list[str]]:
    """Write every figure as NAME.png and NAME.svg; return them, and a line for each that has nothing to show."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    with style():
        drawings, left_out = draw_figures(report)
        for drawing in drawings:
            png, svg = folder / f"{drawing.name}.png", folder / f"{drawing.name}.svg"
            drawing.figure.savefig(png, dpi=150, metadata={"Software": None})
            drawing.figure.savefig(svg, metadata={"Date": None, "Creator": None})
            pictures.append(Picture(drawing.name, drawing.title, drawing.caption, png, svg))
    return pictures, left_out


def colour_of(run: Any, report: Report) -> str:
    """Return the colour of a run's method; baselines are black."""
    methods = sorted({group.shared.method for group in report.groups if group.shared.role != BASELINE})
    is_baseline = run.role == BASELINE
    return COLOURS[-1] if is_baseline else COLOURS[methods.index(run.method) % (len(COLOURS) - 1)]


def marker_of(run: Any, report: Report) -> str:
    """Return the marker of a run's teacher."""
    teachers = sorted({group.shared.teacher for group in report.groups if group.shared.teacher})
    return MARKERS[1 + teachers.index(run.teacher) % (len(MARKERS) - 1)] if run.teacher else MARKERS[0]


def arm(run: Any) -> str:
    """Return method and teacher as text; controls are named as such."""
    control = f" ({CONTROL})" if run.role == CONTROL else ""
    return f"{run.method}{control}" + (f" from {run.teacher}" if run.teacher else "")


def first_of(items: Sequence[Any], most: int, what: str) -> tuple[Sequence[Any], str]:
    """Return at most so many items, and a sentence for the caption if there are more."""
    return items[:most], f" The first {most} of {len(items)} {what} are shown." if len(items) > most else ""


def draw_gains(report: Report) -> tuple[Figure, str] | str:
    computed = [(g, row) for g, row in zip(report.gains, rows_of(report.gains_table), strict=True) if g.baseline]
    if not computed:
        return "no gain can be computed"
    shown, cut = first_of(computed, MOST_ROWS, "gains")
    names = [fit(row_name(gain), 3.4, lines=3) for gain, _ in shown]
    per_row = 0.18 * max(name.count("\n") + 1 for name in names) + 0.12
    figure = Figure(figsize=(8, 1.1 + per_row * max(4, len(shown))), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(-report.margin, report.margin, color="#000000", alpha=0.06, lw=0)
    axes.axvline(0, color="#000000", lw=1)
    for y, (gain, row) in enumerate(shown):
        colour = colour_of(gain.group.shared, report)
        axes.plot(gain.single, np.full(len(gain.single), y), "o", ms=5, mfc="none", mec=colour, alpha=0.7)
        axes.plot([row.ci_low, row.ci_high], [y, y], color=colour, lw=2)  # NaN draws nothing
        axes.plot([row.delta], [y], "D", ms=6, color=colour)
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel("gain in points of test accuracy")
    axes.xaxis.set_major_locator(round_ticks())
    axes.grid(axis="y", visible=False)
    return figure, (
        "Filled: difference of means, with its 95 % Welch interval, not corrected for the number of gains. Hollow: "
        "every seed, over the baseline run of the same seed where seeds match, else over the mean of the baseline. "
        f"Shaded: the margin of equivalence.{cut}"
    )


def row_name(gain: Gain) -> str:
    shared = gain.group.shared
    source = f"{shared.teacher} → " if shared.teacher else ""
    control = f"{CONTROL}, " if shared.role == CONTROL else ""
    return f"{source}{shared.student}, {shared.method} ({control}n={len(gain.values)}) {gain.setting}".strip()


def draw_curves(report: Report) -> tuple[Figure, str] | str:
    curves: dict[str, list[tuple[RunGroup, pd.DataFrame]]] = {}
    for group in report.groups:
        if not group.shared.validation:  # its validation images are trained on
            continue
        histories = [history for folder in group.runs.path if (history := read_history(folder)) is not None]
        if histories:
            table = pd.concat([100 * history for history in histories], axis=1)
            curves.setdefault(group.shared.student, []).append((group, table))
    if not curves:
        held_out = any(group.shared.validation for group in report.groups)
        return "no run has a metrics.csv" if held_out else "no run has validation images that were held out"
    shown, cut = first_of(list(curves.items()), MOST_PANELS, "students")
    figure, all_axes = panels(len(shown))
    legends = []
    for axes, (student, groups) in zip(all_axes, shown, strict=True):
        handles: dict[str, Any] = {}
        drawn: dict[str, int] = {}
        for group, table in groups:
            colour, marker = colour_of(group.shared, report), marker_of(group.shared, report)
            mean, spread = table.mean(axis=1), table.std(axis=1)
            number = drawn[arm(group.shared)] = drawn.get(arm(group.shared), -1) + 1
            (line,) = axes.plot(
                mean.index, mean, color=colour, marker=marker, markevery=max(1, len(mean) // 8), ms=4, lw=1.4,
                linestyle=DASHES[number % len(DASHES)],
            )  # fmt: skip
            axes.fill_between(mean.index, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)
            handles[f"{arm(group.shared)} {group.setting}".strip() + f" (n={len(group.runs)})"] = line
        name_panel(axes, student, "epoch", "validation accuracy, %", integer=True)
        legends.append((axes, handles))
    panel_legends_below(figure, legends)
    return figure, f"Mean over seeds; the band is one standard deviation to each side, absent with one seed.{cut}"


def read_history(folder: Path) -> "pd.Series[float] | None":
    """Return validation accuracy by epoch, or None where there is no readable metrics.csv."""
    try:
        return pd.read_csv(folder / METRICS).set_index("epoch")["val_acc"].astype(float)
    except (OSError, ValueError, KeyError):
        return None


def sized_name(run: Any) -> str:
    """Return the student, and the method where that makes it larger."""
    return f"{run.student} by {run.method}" if run.inference_params else run.student


def draw_size(report: Report) -> tuple[Figure, str] | str:
    measures = zip((KEY.num_params, KEY.macs), ("parameters", "multiply-accumulates per image"), strict=True)
    known = [(key, name) for key, name in measures if any(size_of(group.shared, key) for group in report.groups)]
    if not known:
        return "no summary has a size"
    figure, all_axes = panels(len(known))
    handles, upright = dict[str, Any](), False
    for axes, (key, name) in zip(all_axes, known, strict=True):
        sized = [group for group in report.groups if size_of(group.shared, key)]
        students = group_by(sized, lambda group: sized_name(group.shared))
        sizes = {student: size_of(groups[0].shared, key) or 1 for student, groups in students}
        places = {student: math.log10(size) for student, size in sizes.items()}
        low, high = min(places.values()), max(places.values())
        span = high - low or 0.3
        # Groups of one student stand beside each other, at most over the way to the next student.
        near = min((b - a for a, b in pairwise(sorted(places.values())) if b > a), default=span)
        steps = {student: min(0.03 * span, 0.8 * near / len(groups)) for student, groups in students}
        reach = max(step * (len(groups) - 1) / 2 for step, (_, groups) in zip(steps.values(), students, strict=True))
        half = (high - low) / 2 + max(0.15 * span, reach + 0.03 * span) + (0.5 * span if high == low else 0)
        axes.set_xlim((low + high) / 2 - half, (low + high) / 2 + half)
        for student, groups in students:
            step = steps[student]
            for place, group in enumerate(groups):
                handles[arm(group.shared)] = axes.errorbar(
                    [places[student] + step * (place - (len(groups) - 1) / 2)],
                    [np.mean(group.accuracies)],
                    yerr=[st.std(group.accuracies) if len(group.runs) > 1 else 0.0],
                    fmt=marker_of(group.shared, report), color=colour_of(group.shared, report), ms=6, capsize=3, lw=1,
                )  # fmt: skip
        name_panel(axes, "", f"{name}, logarithmic", "test accuracy, %")
        upright = label_sizes(axes, sizes) or upright
    if upright:
        figure.set_figheight(figure.get_figheight() + 1.2)
    legend_below(figure, handles)
    epoch = "best validation epoch" if any(group.shared.validation for group in report.groups) else "last epoch"
    return figure, (
        f"Mean over seeds at the {epoch}; bars are one standard deviation. Groups of one student stand "
        "beside each other."
    )


def draw_agreement(report: Report) -> tuple[Figure, str] | str:
    gains = [g for g in report.gains if not g.is_pooled and any(a is not None for a in g.group.runs.agreement)]
    if not gains:
        return "no run has an agreement with a teacher"
    shown, cut = first_of(group_by(gains, lambda gain: gain.group.shared.student), MOST_PANELS, "students")
    figure, all_axes = panels(len(shown))
    handles: dict[str, Any] = {}
    for axes, (student, of_student) in zip(all_axes, shown, strict=True):
        for gain in of_student:
            shared, marker = gain.group.shared, marker_of(gain.group.shared, report)
            runs = gain.group.runs[gain.group.runs.agreement.notna()]
            points = [(percent(run.agreement), percent(run.test_acc_best)) for run in rows_of(runs)]
            colour = colour_of(shared, report)
            (handles[arm(shared)],) = axes.plot(*zip(*points, strict=True), marker, color=colour, ms=6, alpha=0.8)
            if base := baseline_points(gain, report.runs):
                (hollow,) = axes.plot(*zip(*base, strict=True), marker, mfc="none", mec=COLOURS[-1], ms=6)
                handles[f"{BASELINE}, with {shared.teacher}"] = hollow
        name_panel(axes, student, "agreement with the teacher, % of test images", "test accuracy, %")
    legend_below(figure, handles)
    return figure, (
        "One point for each run. Hollow: baseline runs, compared with the teacher that they were trained without; an "
        f"agreement is worth its distance from these at equal accuracy.{cut}"
    )


def baseline_points(gain: Gain, runs: pd.DataFrame) -> list[tuple[float, float]]:
    """Return agreement with the group's teacher and accuracy, per cent, of the baseline runs."""
    teacher = predictions_in(teacher_folder(gain.group.shared, runs))
    if not teacher or not gain.baseline:
        return []
    accuracies, agreements = agreement_arm(gain.baseline.rows, teacher)
    return list(zip(agreements, accuracies, strict=True))


def draw_power(report: Report) -> tuple[Figure, str] | str:
    std = report.std
    if not std > 0:
        return "no group has two seeds that vary, so there is no standard deviation to compute with"
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    sizes, handles = std * np.geomspace(0.25, 8, 40), {}
    for needed, dashes, label in (
        (st.seeds_for, "-", "to detect a gain"),
        (st.seeds_for_equivalence, "--", "to show equivalence within this margin"),
    ):
        (handles[label],) = axes.plot(sizes, [needed(float(size), std) or np.nan for size in sizes], dashes)
    for size, marker in ((0.1, "o"), (0.2, "s")):
        n = st.seeds_for(size, std)
        if n and sizes[0] <= size <= sizes[-1]:
            (handles[f"{size} points: {n} seeds"],) = axes.plot([size], [n], marker, color=COLOURS[0])
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("true gain, or margin, in points")
    axes.set_ylabel("seeds per arm")
    label_log_axis(axes.xaxis)
    label_log_axis(axes.yaxis)
    legend_below(figure, handles)
    return figure, (
        "Two-sided test at 0.05 with 80 % power, and two one-sided tests where there is no gain at all; standard "
        f"deviation {std:.3f} points, pooled over all groups here."
    )
