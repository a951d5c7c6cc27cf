"""Figure of agreement with the teacher against accuracy."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kdbench.report.drawing import INK, legend_below, name_panel, panels
from kdbench.report.fidelity import agreement_arm, teacher_folder
from kdbench.report.figures.sheet import Sheet, arm, first_of, mark_of_run
from kdbench.report.gains import Gain, group_by
from kdbench.report.groups import BASELINE
from kdbench.report.predictions import predictions_in, same_images
from kdbench.report.runs import rows_of

MOST_PANELS = 12


def draw_agreement(sheet: Sheet) -> tuple[Figure, str] | str:
    gains = [g for g in sheet.report.gains if not g.is_pooled and any(a is not None for a in g.group.runs.agreement)]
    if not gains:
        return "no run has an agreement with a teacher"
    pairs = group_by(gains, lambda gain: (gain.group.shared.student, gain.group.shared.teacher))
    shown, cut = first_of(pairs, MOST_PANELS, "students with a teacher")
    figure, all_axes = panels(len(shown), sheet.width)
    handles: dict[str, Any] = {}
    for axes, ((student, teacher), of_pair) in zip(all_axes, shown, strict=True):
        handles |= draw_pair(sheet, axes, of_pair)
        name_panel(axes, f"{student} from {teacher}", "agreement with the teacher, %", "test accuracy, %")
    for last in (BASELINE, "other methods"):
        if last in handles:
            handles[last] = handles.pop(last)
    legend_below(figure, handles)
    return figure, (
        "One point for each run. Hollow: baseline runs, compared with the teacher that they were trained without. More "
        "accurate networks agree more with any good teacher, so a student was drawn towards its teacher only where it "
        f"agrees more than undistilled networks of the same accuracy would.{sheet.looks.caption()}{cut}"
    )


def draw_pair(sheet: Sheet, axes: Axes, gains: Sequence[Gain]) -> dict[str, Any]:
    """Draw the runs of one student and teacher, grey ones behind; return a handle for each method and the baseline."""
    looks, handles, seen = sheet.looks, dict[str, Any](), set[Any]()
    for gain in sorted(gains, key=lambda gain: not looks.is_grey(gain.group.shared)):
        shared, grey = gain.group.shared, looks.is_grey(gain.group.shared)
        style: Any = {"color": looks.colour(shared), "marker": looks.marker(shared), "ls": "", "ms": 5 if grey else 6.5}
        runs = gain.group.runs[gain.group.runs.agreement.notna()]
        points = [(run, 100 * float(run.agreement), 100 * float(run.test_acc_best)) for run in rows_of(runs)]
        dots = draw_points(sheet, axes, points, zorder=2 if grey else 3, **style)
        handles["other methods" if grey else arm(shared).partition(" from ")[0]] = dots
        compared = (shared.teacher_key, tuple(gain.baseline.runs.run_key) if gain.baseline else ())
        if compared in seen:
            continue
        seen.add(compared)
        if points := baseline_points(gain, sheet.report.runs):
            style = {"marker": "o", "ls": "", "mfc": "none", "mec": INK, "mew": 1.2, "ms": 6.5}
            handles[BASELINE] = draw_points(sheet, axes, points, zorder=4, **style)
    return handles


def draw_points(sheet: Sheet, axes: Axes, points: Sequence[tuple[Any, float, float]], **style: Any) -> Any:
    """Draw runs at their agreement and accuracy, linked to their rows; return the handle."""
    _, agreements, accuracies = zip(*points, strict=True)
    (line,) = axes.plot(agreements, accuracies, **style)
    marks = [mark_of_run(run, f"agreement {a:.2f} %, test accuracy {b:.2f} %") for run, a, b in points]
    sheet.mark_points(line, marks)
    return line


def baseline_points(gain: Gain, runs: pd.DataFrame) -> list[tuple[Any, float, float]]:
    """Return each baseline run with its agreement with the group's teacher and its accuracy, per cent."""
    teacher = predictions_in(teacher_folder(gain.group.shared, runs))
    if not teacher or not gain.baseline:
        return []
    known = [run for run in gain.baseline.rows if (own := predictions_in(run.path)) and same_images(teacher, own)]
    accuracies, agreements = agreement_arm(known, teacher)
    return list(zip(known, agreements, accuracies, strict=True))
