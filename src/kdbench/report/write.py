"""Writing a report: tables as CSV and LaTeX, figures, and the pages."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from kdbench import __version__
from kdbench.report.build import Report
from kdbench.report.columns import PER_CLASS, PUBLISHED, column_of, format_value
from kdbench.report.figures.save import save_figures
from kdbench.report.groups import columns_of, remark_without_validation
from kdbench.report.page import TITLES, page_table
from kdbench.rundir.summary import KEY

MOST_FLIPPED = 10
"""Largest number of test images on the page."""


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
    tables = {
        "runs": report.runs_table,
        "groups": report.groups_table,
        "gains": report.gains_table,
        "interactions": report.interactions_table,
        "capacity": report.capacity_table,
        "fidelity": report.fidelity.groups,
        PER_CLASS: report.fidelity.per_class,
        "class_gains": report.class_gains,
        "flips": report.fidelity.flips,
        "choices": report.choices,
        "components": report.components,
    }
    for name, table in tables.items():
        table.to_csv(out / f"{name}.csv", index=False)
    pictures, left_out = save_figures(report, out / "figures") if figures else ([], [])
    protocol = [sentence(remark) for remark in remark_without_validation(report.runs)]
    (out / "tables.tex").write_text(latex(tables, protocol), encoding="utf-8")
    content = {
        "title": title,
        "verdict": report.verdict,
        "remarks": [*report.remarks, *left_out],
        "damaged": report.damaged,
        "failed": report.failed,
        "flipped": report.flipped[:MOST_FLIPPED],
        "tables": [page_table(name, tables[name], protocol) for name in TITLES if len(tables[name])],
        "pictures": pictures,
        "margin": report.margin,
        "std": f"{report.std:.4f} points" if report.std > 0 else "unknown",
        "command": shlex.join(command),
        "environment": list_environment(report.runs),
        "version": __version__,
    }
    templates = Environment(
        loader=PackageLoader("kdbench.report"),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"markdown": escape_markdown}
    for page in ("report.md", "report.html"):
        (out / page).write_text(templates.get_template(f"{page}.j2").render(content), encoding="utf-8")
    return out / "report.html"


def sentence(remark: str) -> str:
    return f"{remark[0].upper()}{remark[1:]}."


def latex(tables: dict[str, pd.DataFrame], protocol: Sequence[str] = ()) -> str:
    """Return the tables for a publication, for the package booktabs. `protocol`: sentences that a reader needs."""
    parts = [
        "% Requires \\usepackage{booktabs}. Accuracies in per cent, gains in points; "
        "intervals are 95 % (Welch), not corrected.\n"
        "% p (Holm): two-sided Welch tests, corrected over all rows of their table. "
        "Detectable: 80 % power in one test at 0.05.\n" + "".join(f"% {line}\n" for line in protocol)
    ]
    for name, columns in PUBLISHED.items():
        table = tables[name]
        if not len(table):
            continue
        cells = {c: [format_value(value, column_of(c).form) for value in table[c]] for c in columns}
        headed = pd.DataFrame(cells).rename(columns={c: column_of(c).heading for c in columns})
        alignment = "".join("r" if column_of(c).form else "l" for c in columns)
        parts.append(f"% {TITLES[name][0]}\n" + headed.to_latex(index=False, escape=True, column_format=alignment))
    return "\n".join(parts).replace("< 0.0001", "$<$ 0.0001")


def list_environment(runs: pd.DataFrame) -> list[tuple[str, str]]:
    """Return with which software, devices, precisions and data the runs were made, each with its values."""
    columns = columns_of(runs.columns, (KEY.environment, KEY.precision, KEY.dataset))
    values = {c.rpartition(".")[2]: ", ".join(dict.fromkeys(str(v) for v in runs[c] if v is not None)) for c in columns}
    return [(key.replace("_", " "), listed) for key, listed in sorted(values.items()) if listed]


def escape_markdown(text: str) -> str:
    """Return text that Markdown prints as it is, in a table too."""
    return re.sub(r"([\\`*_{}\[\]<>|#&~])", r"\\\1", str(text)).replace("\n", " ")
