"""Figure of test accuracy against the size of the student."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdbench.report import statistics as st
from kdbench.report.drawing import label_sizes, legend_below, name_panel, panels
from kdbench.report.figures.sheet import Sheet, arm
from kdbench.report.gains import group_by
from kdbench.report.groups import BASELINE, RunGroup, size_of
from kdbench.rundir.summary import KEY

MEASURES = {KEY.num_params: "parameters", KEY.macs: "multiply-accumulates per image"}


def draw_size(sheet: Sheet) -> tuple[Figure, str] | str:
    groups = sheet.report.groups
    known = [(key, name) for key, name in MEASURES.items() if any(size_of(group.shared, key) for group in groups)]
    if not known:
        return "no summary has a size"
    figure, all_axes = panels(len(known), sheet.width)
    handles, most = dict[str, Any](), 1
    for axes, (key, name) in zip(all_axes, known, strict=True):
        sized = [group for group in groups if size_of(group.shared, key)]
        students = dict(group_by(sized, lambda group: sized_name(group.shared)))
        sizes = {student: size_of(of[0].shared, key) or 1 for student, of in students.items()}
        places = place_groups(axes, students, sizes)
        handles |= draw_arms(sheet, axes, sized, places)
        name_panel(axes, "", f"{name}, logarithmic", "test accuracy, %")
        most = max(most, label_sizes(axes, sizes))
    rows = 1 if figure.get_figwidth() > sheet.width.panel else len(known)
    figure.set_figheight(figure.get_figheight() + 0.4 * (most - 1) * rows)
    legend_below(figure, handles)
    epoch = "best validation epoch" if any(group.shared.validation for group in groups) else "last epoch"
    return figure, (
        f"Mean over seeds at the {epoch}; bars are one standard deviation. Groups of one student stand beside each "
        "other, and lines join the students of one method and teacher; a method that predicts with a part of its own "
        f"is counted with it.{sheet.looks.caption()}"
    )


def sized_name(run: Any) -> str:
    """Return the student, and the method where that makes it larger."""
    return f"{run.student} by {run.method}" if run.inference_params else run.student


def place_groups(
    axes: Axes, students: Mapping[str, Sequence[RunGroup]], sizes: Mapping[str, float]
) -> dict[int, float]:
    """Set the limits of the horizontal axis, log10 of the size; return the place of each group, by its id."""
    at = {student: math.log10(size) for student, size in sizes.items()}
    low, high = min(at.values()), max(at.values())
    span = high - low or 0.3
    # Groups of one student stand beside each other, at most over the way to the next student.
    near = min((b - a for a, b in pairwise(sorted(at.values())) if b > a), default=span)
    steps = {student: min(0.03 * span, 0.8 * near / len(groups)) for student, groups in students.items()}
    reach = max(steps[student] * (len(groups) - 1) / 2 for student, groups in students.items())
    half = (high - low) / 2 + max(0.15 * span, reach + 0.03 * span) + (0.5 * span if high == low else 0)
    axes.set_xlim((low + high) / 2 - half, (low + high) / 2 + half)
    return {
        id(group): at[student] + steps[student] * (place - (len(groups) - 1) / 2)
        for student, groups in students.items()
        for place, group in enumerate(groups)
    }


def draw_arms(sheet: Sheet, axes: Axes, groups: Sequence[RunGroup], places: Mapping[int, float]) -> dict[str, Any]:
    """Draw a point for each group and join those of one arm; return a handle for each arm in colour."""
    looks, handles = sheet.looks, dict[str, Any]()
    drawn: dict[str, int] = {}
    arms = group_by(groups, lambda group: (arm(group.shared), group.shared.role))
    for (name, role), of_arm in sorted(arms, key=lambda item: not looks.is_grey(item[1][0].shared)):
        shared = of_arm[0].shared
        colour, grey = looks.colour(shared), looks.is_grey(shared)
        number = drawn[shared.method] = drawn.get(shared.method, -1) + 1
        dashes = looks.dashes(shared, 0 if grey else number)
        for line in joined(of_arm):
            middles = [(places[id(group)], float(np.mean(group.accuracies))) for group in line]
            axes.plot(*zip(*middles, strict=True), color=colour, lw=0.8 if grey else 1.3, linestyle=dashes)
        marker: Any = {"color": colour, "ms": 6 if grey else 7, "lw": 1.3}
        if not grey:
            (handles[BASELINE if role == BASELINE else name],) = axes.plot(
                [], [], marker=looks.marker(shared), linestyle=dashes, **marker
            )
        else:
            (handles["other methods"],) = axes.plot([], [], marker=looks.marker(shared), linestyle="", **marker)
        for group in of_arm:
            x, mean, std = places[id(group)], float(np.mean(group.accuracies)), st.std(group.accuracies)
            parts = axes.plot([x], [mean], linestyle="", marker=looks.marker(shared), **marker)
            if not math.isnan(std):
                parts += axes.plot([x, x], [mean - std, mean + std], color=colour, lw=1)
            spread = "" if math.isnan(std) else f", standard deviation {std:.2f}"
            sheet.mark_group(group, f"{mean:.2f} %{spread}, {axis_size(group)}", parts)
    if "other methods" in handles:
        handles["other methods"] = handles.pop("other methods")  # the last entry
    return handles


def axis_size(group: RunGroup) -> str:
    known = [(size_of(group.shared, key), name) for key, name in MEASURES.items()]
    return ", ".join(f"{size:,} {name}" for size, name in known if size)


def joined(groups: Sequence[RunGroup]) -> list[Sequence[RunGroup]]:
    """Return the groups of an arm that one line joins, in the order of their sizes.

    Students with one setting each are joined whatever it is, else those with the same setting.
    """
    if len({group.shared.student for group in groups}) == len(groups):
        return [groups]
    by_setting = [of for _, of in group_by(groups, lambda group: group.setting)]
    return [of for of in by_setting if len({group.shared.student for group in of}) == len(of)]
