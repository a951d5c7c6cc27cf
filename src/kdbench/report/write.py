"""A report's files: tables as CSV and LaTeX, figures, and the pages."""

import base64
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from kdbench import __version__
from kdbench.report.build import Report
from kdbench.report.columns import column_of, is_missing, printed
from kdbench.report.figures import Material, Picture, draw_all

HIDDEN = {
    "gains": ("teacher_seed",),
    "interactions": ("teacher_seed",),
    "groups": ("teacher_seed",),
    "runs": ("init_seed", "data_seed", "teacher_seed", "params", "macs", "kl_t1", "kl_t4", "nll", "ece", "precision"),
}
"""Columns that stand in a CSV file alone."""
PUBLISHED = {
    "groups": ("student", "teacher", "method", "setting", "n", "mean", "std", "mean_last", "std_last"),
    "gains": (
        "student",
        "teacher",
        "method",
        "setting",
        "n",
        "n_base",
        "delta",
        "ci_low",
        "ci_high",
        "p_holm",
        "mde80",
    ),
    "interactions": (
        "method",
        "teacher",
        "student_a",
        "student_b",
        "gain_a",
        "gain_b",
        "difference",
        "ci_low",
        "ci_high",
        "p_holm",
        "mde80",
    ),
}
"""Columns of tables.tex."""


@dataclass(frozen=True)
class Cell:
    text: str
    sort: str
    """What a column is sorted by: a number, or the text; empty cells come last."""
    numeric: bool


@dataclass(frozen=True)
class Table:
    """A table of the page."""

    name: str
    title: str
    note: str
    columns: Sequence[tuple[str, Any]]
    rows: Sequence[Sequence[Cell]]


def write_report(report: Report, out: Path, title: str, command: Sequence[str]) -> Path:
    """Write everything into a folder, which may exist.

    Args:
        report: What is said.
        out: Files of earlier reports in it are replaced.
        title: Heads the pages.
        command: That made it, to be repeated.

    Returns:
        The page, report.html.
    """
    out.mkdir(parents=True, exist_ok=True)
    tables = {
        "runs": report.runs_table,
        "groups": report.groups_table,
        "gains": report.gains_table,
        "interactions": report.interactions_table,
        "fidelity": report.fidelity.groups,
        "per_class": report.fidelity.per_class,
        "flips": report.fidelity.flips,
    }
    for name, table in tables.items():
        table.to_csv(out / f"{name}.csv", index=False)
    material = Material(report.runs, report.groups, report.gains, report.gains_table, report.std, report.margin)
    pictures, left_out = draw_all(material, out / "figures")
    (out / "tables.tex").write_text(latex(tables))
    content = {
        "title": title,
        "verdict": report.verdict,
        "remarks": [*report.remarks, *left_out],
        "damaged": report.damaged,
        "tables": [page_table(name, tables[name], report) for name in TITLES if len(tables[name])],
        "pictures": pictures,
        "margin": report.margin,
        "std": f"{report.std:.4f} points" if report.std > 0 else "unknown",
        "command": shlex.join(command),
        "environment": environment(report),
        "version": __version__,
    }
    templates = Environment(
        loader=PackageLoader("kdbench.report"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"embedded": embedded, "markdown": markdown}
    for page in ("report.md", "report.html"):
        (out / page).write_text(templates.get_template(f"{page}.j2").render(content))
    return out / "report.html"


TITLES = {
    "gains": ("Gains", "Each distilled group against its undistilled student, equal in all but method and teacher."),
    "interactions": (
        "Interactions",
        "Whether the larger student gains more than the smaller one from the same teacher by the same method.",
    ),
    "groups": ("Groups", "Runs that differ in their seeds alone."),
    "fidelity": (
        "Fidelity",
        "How close students come to their teacher, beside undistilled students who never saw it; and how well they are "
        "calibrated. Means over seeds.",
    ),
    "flips": (
        "Flips",
        "Test images that change sides between a distilled student and the undistilled one of the same seed. "
        "Each row is one pair of runs with a test of its own; they are not pooled, and their p are not corrected.",
    ),
    "per_class": ("Accuracy by class", "Means over seeds."),
    "runs": ("Runs", "One row for each; what everything above is computed from."),
}


def page_table(name: str, table: pd.DataFrame, report: Report) -> Table:
    """A table as the page shows it: without columns that are empty throughout."""
    title, note = TITLES[name]
    shown = [c for c in table.columns if c not in HIDDEN.get(name, ()) and not table[c].map(is_missing_or_blank).all()]
    rows = [
        [cell(value, column_of(c).form) for c, value in zip(shown, row, strict=True)] for row in table[shown].values
    ]
    return Table(name, title, note, [(c, column_of(c)) for c in shown], rows)


def is_missing_or_blank(value: Any) -> bool:
    return is_missing(value) or value == ""


def cell(value: Any, form: str) -> Cell:
    numeric = bool(form) and not isinstance(value, str)
    if is_missing(value):
        return Cell("", "", numeric)
    return Cell(printed(value, form), repr(float(value)) if numeric else str(value), numeric)


def latex(tables: dict[str, pd.DataFrame]) -> str:
    """The tables that one publishes, for the package booktabs."""
    parts = [
        "% Needs \\usepackage{booktabs}. Accuracies in per cent, gains in points; "
        "intervals are 95 % (Welch), not corrected.\n"
        "% p (Holm): two-sided Welch tests, corrected over all rows of their table. "
        "Detectable: 80 % power in one test at 0.05.\n"
    ]
    for name, columns in PUBLISHED.items():
        table = tables[name]
        if not len(table):
            continue
        cells = {c: [printed(value, column_of(c).form) for value in table[c]] for c in columns}
        headed = pd.DataFrame(cells).rename(columns={c: column_of(c).heading for c in columns})
        alignment = "".join("r" if column_of(c).form else "l" for c in columns)
        parts.append(f"% {TITLES[name][0]}\n" + headed.to_latex(index=False, escape=True, column_format=alignment))
    return "\n".join(parts).replace("< 0.0001", "$<$ 0.0001")


def environment(report: Report) -> list[tuple[str, str]]:
    """What the runs were made with, each with its values."""
    seen: dict[str, dict[str, None]] = {}
    for run in report.runs:
        made_with = dict(run["environment"] or {}) | {"precision": run["precision"], "data set": run["dataset"]}
        for key, value in made_with.items():
            if value is not None:
                seen.setdefault(key, {})[str(value)] = None
    return [(key.replace("_", " "), ", ".join(values)) for key, values in sorted(seen.items())]


def embedded(picture: Picture) -> str:
    """A figure as an address that holds the figure itself."""
    return f"data:image/svg+xml;base64,{base64.b64encode(picture.svg.read_bytes()).decode()}"


def markdown(text: str) -> str:
    """Text that Markdown prints as it is, in a table too."""
    return re.sub(r"([\\`*_{}\[\]<>|#&~])", r"\\\1", str(text)).replace("\n", " ")
