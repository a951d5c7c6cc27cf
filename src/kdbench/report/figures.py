"""The report's figures, drawn by matplotlib without a display."""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullLocator

from kdbench import metrics
from kdbench.report import statistics as st
from kdbench.report.fidelity import logits_of, same_images, teacher_of
from kdbench.report.gains import Gain, grouped_by
from kdbench.report.groups import Group
from kdbench.report.runs import Run

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c613c", "#000000")
"""Distinguishable with any colour vision (Okabe and Ito 2008); black, the last, is the undistilled student's."""
MARKERS = "osD^vPX*"
STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "svg.hashsalt": "kdbench",
    "svg.fonttype": "path",
    "text.parse_math": False,
}
GROUPS_IN_LEGEND = 24


@dataclass(frozen=True)
class Picture:
    """A figure in its two files, with what it shows."""

    name: str
    title: str
    caption: str
    png: Path
    svg: Path


@dataclass(frozen=True)
class Material:
    """What figures are drawn of."""

    runs: Sequence[Run]
    groups: Sequence[Group]
    gains: Sequence[Gain]
    gains_table: pd.DataFrame
    std: float
    margin: float

    def colour(self, method: str) -> str:
        methods = sorted({group["method"] for group in self.groups if group.is_distilled})
        return COLOURS[methods.index(method) % (len(COLOURS) - 1)] if method in methods else COLOURS[-1]

    def marker(self, teacher: str | None) -> str:
        teachers = sorted({group["teacher"] for group in self.groups if group["teacher"]})
        return MARKERS[1 + teachers.index(teacher) % (len(MARKERS) - 1)] if teacher in teachers else MARKERS[0]


