"""Figure of the teacher's mistakes that students and controls share, by class."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from kdbench.report.columns import is_missing
from kdbench.report.drawing import INK, TEXT, fit, fit_ends, legend_below, name_panel, panel_inches, panels
from kdbench.report.figures.sheet import Sheet, first_of
from kdbench.report.functional.transfer import name_of_control
from kdbench.report.gains import group_by
from kdbench.report.runs import rows_of

MOST_CLASSES, MOST_PANELS = 20, 9


def draw_mistakes(sheet: Sheet) -> tuple[Figure, str] | str:
    rows = [row for row in rows_of(sheet.report.functional.mistakes) if not is_missing(row.shared_mistakes)]
    if not rows:
        return "no run with logits has a teacher with logits and mistakes, and a control"
    most: dict[int, float] = {}
    for row in rows:
        most[row.class_index] = max(most.get(row.class_index, 0.0), row.teacher_mistakes)
    classes = sorted(sorted(most, key=lambda index: (-most[index], index))[:MOST_CLASSES])
    few = "" if len(most) <= MOST_CLASSES else (
        f" The {MOST_CLASSES} of {len(most)} classes in which a teacher makes most mistakes are shown."
    )  # fmt: skip
    shown, cut = first_of(group_by(rows, name_of_condition), MOST_PANELS, "conditions")
    figure, all_axes = panels(len(shown), sheet.width, 1.3 + 0.22 * max(len(classes), 6))
    for axes, (name, of_condition) in zip(all_axes, shown, strict=True):
        by_class = {row.class_index: row for row in of_condition}
        draw_condition(sheet, axes, name, [by_class[index] for index in classes if index in by_class])
    limits = [axes.get_xlim() for axes in all_axes]
    for axes in all_axes:  # one scale, so that panels can be compared
        axes.set_xlim(min(low for low, _ in limits), max(high for _, high in limits))
    controls = " or ".join(dict.fromkeys(name_of_control(row.control) for row in rows))
    legend_below(figure, {
        "distilled students": Line2D([], [], marker="o", ls="", ms=6.5, color=INK),
        controls: Line2D([], [], marker="o", ls="", ms=6.5, mfc="none", mec=INK, mew=1.2),
    })  # fmt: skip
    return figure, (
        "Of the test images of each class that the teacher gets wrong, those on which students (filled) and control "
        "runs (hollow) make the very same mistake; means over seeds, without a test. In brackets: the teacher's "
        f"mistakes.{few}{cut}"
    )


def name_of_condition(row: Any) -> str:
    """Return the name of a condition by its row of mistakes.csv."""
    setting = f", {row.setting}" if row.setting else ""
    return f"{row.student} {row.method} from {row.teacher}{setting}"


def draw_condition(sheet: Sheet, axes: Axes, name: str, rows: list[Any]) -> None:
    """Draw a row for each class of a condition, the first on top."""
    colour, inches = sheet.looks.colour_of(rows[0].method), panel_inches(axes)
    for place, row in enumerate(rows):
        parts = axes.plot([row.control_mistakes, row.shared_mistakes], [place, place], color=colour, lw=1.5)
        parts += axes.plot([row.control_mistakes], [place], "o", ms=6.5, mfc="none", mec=INK, mew=1.2)
        parts += axes.plot([row.shared_mistakes], [place], "o", ms=6.5, color=colour)
        text = (
            f"{name}, class {row.class_name}: {row.shared_mistakes:.1f} % of {row.teacher_mistakes:.0f} mistakes "
            f"shared, {name_of_control(row.control)}: {row.control_mistakes:.1f} %"
        )
        sheet.mark("mistakes", text, parts)
    name_panel(axes, "", "shared mistakes, % of the teacher's", "")
    axes.set_title(fit(name, inches - 2.0, lines=3), fontsize=TEXT)  # narrower than a panel, as its labels are wide
    axes.set_yticks(
        range(len(rows)),
        [f"{fit_ends(str(row.class_name), min(1.2, inches / 3.5))} ({row.teacher_mistakes:.0f})" for row in rows],
    )
    axes.set_ylim(len(rows) - 0.4, -0.6)
