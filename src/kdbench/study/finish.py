"""The end of `kdbench-study`: execute what is left and write the report, in this process or in the last job."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from kdbench.errors import ConfigError, RunError
from kdbench.study.execute import StudyExecution
from kdbench.system import signals
from kdbench.system.signals import INTERRUPTED, NOT_FINISHED, TIME_IS_UP


def finish_study(
    execution: StudyExecution, arguments: Sequence[str], given: argparse.Namespace, last: bool = False
) -> int:
    """Execute what is left of a study, write its report, and return the exit code.

    Args:
        execution: of the study.
        arguments: arguments of the command line.
        given: the same, parsed.
        last: write the report also where other processes hold runs; the exit code is 1 then. For a job that would be
            requeued, and find them held again.
    """
    code = execution.execute(given.minutes)
    print(f"\n{execution.progress()}")
    if code in (TIME_IS_UP, INTERRUPTED, NOT_FINISHED):
        reason = "time is up" if code == TIME_IS_UP else "stopped"
        if execution.skipped:
            reason = "other processes hold the remaining runs"
        print(f"{reason}; to continue, give the same command: {shlex.join(['kdbench-study', *arguments])}")
        if not last or signals.requested() is not None:
            return code
        code = 1
    for title, message in execution.failed.items():
        print(f"kdbench-study: error: not done: {title}: {message}", file=sys.stderr)
    return max(code, write_report(execution, given))


def show_runs(paths: Sequence[Path]) -> None:
    """Print the table of some runs: sizes and latencies of measurements, accuracies of all others."""
    from kdbench.pipeline.tables import measurement_table
    from kdbench.report.table import runs_table
    from kdbench.rundir.summary import read_summary

    found = [(path, read_summary(path)) for path in paths]
    are_measured = all(summary.measurement for _, summary in found)
    print(f"\n{measurement_table(found) if are_measured else runs_table(paths)}")


def write_report(execution: StudyExecution, given: argparse.Namespace) -> int:
    """Write the report of a study's results and return its exit code.

    Args:
        execution: executed study.
        given: arguments of the command line.
    """
    from kdbench.report.command import report
    from kdbench.runner.images import read_test_images
    from kdbench.study.register import find_plan

    plan = execution.plan
    paths = plan.result_paths()
    if not paths:
        print("no report: no run of a reporting stage is complete")
        return 0
    runs = plan.folder / "runs.txt"
    runs.write_text("".join(f"{path}\n" for path in (*paths, *plan.failed_paths())))
    question = plan.study.config.question.strip()
    arguments = [f"@{runs}", "--out", str(plan.folder / "report"), f"--title={question}"]
    if plan.selected.is_file():
        arguments += ["--select", str(plan.selected)]
    if plan_file := find_plan(plan):
        arguments += ["--plan", str(plan_file)]
    for flag, value in (("--analysis", given.analysis), ("--margin", given.margin)):
        arguments += [flag, str(value)] if value is not None else []
    print(shlex.join(["kdbench-report", *arguments]))
    try:
        return report(arguments, read_test_images)
    except ConfigError as error:
        raise RunError(str(error), code=error.code, key=error.key) from None
