"""Surroundings of a figure: its width, the looks of methods, and the marks that link points to rows of the page."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kdbench.errors import printable
from kdbench.report.anchors import link, row_anchor, run_anchor
from kdbench.report.build import Report
from kdbench.report.column import POINTS
from kdbench.report.columns import format_value, is_missing
from kdbench.report.drawing import COLOURS, DASHES, GREY, INK, MARKERS, Width
from kdbench.report.gains import Gain
from kdbench.report.groups import BASELINE, CONTROL, RunGroup, percents
from kdbench.report.runs import rows_of

MOST_COLOURED = len(COLOURS)
"""Largest number of methods with a colour of their own."""


@dataclass(frozen=True)
class Mark:
    """Point or line of a figure that links to a row of the page."""

    href: str
    text: str
    """Name and numbers, shown on hover and read by screen readers."""


@dataclass(frozen=True, eq=False)
class Looks:
    """Colour, marker and dashes of methods; only some have a colour where there are many."""

    coloured: Sequence[str]
    """Methods with a colour and marker of their own."""
    methods: Sequence[str]
    """All methods but those of baselines."""

    @property
    def some_are_grey(self) -> bool:
        return len(self.coloured) < len(self.methods)

    def is_grey(self, run: Any) -> bool:
        return run.role != BASELINE and run.method not in self.coloured

    def colour(self, run: Any) -> str:
        if run.role == BASELINE:
            return INK
        return self.colour_of(run.method)

    def colour_of(self, method: str) -> str:
        """Return the colour of a method that is no baseline's."""
        return COLOURS[self.coloured.index(method)] if method in self.coloured else GREY

    def marker(self, run: Any) -> str:
        if run.role == BASELINE:
            return "o"
        return "." if self.is_grey(run) else MARKERS[self.coloured.index(run.method)]

    def dashes(self, run: Any, number: int) -> Any:
        """Return the line style of a method's line; `number` counts the lines of the method in its panel, from 0."""
        return "-" if run.role == BASELINE else DASHES[number % len(DASHES)]

    def caption(self) -> str:
        """Return a sentence on how the coloured methods were chosen, if not all are."""
        if not self.some_are_grey:
            return ""
        return (
            f" In colour: {len(self.coloured)} of {len(self.methods)} methods, those with a significant gain first, "
            "then those whose validation accuracy is farthest from the baseline's; the others are grey, and named "
            "where they are pointed at."
        )


def choose_looks(report: Report) -> Looks:
    """Return the looks of a report's methods.

    Where there are too many for colours, significance decides and then validation accuracy, never the size of a gain on
    the test set.
    """
    methods = sorted({group.shared.method for group in report.groups if group.shared.role != BASELINE})
    if len(methods) <= MOST_COLOURED:
        return Looks(methods, methods)
    rank = dict.fromkeys(methods, (False, 0.0))
    for gain, row in zip(report.gains, rows_of(report.gains_table), strict=True):
        own = (is_true(row.significant), abs(validation_gain(gain)))
        rank[row.method] = max(rank[row.method], own)
    chosen = sorted(methods, key=lambda method: rank[method], reverse=True)[:MOST_COLOURED]
    return Looks(sorted(chosen), methods)


def validation_gain(gain: Gain) -> float:
    """Return the difference of mean validation accuracies in points; 0 where it is not known."""
    base = percents(gain.baseline.runs.best_val_acc) if gain.baseline else []
    own = percents(gain.group.runs.best_val_acc)
    return float(np.mean(own) - np.mean(base)) if own and base else 0.0


@dataclass(frozen=True, eq=False)
class Sheet:
    """Content, width and looks of a figure to be drawn, and its marks."""

    report: Report
    width: Width
    looks: Looks
    marks: dict[str, Mark] = field(default_factory=dict)
    """Marks by the beginning of the ids of their parts."""
    points: dict[str, list[Mark]] = field(default_factory=dict)
    """Marks of the points of a line, by its id."""

    def mark(self, anchor: str, text: str, parts: Iterable[Any]) -> None:
        """Link the parts of a point or line, artists of one panel, to a row of the page."""
        name = f"mark{len(self.marks)}"
        self.marks[name] = Mark(link(anchor), printable(text))
        for number, part in enumerate(parts):
            part.set_gid(f"{name}.{number}")

    def mark_points(self, line: Any, marks: Sequence[Mark]) -> None:
        """Link each point of a line of markers, which is drawn much faster than as many lines, to a row of its own."""
        name = f"points{len(self.points)}"
        self.points[name] = list(marks)
        line.set_gid(name)

    def mark_group(self, group: RunGroup, text: str, parts: Iterable[Any]) -> None:
        """Link parts to a group's row; the text begins with the group's name."""
        number = self.report.groups.index(group) + 1
        self.mark(row_anchor("groups", number), f"{group.name}, {count(len(group.runs))}: {text}", parts)


def mark_of_run(run: Any, text: str) -> Mark:
    """Return a link to a run's row; the text begins with the run's name and seed."""
    seed = "" if run.seed is None else f", seed {run.seed}"
    return Mark(link(run_anchor(run.run_key)), printable(f"{run_name(run)}{seed}: {text}"))


def is_true(value: Any) -> bool:
    """Return a decision of a table as a bool; one that is missing is False."""
    return not is_missing(value) and bool(value)


def count(seeds: int) -> str:
    return f"{seeds:,} seed{'' if seeds == 1 else 's'}"


def points(value: Any) -> str:
    """Return a difference in points as text, with a minus sign as the axes have it."""
    return format_value(value, POINTS).replace("-", "\u2212")


def interval_text(low: Any, high: Any) -> str:
    """Return an interval as text; nothing where it is not known."""
    return "" if is_missing(low) or is_missing(high) else f"[{points(low)}, {points(high)}]"


def arm(run: Any) -> str:
    """Return method and teacher as text; controls are named as such."""
    control = f" ({CONTROL})" if run.role == CONTROL else ""
    return f"{run.method}{control}" + (f" from {run.teacher}" if run.teacher else "")


def run_name(run: Any) -> str:
    return f"{run.student} {arm(run)}"


def first_of(items: Sequence[Any], most: int, what: str) -> tuple[Sequence[Any], str]:
    """Return at most so many items, and a sentence for the caption if there are more."""
    return items[:most], f" The first {most} of {len(items)} {what} are shown." if len(items) > most else ""
