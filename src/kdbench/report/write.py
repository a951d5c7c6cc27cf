"""Writing a report: tables as CSV and LaTeX, figures, and the pages."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from kdbench import __version__
from kdbench.errors import printable
from kdbench.report.build import Report
from kdbench.report.figures.save import save_figures
from kdbench.report.groups import remark_without_validation
from kdbench.report.latex import latex_tables
from kdbench.report.page import TITLES, page_table
from kdbench.report.results import Making, environment_of, tables_of, write_results
from kdbench.report.verdict import sentence

MATRIX_FILE = "agreement_matrix.csv"
"""Agreement of every model with every other: too large for the page and results.json."""
DIRECTION = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that change the direction of text."""


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
    tables = tables_of(report)
    for name, table in tables.items():
        table.to_csv(out / f"{name}.csv", index=False)
    if report.functional.matrix:
        report.functional.matrix.table.to_csv(out / MATRIX_FILE, index=False)
    pictures, left_out = save_figures(report, out / "figures") if figures else ([], [])
    protocol = [sentence(remark) for remark in remark_without_validation(report.runs)]
    (out / "tables.tex").write_text(latex_tables(tables, protocol), encoding="utf-8")
    write_results(report, Making(title, shlex.join(command), out, pictures, left_out))
    content = {
        "title": title,
        "verdict": report.verdict,
        "functional": report.functional.sentences,
        "deployment": report.deployment.sentences,
        "search": report.search.sentences,
        "plan": report.plan,
        "changes": report.changes,
        "remarks": [*report.remarks, *left_out],
        "damaged": report.damaged,
        "failed": report.failed,
        "flipped": report.flipped,
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
        finalize=without_direction,
    )
    templates.filters |= {"markdown": escape_markdown}
    for page in ("report.md", "report.html"):
        (out / page).write_text(templates.get_template(f"{page}.j2").render(content), encoding="utf-8")
    return out / "report.html"


def without_direction(value: Any) -> Any:
    """Return text with the characters that change the direction of what follows as their escapes."""
    return DIRECTION.sub(lambda found: printable(found[0]), value) if type(value) is str else value


def escape_markdown(text: str) -> str:
    """Return text that Markdown prints as it is, in a table too."""
    return re.sub(r"([\\`*_{}\[\]<>|#&~])", r"\\\1", str(text)).replace("\n", " ")
