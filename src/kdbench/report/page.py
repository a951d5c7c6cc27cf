"""Tables as the page shows them: at most eight columns at first, the others one click away."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from kdbench.report.anchors import row_anchor, run_anchor
from kdbench.report.column import Column
from kdbench.report.columns import (
    FIRST,
    MOST_FIRST,
    OF_CLASS,
    ONLY_IN_CSV,
    PER_CLASS,
    column_of,
    format_value,
    is_missing,
)
from kdbench.rundir.summary import KEY

TITLES = {
    "gains": (
        "Gains",
        "Each distilled or control group against its baseline, equal in all but method and teacher. Intervals are for "
        "each gain alone unless a column says otherwise; adjusted p are over all gains of one family.",
    ),
    "interactions": (
        "Interactions",
        "Whether the larger student gains more than the smaller one from the same teacher by the same method. A family "
        "of its own for the adjusted p; intervals are for each difference alone.",
    ),
    "capacity": (
        "Capacity",
        "Mean of all distilled gains of the larger student minus that of the smaller one. One test for each pair of "
        "students, not corrected.",
    ),
    "groups": ("Groups", "Runs that differ in their seeds alone."),
    "fidelity": (
        "Fidelity",
        "How close students come to their teacher, beside the baseline, which was trained without it; and how well "
        "they are calibrated. Means over seeds.",
    ),
    "transfer": (
        "Transfer",
        "How much closer to their own teacher the predictions of distilled students are than those of runs trained "
        "without it, by four distances. The unit is the student's seed; tests are one-sided rank tests, adjusted over "
        "the rows of all primary controls, and of each other control.",
    ),
    "asymmetry": (
        "Asymmetry",
        "Whether students take over their teacher's right or wrong answers: counts of images, and gains over the "
        "control as a share of the room that it leaves.",
    ),
    "mistakes": (
        "Shared mistakes by class",
        "Of the teacher's mistakes in each class, those that students and their primary control make too. No tests.",
    ),
    "deployment": (
        "Deployment",
        "What compression costs in accuracy, and what it saves, for each form of a network. Changes are paired by "
        "seed, and their intervals are not corrected. Latencies of different sessions cannot be compared.",
    ),
    "deployment_classes": (
        "Deployment by class",
        "Change of each class by compression in points of its own test images, not corrected.",
    ),
    "flips": (
        "Flips",
        "Test images that a run and the baseline run of the same seed classify differently. "
        "Each row is one pair of runs with a test of its own; they are not pooled, and their p are not corrected.",
    ),
    PER_CLASS: ("Accuracy by class", "Means over seeds."),
    "class_gains": (
        "Gain by class",
        "Gain of each class in points of its own test images, with its 95 % interval over seeds, not corrected.",
    ),
    "search": (
        "Search",
        "Each student and method that a search tuned: what its trials gain on the default setting, and what it gains "
        "over the baseline after as many trials. Validation accuracy, by the seed that chose.",
    ),
    "choices": (
        "Choices of settings",
        "Each setting that a study chose by validation accuracy: how far it led, and how far chance alone leads.",
    ),
    "components": (
        "Parts of the spread",
        "How much of the spread over runs comes from first weights, order of the images and teacher, where all of them "
        "were combined with each other.",
    ),
    "runs": ("Runs", "One row per run; everything above is computed from these."),
}
"""Title and note of each table, in the order of the page."""
NUMBERED = ("gains", "interactions", "groups", "transfer", "asymmetry", "deployment", "search")
"""Tables whose rows have anchors by their place."""
MOST_CLASSES = 20
"""Largest number of classes that the page shows as columns; more are rows."""


@dataclass(frozen=True)
class Cell:
    """Cell of the page's tables."""

    text: str
    sort: str
    """Value by which a column is sorted: a number, or the text; empty cells come last."""
    numeric: bool


@dataclass(frozen=True)
class PageTable:
    """Table of the page."""

    name: str
    title: str
    note: str
    columns: Sequence[tuple[str, Column]]
    """Name and description of each column; those shown at first come first."""
    rows: Sequence[Sequence[Cell]]
    anchors: Sequence[str]
    """Id of each row; empty where nothing links to it."""

    @property
    def first(self) -> int:
        """Number of columns that are shown at first."""
        wanted = FIRST.get(self.name)
        listed = [name for name, _ in self.columns if wanted is None or name in wanted]
        return min(len(listed), MOST_FIRST)


def page_table(name: str, table: pd.DataFrame, protocol: Sequence[str] = ()) -> PageTable:
    """Return a table as the page shows it: without columns that are empty throughout, or a role that all rows share.

    Args:
        name: name of the table.
        table: content of the table.
        protocol: sentences that each table's note ends with.
    """
    title, note = TITLES[name]
    note = " ".join([note, *protocol])
    classes = [c for c in table.columns if name == PER_CLASS and c.startswith(OF_CLASS)]
    if len(classes) > MOST_CLASSES:
        return classes_as_rows(title, note, table, classes)
    hidden = set(ONLY_IN_CSV.get(name, ()))
    if KEY.role in table and table[KEY.role].nunique(dropna=False) == 1:
        hidden.add(KEY.role)
    shown = [c for c in table.columns if c not in hidden and not table[c].map(is_missing_or_blank).all()]
    first = [c for c in FIRST.get(name, ()) if c in shown][:MOST_FIRST]
    shown = [*first, *(c for c in shown if c not in first)]
    described = {c: column_of(c, name) for c in shown}
    forms = [column.form for column in described.values()]
    rows = [[make_cell(value, form) for value, form in zip(row, forms, strict=True)] for row in table[shown].values]
    return PageTable(name, title, note, list(described.items()), rows, anchors_of(name, table))


def anchors_of(name: str, table: pd.DataFrame) -> list[str]:
    """Return the id of each row; empty in tables to which no figure links."""
    if name == "runs":
        return [run_anchor(key) for key in table[KEY.run_key]]
    return [row_anchor(name, number) if name in NUMBERED else "" for number in range(1, len(table) + 1)]


def classes_as_rows(title: str, note: str, table: pd.DataFrame, classes: Sequence[str]) -> PageTable:
    """Return the per-class table with a row per class and a column per row of the table."""
    headings = []
    for student, teacher, method, setting in table[[KEY.student, KEY.teacher, KEY.method, "setting"]].values:
        source = "" if is_missing_or_blank(teacher) else f" from {teacher}"
        headings.append(f"{student} {method}{source} {setting or ''}".strip())
    columns = [("class", Column("class", "name of the class", ""))]
    columns += [(heading, replace(column_of(classes[0], PER_CLASS), heading=heading)) for heading in headings]
    described = [column_of(c, PER_CLASS) for c in classes]
    rows = [
        [make_cell(column.heading, ""), *(make_cell(value, column.form) for value in table[c])]
        for c, column in zip(classes, described, strict=True)
    ]
    return PageTable(PER_CLASS, title, note, columns, rows, [""] * len(rows))


def is_missing_or_blank(value: Any) -> bool:
    return is_missing(value) or value == ""


def make_cell(value: Any, form: str) -> Cell:
    numeric = bool(form) and not isinstance(value, str)
    if is_missing(value):
        return Cell("", "", numeric)
    return Cell(format_value(value, form), repr(float(value)) if numeric else str(value), numeric)
