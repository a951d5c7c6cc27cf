"""`kdbench-report PATH... --out DIR`: what the runs support, and no more."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from kdbench.errors import ConfigError, Parser, RunError
from kdbench.report.build import build
from kdbench.report.select import read_selection
from kdbench.report.write import write_report
from kdbench.runs import check_writable


def report(arguments: Sequence[str]) -> int:
    """Write the command line's report and say where it is.

    Returns:
        The exit code: 1 if a damaged summary was left out, else 0.

    Raises:
        ConfigError: there is nothing to report, or it does not belong together.
        RunError: the report cannot be written.
    """
    given = parsed(arguments)
    selection = read_selection(given.select) if given.select else None
    made = build(given.paths, selection, given.margin, given.allow_mixed)
    try:
        page = write_report(made, given.out, given.title, ["kdbench-report", *arguments])
    except OSError as error:
        raise RunError(f"the report cannot be written to {given.out}: {error}") from error
    for line in made.damaged:
        print(f"kdbench-report: error: {line}", file=sys.stderr)
    for line in made.remarks:
        print(f"note: {line}")
    print("", *made.verdict, f"\nreport: {page}", sep="\n")
    return 1 if made.damaged else 0


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="kdbench-report",
        description="Tables, tests, figures and one page of finished runs.",
        epilog="Example: kdbench-report outputs/runs --out report. What every column means: docs/report.md.",
        fromfile_prefix_chars="@",
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH",
        help="a run directory, a folder that holds some, or @FILE with a path on each line",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder to write to")
    parser.add_argument("--select", type=Path, metavar="FILE", help="a study's selected.yaml: keep its winners only")
    parser.add_argument("--margin", type=float, default=0.1, help="of equivalence, in points of accuracy (0.1)")
    parser.add_argument(
        "--allow-mixed", action="store_true", help="take runs of different data sets or splits together"
    )
    parser.add_argument("--title", default="What distillation did", help="heads the page")
    for argument in arguments:
        if argument.startswith("@") and not Path(argument[1:]).is_file():
            raise ConfigError(f"{argument}: there is no file {argument[1:]}; @FILE holds a path on each line")
    given = parser.parse_args(arguments)
    if not (math.isfinite(given.margin) and given.margin > 0):
        raise ConfigError(f"--margin is {given.margin:g}; it may be any number of points above 0")
    check_writable(given.out, "--out")
    return given
