"""`kdbench-study study=NAME`: carry out a whole protocol, or say what it would be."""

import argparse
import logging
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from kdbench.errors import ConfigError, Parser, RunError
from kdbench.lockstep import MAX_LEARNERS
from kdbench.stopping import INTERRUPTED, NOT_FINISHED, TIME_IS_UP
from kdbench.study.carry_out import StudyRun
from kdbench.study.read import read_study, study_files

log = logging.getLogger(__name__)

A_YEAR = 365 * 24 * 60


def study(arguments: Sequence[str]) -> int:
    """Carry out the command line's study.

    Returns:
        The exit code: 0 done, 1 done without runs that failed twice, 3 time is up, 75 or 130 stopped by a signal.

    Raises:
        ConfigError: the study, or what it is to be changed to, cannot be.
    """
    given = parsed(arguments)
    plan = read_study(given.overrides, given.config_dir)
    run = StudyRun(plan, max_learners=given.max_learners)
    if given.dry_run:
        print(run.dry_run())
        return 0
    log.info("study %s: %s", plan.label, plan.config.question.strip())
    code = run.carry_out(given.minutes)
    print()
    if code in (TIME_IS_UP, INTERRUPTED, NOT_FINISHED):
        why = "time is up" if code == TIME_IS_UP else "other processes have the rest" if run.left else "stopped"
        print(f"{run.line()}\n{why}; the same command goes on: {shlex.join(['kdbench-study', *arguments])}")
        return code
    print(run.line())
    for title, error in run.failed.items():
        print(f"kdbench-study: error: failed twice: {title}: {error}", file=sys.stderr)
    return max(code, reported(run))


def reported(run: StudyRun) -> int:
    """Write the report of what a study found; its exit code."""
    from kdbench.report.command import report

    if not run.result_runs():
        print("no report: no run of a reporting stage is complete")
        return 0
    runs = run.folder / "runs.txt"
    runs.parent.mkdir(parents=True, exist_ok=True)
    runs.write_text("".join(f"{path}\n" for path in run.result_runs()))
    arguments = [f"@{runs}", "--out", str(run.folder / "report"), "--title", run.study.config.question.strip()]
    if run.selected.is_file():
        arguments += ["--select", str(run.selected)]
    print(shlex.join(["kdbench-report", *arguments]))
    try:
        return report(arguments)
    except ConfigError as error:
        raise RunError(str(error)) from None


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        prog="kdbench-study",
        description="Carry out a study: stages of sweeps, winners chosen on validation, a report. "
        "Stopped anywhere, the same command goes on.",
        epilog=f"studies: {', '.join(study_files(None))}. Example: kdbench-study study=lab --dry-run",
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE",
        help="study=NAME; final_seeds=[...], selection_seeds=[...], teacher_seeds=[...], select_undistilled=true, "
        "stages=[...] change the study; everything else is an override of every run, such as recipe=short",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say every run with its state, and the time left")
    parser.add_argument("--minutes", type=float, help="stop after so many, with exit code 3, to go on later")
    parser.add_argument(
        "--max-learners", type=int, default=MAX_LEARNERS,
        help=f"runs that train in lockstep, at most ({MAX_LEARNERS}); 1: one after the other",
    )  # fmt: skip
    parser.add_argument("--config-dir", type=Path, help="a folder of your own options, study/ among them")
    given, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        raise ConfigError(f"{unknown[0]} is no known flag; see kdbench-study --help")
    if given.minutes is not None and not 0 < given.minutes <= A_YEAR:
        raise ConfigError(f"--minutes is {given.minutes:g}; it may be any number above 0 and at most {A_YEAR}, a year")
    for override in given.overrides:
        if override.startswith("hydra"):
            raise ConfigError(
                f"{override}: a study carries its runs out itself, in lockstep where they can share; "
                "--max-learners 1 is one after the other"
            )
    if given.max_learners < 1:
        raise ConfigError(f"--max-learners is {given.max_learners}; it may be a whole number of at least 1")
    if given.config_dir is not None and not given.config_dir.is_dir():
        raise ConfigError(f"--config-dir is {given.config_dir}, and there is no such folder")
    return given
