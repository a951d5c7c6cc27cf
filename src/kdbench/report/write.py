"""Writing a report: tables as CSV and LaTeX, figures, and the pages."""

import base64
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from kdbench import __version__
from kdbench.report.build import Report
from kdbench.report.columns import OF_CLASS, ONLY_IN_CSV, Column, column_of, format_value, is_missing
from kdbench.report.figures import Picture, save_figures
from kdbench.report.groups import remark_without_validation
from kdbench.report.latex import latex_tables
from kdbench.report.results import Making, environment_of, tables_of, write_results
from kdbench.rundir.summary import KEY


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
    columns: Sequence[tuple[str, Any]]
    rows: Sequence[Sequence[Cell]]


def write_report(report: Report, out: Path, title: str, command: Sequence[str], figures: bool = True) -> Path:
    """Write tables, figures and pages into a folder, which may exist.

    Args:
        report: content of the report.
        out: folder; files of earlier reports in it are replaced.
        title: heading of the pages.
        command: command that makes the report again.
        figures: draw the figures.

    Returns:
        The page, report.html.
    """
    out.mkdir(parents=True, exist_ok=True)
    tables = {name: table for name, table in tables_of(report).items() if name in TITLES or len(table.columns)}
    for name, table in tables.items():
        table.to_csv(out / f"{name}.csv", index=False)
    pictures, left_out = save_figures(report, out / "figures") if figures else ([], [])
    protocol = [sentence(remark) for remark in remark_without_validation(report.runs)]
    (out / "tables.tex").write_text(latex_tables(tables, protocol))
    write_results(report, Making(title, shlex.join(command), out, pictures, left_out))
    content = {
        "title": title,
        "verdict": report.verdict,
        "plan": report.plan,
        "changes": report.changes,
        "remarks": [*report.remarks, *left_out],
        "damaged": report.damaged,
        "tables": [page_table(name, tables[name], protocol) for name in TITLES if len(tables[name])],
        "pictures": pictures,
        "margin": report.margin,
        "std": f"{report.std:.4f} points" if report.std > 0 else "unknown",
        "command": shlex.join(command),
        "environment": [
            (key.replace("_", " "), ", ".join(values)) for key, values in environment_of(report.runs).items()
        ],
        "version": __version__,
    }
    templates = Environment(
        loader=PackageLoader("kdbench.report"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"data_url": data_url, "markdown": escape_markdown}
    for page in ("report.md", "report.html"):
        (out / page).write_text(templates.get_template(f"{page}.j2").render(content))
    return out / "report.html"


TITLES = {
    "gains": ("Gains", "Each distilled or control group against its baseline, equal in all but method and teacher."),
    "interactions": (
        "Interactions",
        "Whether the larger student gains more than the smaller one from the same teacher by the same method.",
    ),
    "groups": ("Groups", "Runs that differ in their seeds alone."),
    "fidelity": (
        "Fidelity",
        "How close students come to their teacher, beside the baseline, which was trained without it; and how well "
        "they are calibrated. Means over seeds.",
    ),
    "flips": (
        "Flips",
        "Test images that a run and the baseline run of the same seed classify differently. "
        "Each row is one pair of runs with a test of its own; they are not pooled, and their p are not corrected.",
    ),
    "per_class": ("Accuracy by class", "Means over seeds."),
    "runs": ("Runs", "One row per run; everything above is computed from these."),
}


MOST_CLASSES = 20
"""Largest number of classes that the page shows as columns; more are rows."""


def sentence(remark: str) -> str:
    return f"{remark[0].upper()}{remark[1:]}."


def page_table(name: str, table: pd.DataFrame, protocol: Sequence[str] = ()) -> PageTable:
    """Return a table as the page shows it: without columns that are empty throughout, or a role that all rows share.

    Args:
        name: name of the table.
        table: its content.
        protocol: sentences that each table's note ends with.
    """
    title, note = TITLES[name]
    note = " ".join([note, *protocol])
    classes = [c for c in table.columns if c.startswith(OF_CLASS)]
    if len(classes) > MOST_CLASSES:
        return classes_as_rows(title, note, table, classes)
    hidden = [*ONLY_IN_CSV.get(name, ()), *((KEY.role,) if table.role.nunique(dropna=False) == 1 else ())]
    shown = [c for c in table.columns if c not in hidden and not table[c].map(is_missing_or_blank).all()]
    forms = [column_of(c).form for c in shown]
    rows = [[make_cell(value, form) for value, form in zip(row, forms, strict=True)] for row in table[shown].values]
    return PageTable(name, title, note, [(c, column_of(c)) for c in shown], rows)


def classes_as_rows(title: str, note: str, table: pd.DataFrame, classes: Sequence[str]) -> PageTable:
    """Return the per-class table with a row per class and a column per row of the table."""
    headings = []
    for student, teacher, method, setting in table[[KEY.student, KEY.teacher, KEY.method, "setting"]].values:
        source = "" if is_missing_or_blank(teacher) else f" from {teacher}"
        headings.append(f"{student} {method}{source} {setting or ''}".strip())
    columns = [("class", Column("class", "name of the class", ""))]
    columns += [(heading, replace(column_of(classes[0]), heading=heading)) for heading in headings]
    rows = [
        [make_cell(column_of(c).heading, ""), *(make_cell(value, column_of(c).form) for value in table[c])]
        for c in classes
    ]
    return PageTable("per_class", title, note, columns, rows)


def is_missing_or_blank(value: Any) -> bool:
    return is_missing(value) or value == ""


def make_cell(value: Any, form: str) -> Cell:
    numeric = bool(form) and not isinstance(value, str)
    if is_missing(value):
        return Cell("", "", numeric)
    return Cell(format_value(value, form), repr(float(value)) if numeric else str(value), numeric)


def data_url(picture: Picture) -> str:
    """Return a figure as an address that holds the figure itself."""
    return f"data:image/svg+xml;base64,{base64.b64encode(picture.svg.read_bytes()).decode()}"


def escape_markdown(text: str) -> str:
    """Return text that Markdown prints as it is, in a table too."""
    return re.sub(r"([\\`*_{}\[\]<>|#&~])", r"\\\1", str(text)).replace("\n", " ")
