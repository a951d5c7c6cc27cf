"""`kdbench-study study=NAME`: execute a whole protocol, or show its plan. Torch is imported after the arguments."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.config.paths import is_folder
from kdbench.errors import ConfigError, Parser
from kdbench.report.command import MARGIN, add_tests, check_margin
from kdbench.study.read import read_study, study_files
from kdbench.sweep import MAX_LEARNERS

if TYPE_CHECKING:
    from kdbench.study.register import Registration
    from kdbench.sweep.launcher import GroupLauncher

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
    from kdbench.study.finish import finish_study, show_runs
    from kdbench.study.launcher import launcher_of
    from kdbench.study.overview import overview
    from kdbench.study.plan import StudyPlan
    from kdbench.study.register import describe_registration, register
    from kdbench.study.slurm import submit_study
    from kdbench.sweep.slurm_options import SlurmOptions

    launcher = launcher_of(read)
    plan = StudyPlan(read, max_learners_of(launcher, given.max_learners))
    if given.dry_run:
        print(f"{overview(plan)}\n{describe_registration(plan)}")
        return 2 if any(run.error for run in plan.all_runs()) else 0
    if given.register:
        print(registration_text(register(plan, given.analysis or "auto", given.margin or MARGIN)))
        return 0
    if given.wait and "hydra/launcher=slurm" not in read.launcher:
        raise ConfigError(
            "--wait is for the jobs of hydra/launcher=slurm; here, the study is executed until its end anyway",
            code="usage",
            key="--wait",
        )
    log.info("study %s: %s\n%s", read.label, plan.folder, read.config.question.strip())
    if launcher:
        launcher.check(plan.all_runs())
        if isinstance(launcher.keys, SlurmOptions):
            return submit_study(StudyExecution(plan), launcher.keys, arguments, given)
    return finish_study(StudyExecution(plan, show=show_runs, launcher=launcher), arguments, given)


def max_learners_of(launcher: "GroupLauncher | None", given: int | None) -> int:
    """Return the size of the largest group, which a launcher has as a key of its own.

    Raises:
        ConfigError: both are given.
    """
    if launcher and given is not None:
        raise ConfigError(
            f"--max-learners is {given}, and hydra/launcher has a key of its own; give "
            f"hydra.launcher.max_learners={given} instead",
            code="usage",
            key="--max-learners",
        )
    return launcher.max_learners if launcher else given or MAX_LEARNERS


def registration_text(registration: "Registration") -> str:
    """Return what was registered, in words."""
    plan, file = registration.plan, registration.file
    if not registration.is_new:
        return f"already registered on {plan.time:%Y-%m-%d at %H:%M %Z}, the same plan: {file}"
    tests = f"analysis {plan.analysis}, margin {plan.margin:g} points"
    content = f"gains: {len(plan.gains)}, interactions: {len(plan.interactions)}, {tests}"
    return f"registered: {file} ({content}); give the command without --register to execute the study"


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
        help="study=NAME; hydra/launcher=NAME and hydra.launcher.KEY=VALUE execute it on an engine; final_seeds=[...], "
        "selection_seeds=[...], teacher_seeds=[...], select_baseline=true, stages=[...] change the study; everything "
        "else is an override of every run, such as recipe=short",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="show every run with its state, and the time left")
    parser.add_argument(
        "--register", action="store_true", help="write plan.yaml, what the study will test, before its first final run"
    )
    add_tests(parser)
    parser.add_argument("--minutes", type=float, help="stop after so many minutes, with exit code 3, to continue later")
    parser.add_argument(
        "--max-learners", type=int,
        help=f"largest number of runs that train in lockstep ({MAX_LEARNERS}); 1: one after the other",
    )  # fmt: skip
    parser.add_argument(
        "--wait",
        action="store_true",
        help="with hydra/launcher=slurm: wait until its jobs have ended",
    )
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
    if given.max_learners is not None and given.max_learners < 1:
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
