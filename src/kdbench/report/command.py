"""`kdbench-report PATH... --out DIR`. Imports pandas and matplotlib only where the report is made."""

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.config.paths import is_file, is_folder
from kdbench.errors import ConfigError, Parser, RunError, printable
from kdbench.rundir.files import check_writable

if TYPE_CHECKING:
    from kdbench.report.flipped import ImageReader

MARGIN = 0.1
"""Margin of equivalence, points of accuracy."""
LARGEST_MARGIN = 100
"""Points that no difference of accuracies reaches."""
ANALYSES = ("auto", "blocks", "paired", "welch")
"""Values of --analysis: those of `design.Analysis` that a report can have. Not read from there: that imports scipy, for
which --help would wait."""


def report(arguments: Sequence[str], images: "ImageReader | None" = None) -> int:
    """Write the report of the command line and print its verdict.

    Args:
        arguments: arguments of the command line.
        images: reader of the test images of a run, for pictures of those that flip; None: no pictures of them.

    Returns:
        Exit code: 1 if a damaged summary was left out, else 0.

    Raises:
        ConfigError: there is nothing to report, or the runs do not belong together.
        RunError: the report cannot be written.
    """
    options = parse_arguments(arguments)
    from kdbench.report.build import build_report
    from kdbench.report.changes import describe_changes
    from kdbench.report.design import Analysis
    from kdbench.report.failures import remark_failed
    from kdbench.report.plan import read_plan
    from kdbench.report.results import Making, read_results, results_of
    from kdbench.report.search.read import read_search, search_beside
    from kdbench.report.select import read_selection
    from kdbench.report.write import write_report

    selection = read_selection(options.select) if options.select else None
    search = options.search or (search_beside(options.select) if options.select else None)
    reader = images if options.figures else None
    plan = read_plan(options.plan) if options.plan else None
    old = read_results(options.against) if options.against else None  # it may lie where the new one is written
    margin = options.margin or (plan.margin if plan else MARGIN)
    analysis = options.analysis or (plan.analysis if plan else "auto")
    made = build_report(
        options.paths,
        selection,
        margin,
        options.allow_mixed,
        analysis=Analysis(analysis),
        images=reader,
        data_root=options.data_root,
        plan=plan,
        search=read_search(search) if search else None,
    )
    command = ["kdbench-report", *arguments]
    if old:
        now = results_of(made, Making(options.title, shlex.join(command), options.out))
        made = dataclasses.replace(made, changes=describe_changes(old, now))
    try:
        page = write_report(made, options.out, options.title, command, options.figures)
    except OSError as error:
        raise RunError(
            f"the report cannot be written to {options.out}: {error}", code="not_writable", key="--out"
        ) from error
    for line in made.damaged:
        print(f"kdbench-report: error: {line}", file=sys.stderr)
    for line in (*remark_failed(made.failed), *made.remarks):
        print(f"note: {printable(line)}")
    for title, lines in (("plan", made.plan), ("changes", made.changes)):
        if lines:
            print(f"\n{title}:", *map(printable, lines), sep="\n")
    sentences = [*made.verdict, *made.functional.sentences, *made.deployment.sentences, *made.search.sentences]
    print("", *map(printable, sentences), f"\nreport: {page}", sep="\n")
    return 1 if made.damaged else 0


def report_runs(paths: Sequence[Path], folder: str, images: "ImageReader | None" = None) -> None:
    """Write the report that a run or a sweep ends with, or print why there is none: the runs are complete all the same.

    Args:
        paths: directories of the runs, complete or failed.
        folder: folder to write to.
        images: reader of test images, as `report` takes it.
    """
    try:
        report([*map(str, dict.fromkeys(paths)), "--out", folder], images)
    except ConfigError as error:
        print(f"no report: {error}")


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of the command line.

    Raises:
        ConfigError: an option is wrong, or the report cannot be written where `--out` says.
    """
    parser = Parser(
        prog="kdbench-report",
        description="Write tables, tests, figures and one page about finished runs.",
        epilog="Example: kdbench-report outputs/runs --out report. The columns: docs/report.md.",
        fromfile_prefix_chars="@",
    )
    parser.add_argument(
        "paths", nargs="+", type=Path, metavar="PATH",
        help="run directory, folder that holds some, or @FILE with a path on each line",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--select", type=Path, metavar="FILE", help="selected.yaml of a study: report its winners only")
    parser.add_argument(
        "--search", type=Path, metavar="FILE",
        help="search of settings, OUTPUT_ROOT/searches/NAME: say how much of a gain it explains (that of --select)",
    )  # fmt: skip
    add_tests(parser)
    parser.add_argument("--plan", type=Path, metavar="FILE", help="plan.yaml of a study: say whether it was followed")
    parser.add_argument(
        "--against", type=Path, metavar="OLD", help="folder of an earlier report: say which verdicts changed, and why"
    )
    parser.add_argument("--allow-mixed", action="store_true", help="accept runs of different data sets or splits")
    parser.add_argument(
        "--data-root", type=Path, metavar="DIR",
        help="folder of the data, for pictures of the images that flip (the runs' own, or $KDBENCH_DATA)",
    )  # fmt: skip
    parser.add_argument("--title", default="Gains from distillation", help="heading of the page")
    parser.add_argument("--no-figures", dest="figures", action="store_false", help="write tables and page only")
    for argument in arguments:
        if argument.startswith("@") and not is_file(Path(argument[1:])):
            raise ConfigError(
                f"{argument}: the file {argument[1:]} was not found; @FILE holds a path on each line",
                code="not_found",
                key="PATH",
            )
    options = parser.parse_args(arguments)
    check_margin(options.margin)
    if options.data_root and not is_folder(options.data_root):
        raise ConfigError(
            f"--data-root is {options.data_root}, and there is no such folder", code="not_found", key="--data-root"
        )
    check_writable(options.out, "--out")
    return options


def add_tests(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a report tests; absent they are those of its plan, or the usual ones."""
    parser.add_argument(
        "--margin", type=float, help=f"margin of equivalence, in points of accuracy (the plan's, or {MARGIN:g})"
    )
    parser.add_argument(
        "--analysis", choices=ANALYSES, help="primary analysis (the plan's, or auto: by the rule in docs/report.md)"
    )


def check_margin(margin: float | None) -> None:
    """Check a margin of equivalence, if one is given.

    Raises:
        ConfigError: it is not above 0 and below 100.
    """
    if margin is not None and not 0 < margin < LARGEST_MARGIN:
        raise ConfigError(
            f"--margin is {margin:g}; it must be a number of points above 0 and below {LARGEST_MARGIN}",
            code="out_of_range",
            key="--margin",
        )
