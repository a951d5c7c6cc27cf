"""`kdbench-study study=NAME`: execute a whole protocol, or show its plan. Torch is imported after the arguments."""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.config.paths import is_folder
from kdbench.errors import ConfigError, Parser, RunError
from kdbench.report.command import MARGIN, add_tests, check_margin
from kdbench.study.read import read_study, study_files
from kdbench.sweep import MAX_LEARNERS
from kdbench.system.signals import INTERRUPTED, NOT_FINISHED, TIME_IS_UP

if TYPE_CHECKING:
    from kdbench.study.execute import StudyExecution
    from kdbench.study.register import Registration

log = logging.getLogger(__name__)

A_YEAR = 365 * 24 * 60


def study(arguments: Sequence[str]) -> int:
    """Execute the study of a command line, or show its plan.

    Returns:
        The exit code: 0 done, 1 done but for runs that failed, 2 the plan has refused runs, 3 time is up, 75 or 130
        stopped by a signal.

    Raises:
        ConfigError: the study, or a change of it, is not allowed.
    """
    given = parse_arguments(arguments)
    read = read_study(given.overrides, given.config_dir)
    if given.register:
        print(f"study {read.label}: composing its runs for the plan ...", flush=True)  # may take a minute
    # Late: --help and most mistakes need no torch.
    from kdbench.study.execute import StudyExecution
    from kdbench.study.overview import overview
    from kdbench.study.plan import StudyPlan
    from kdbench.study.register import describe_registration, register

    plan = StudyPlan(read, given.max_learners)
    if given.dry_run:
        print(f"{overview(plan)}\n{describe_registration(plan)}")
        return 2 if any(run.error for run in plan.all_runs()) else 0
    if given.register:
        print(registered(register(plan, given.analysis or "auto", given.margin or MARGIN)))
        return 0
    log.info("study %s: %s\n%s", read.label, plan.folder, read.config.question.strip())
    execution = StudyExecution(plan, show=show_runs)
    code = execution.execute(given.minutes)
    print(f"\n{execution.progress()}")
    if code in (TIME_IS_UP, INTERRUPTED, NOT_FINISHED):
        reason = "time is up" if code == TIME_IS_UP else "stopped"
        if execution.skipped:
            reason = "other processes hold the remaining runs"
        print(f"{reason}; to continue, give the same command: {shlex.join(['kdbench-study', *arguments])}")
        return code
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


def registered(registration: "Registration") -> str:
    """Return what was registered, in words."""
    plan, file = registration.plan, registration.file
    if not registration.is_new:
        return f"already registered on {plan.time:%Y-%m-%d at %H:%M %Z}, the same plan: {file}"
    tests = f"analysis {plan.analysis}, margin {plan.margin:g} points"
    content = f"gains: {len(plan.gains)}, interactions: {len(plan.interactions)}, {tests}"
    return f"registered: {file} ({content}); give the command without --register to execute the study"


def write_report(execution: "StudyExecution", given: argparse.Namespace) -> int:
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


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the checked arguments of a command line."""
    parser = Parser(
        prog="kdbench-study",
        description="Execute a study: stages of sweeps, winners chosen on validation data, a report. "
        "Stopped anywhere, the same command continues.",
        epilog=f"studies: {', '.join(study_files(None))}. Example: kdbench-study study=lab --dry-run",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE",
        help="study=NAME; final_seeds=[...], selection_seeds=[...], teacher_seeds=[...], select_baseline=true, "
        "stages=[...] change the study; everything else is an override of every run, such as recipe=short",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="show every run with its state, and the time left")
    parser.add_argument(
        "--register", action="store_true", help="write plan.yaml, what the study will test, before its first final run"
    )
    add_tests(parser)
    parser.add_argument("--minutes", type=float, help="stop after so many minutes, with exit code 3, to continue later")
    parser.add_argument(
        "--max-learners", type=int, default=MAX_LEARNERS,
        help=f"largest number of runs that train in lockstep ({MAX_LEARNERS}); 1: one after the other",
    )  # fmt: skip
    parser.add_argument("--config-dir", type=Path, help="folder of your own options, with study/ among them")
    given, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        raise ConfigError(f"{unknown[0]} is no known flag; see kdbench-study --help", code="usage", key=unknown[0])
    if given.minutes is not None and not 0 < given.minutes <= A_YEAR:
        raise ConfigError(
            f"--minutes is {given.minutes:g}; it must be any number above 0 and at most {A_YEAR}, a year",
            code="out_of_range",
            key="--minutes",
        )
    check_margin(given.margin)
    if given.max_learners < 1:
        raise ConfigError(
            f"--max-learners is {given.max_learners}; it must be a whole number of at least 1",
            code="out_of_range",
            key="--max-learners",
        )
    if given.config_dir is not None and not is_folder(given.config_dir):
        raise ConfigError(
            f"--config-dir is {given.config_dir}, and there is no such folder", code="not_found", key="--config-dir"
        )
    return given