def draw_all(material: Material, folder: Path) -> tuple[list[Picture], list[str]]:
    """Every figure for which there is something to show, as NAME.png and NAME.svg; a line for each that is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures, left_out = [], []
    figures: list[tuple[str, str, Callable[[Material], tuple[Figure, str] | str]]] = [
        ("gains", "Gain over the undistilled student", gains),
        ("curves", "Validation accuracy while training", curves),
        ("size", "Accuracy against size", size),
        ("agreement", "Agreement with the teacher against accuracy", agreement),
        ("power", "Seeds that a gain needs", power),
    ]
    with matplotlib.rc_context(STYLE):
        for name, title, draw in figures:
            drawn = draw(material)
            if isinstance(drawn, str):
                left_out.append(f"no figure “{title}”: {drawn}")
                continue
            figure, caption = drawn
            png, svg = folder / f"{name}.png", folder / f"{name}.svg"
            figure.savefig(png, dpi=150, metadata={"Software": None})
            figure.savefig(svg, metadata={"Date": None, "Creator": None})
            pictures.append(Picture(name, title, caption, png, svg))
    return pictures, left_out


def gains(material: Material) -> tuple[Figure, str] | str:
    rows = material.gains_table.to_dict("records")
    shown = [(gain, row) for gain, row in zip(material.gains, rows, strict=True) if gain.base]
    if not shown:
        return "no gain can be computed"
    lines = sum(row_name(gain).count("\n") + 1 for gain, _ in shown)
    figure = Figure(figsize=(8, 1.6 + 0.22 * max(lines, 2 * len(shown))), layout="constrained")
    axes = figure.subplots()
    axes.axvspan(-material.margin, material.margin, color="#000000", alpha=0.06, lw=0)
    axes.axvline(0, color="#000000", lw=1)
    for y, (gain, row) in enumerate(shown):
        colour = material.colour(gain.group["method"])
        points = [value for _, value in gain.by_seed]
        axes.plot(points, np.full(len(points), y), "o", ms=5, mfc="none", mec=colour, alpha=0.7)
        axes.plot([row["ci_low"], row["ci_high"]], [y, y], color=colour, lw=2)  # NaN draws nothing
        axes.plot([row["delta"]], [y], "D", ms=6, color=colour)
    names = [row_name(gain) for gain, _ in shown]
    axes.set_yticks(range(len(shown)), names)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlabel("gain in points of test accuracy")
    axes.grid(axis="y", visible=False)
    return figure, (
        "Filled: difference of means, with its 95 % Welch interval, not corrected for the number of gains. "
        "Hollow: every seed, "
        "against the same seed's undistilled student where seeds match, else against their mean. Shaded: the "
        "margin of equivalence."
    )


def row_name(gain: Gain) -> str:
    setting = f"\n{textwrap.fill(gain.setting, 44)}" if gain.setting else ""
    who = f"{gain.group['teacher'] or ''} → {gain.group['student']}"
    return f"{who}, {gain.group['method']} (n={len(gain.values)}){setting}"


def curves(material: Material) -> tuple[Figure, str] | str:
    drawn: dict[str, list[tuple[Group, pd.DataFrame]]] = {}
    for group in material.groups:
        histories = [history for run in group.runs if (history := history_of(run)) is not None]
        if histories:
            table = pd.concat([100 * history for history in histories], axis=1)
            drawn.setdefault(group["student"], []).append((group, table))
    if not drawn:
        return "no run has a metrics.csv"
    columns = min(2, len(drawn))
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(5.2 * columns, 3.8 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for spare in list(panels.flat)[len(drawn) :]:
        spare.set_axis_off()
    for axes, (student, lines) in zip(panels.flat, drawn.items(), strict=False):
        for group, table in lines:
            colour, marker = material.colour(group["method"]), material.marker(group["teacher"])
            mean, spread = table.mean(axis=1), table.std(axis=1)
            every = max(1, len(mean) // 8)
            axes.plot(
                mean.index, mean, color=colour, marker=marker, markevery=every, ms=4, lw=1.4, label=label_of(group)
            )
            axes.fill_between(mean.index, mean - spread, mean + spread, color=colour, alpha=0.15, lw=0)
        axes.set_title(student)
        axes.set_xlabel("epoch")
        axes.set_ylabel("validation accuracy, %")
        axes.xaxis.get_major_locator().set_params(integer=True)
        legend(axes, len(lines))
    return figure, "Mean over seeds; the band is one standard deviation to each side, absent with one seed."


def history_of(run: Run) -> "pd.Series[float] | None":
    """Validation accuracy by epoch, or None where there is no readable metrics.csv."""
    try:
        table = pd.read_csv(run.metrics)
        return table.set_index("epoch")["val_acc"].astype(float)
    except (OSError, ValueError, KeyError):
        return None


def label_of(group: Group) -> str:
    source = f" from {group['teacher']}" if group["teacher"] else ""
    return f"{group['method']}{source}{' ' + group.setting if group.setting else ''} (n={len(group.runs)})"


def legend(axes: Axes, entries: int) -> None:
    if 0 < entries <= GROUPS_IN_LEGEND:
        axes.legend(fontsize=7)


def size(material: Material) -> tuple[Figure, str] | str:
    panels = [("num_params", "parameters"), ("macs", "multiply-accumulates per image")]
    panels = [(key, name) for key, name in panels if any(group[key] for group in material.groups)]
    if not panels:
        return "no summary says a size"
    figure = Figure(figsize=(5.2 * len(panels), 4.8), layout="constrained")
    labels: dict[str, Any] = {}
    for axes, (key, name) in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
        ticks: dict[float, str] = {}
        for student, groups in grouped_by([g for g in material.groups if g[key]], lambda group: group["student"]):
            ticks[groups[0][key]] = f"{student}\n{EngFormatter(places=1)(groups[0][key])}"
            for place, group in enumerate(groups):
                apart = 1.012 ** (place - (len(groups) - 1) / 2)  # beside each other, not on one line
                drawn = axes.errorbar(
                    [group[key] * apart],
                    [np.mean(group.accuracies)],
                    yerr=[std_or_0(group)],
                    fmt=material.marker(group["teacher"]),
                    color=material.colour(group["method"]),
                    ms=6,
                    capsize=3,
                    lw=1,
                )
                labels.setdefault(f"{group['method']}{' from ' + group['teacher'] if group['teacher'] else ''}", drawn)
        axes.set_xscale("log")
        axes.margins(x=0.15)
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(name)
        axes.set_ylabel("test accuracy, %")
    if len(labels) <= GROUPS_IN_LEGEND:
        figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=4, fontsize=8)
    return figure, (
        "Mean over seeds at the best validation epoch; bars are one standard deviation. Groups of one size "
        "stand beside each other."
    )


def std_or_0(group: Group) -> float:
    return st.std(group.accuracies) if len(group.runs) > 1 else 0.0


def agreement(material: Material) -> tuple[Figure, str] | str:
    shown = [g for g in material.gains if not g.is_pooled and any(r["agreement"] is not None for r in g.group.runs)]
    if not shown:
        return "no distilled run says its agreement"
    students = grouped_by(shown, lambda gain: gain.group["student"])
    figure = Figure(figsize=(5.2 * len(students), 4.6), layout="constrained")
    labels: dict[str, Any] = {}
    for axes, (student, gains) in zip(figure.subplots(1, len(students), squeeze=False).flat, students, strict=True):
        for gain in gains:
            teacher, marker = gain.group["teacher"], material.marker(gain.group["teacher"])
            points = [
                (x, run.percent("test_acc_best"))
                for run in gain.group.runs
                if (x := run.percent("agreement")) is not None
            ]
            (drawn,) = axes.plot(
                *zip(*points, strict=True), marker, color=material.colour(gain.group["method"]), ms=6, alpha=0.8
            )
            labels.setdefault(f"{gain.group['method']} from {teacher}", drawn)
            null = undistilled_points(gain, material.runs)
            if null:
                (drawn,) = axes.plot(*zip(*null, strict=True), marker, mfc="none", mec=COLOURS[-1], ms=6)
                labels.setdefault(f"undistilled, with {teacher}", drawn)
        axes.set_title(student)
        axes.set_xlabel("agreement with the teacher, % of test images")
        axes.set_ylabel("test accuracy, %")
    if len(labels) <= GROUPS_IN_LEGEND:
        figure.legend(labels.values(), labels.keys(), loc="outside lower center", ncols=3, fontsize=8)
    return figure, (
        "One point for each run. Hollow: undistilled students, compared with the teacher that they never saw; what an "
        "agreement is worth is its distance from these at equal accuracy."
    )


def undistilled_points(gain: Gain, runs: Sequence[Run]) -> list[tuple[float, float | None]]:
    """Agreement and accuracy, per cent, of undistilled students with the teacher of a distilled group."""
    teacher = logits_of(teacher_of(gain.group.runs[0], runs))
    if not teacher or not gain.base:
        return []
    known = [(run, own) for run in gain.base.runs if (own := logits_of(run)) and same_images(teacher, own)]
    return [(100 * metrics.agreement(own.logits, teacher.logits), run.percent("test_acc_best")) for run, own in known]


def power(material: Material) -> tuple[Figure, str] | str:
    if not material.std > 0:
        return "no group has two seeds that vary, so there is no standard deviation to go by"
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    sizes = material.std * np.geomspace(0.25, 8, 40)
    for needed, style, label in (
        (st.seeds_for, "-", "to notice a gain"),
        (st.seeds_for_equivalence, "--", "to show equivalence within this margin"),
    ):
        axes.plot(sizes, [needed(float(size), material.std) or np.nan for size in sizes], style, label=label)
    for size in (0.1, 0.2):
        n = st.seeds_for(size, material.std)
        if n and sizes[0] <= size <= sizes[-1]:
            axes.plot([size], [n], "o", color=COLOURS[0])
            axes.annotate(f"{size} points: {n} seeds", (size, n), xytext=(6, 6), textcoords="offset points")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("true gain, or margin, in points")
    axes.set_ylabel("seeds per arm")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
    legend(axes, 2)
    return figure, (
        f"Two-sided test at 0.05 with 80 % power, and two one-sided tests where there is no gain at all; "
        f"standard deviation "
        f"{material.std:.3f} points, pooled over all groups here."
    )
