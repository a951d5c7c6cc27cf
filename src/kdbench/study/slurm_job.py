"""Jobs of a study on SLURM: they complete groups of a stage, plan a stage, and write the report.

submitit pickles these objects. Each may be stopped and requeued at any time, and then begins again: runs that are
complete are skipped, and winners follow from the runs alone.
"""

import argparse
import logging
import os
import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdbench.config.derived import MEASURE
from kdbench.errors import RunError, report_error
from kdbench.rundir.files import atomic_path
from kdbench.rundir.summary import Status
from kdbench.study.execute import StudyExecution
from kdbench.study.finish import finish_study, show_runs
from kdbench.study.plan import StudyPlan
from kdbench.study.progress import is_done, lack_of_teacher
from kdbench.study.read import read_study
from kdbench.sweep.execute import check_runs, epochs_with_teacher, numbers_of, one_by_one, share_cache
from kdbench.sweep.lockstep import group_planned
from kdbench.sweep.plan import JobResult, PlannedRun
from kdbench.sweep.slurm_job import GroupJob, SlurmCall, give_up, leaving_when_stopped, own_task, progress_of, times
from kdbench.sweep.tracking import set_group
from kdbench.sweep.worker import GroupTask, enter_folder, import_path, pack_group, unpack_group
from kdbench.system import signals
from kdbench.system.cpu import configure_openmp
from kdbench.system.logs import log_to_console

log = logging.getLogger(__name__)

ATTEMPTS = 2
"""A run that failed is tried once more."""
STUDY = "study"
"""Name of all runs of the study, where stops without progress are counted."""


@dataclass(frozen=True)
class StudyCommand:
    """The command line of a study, for a job that reads and plans it itself."""

    overrides: tuple[str, ...]
    config_dir: Path | None
    max_learners: int
    folder: str
    """Working directory of the command, where its relative paths start."""
    python_path: tuple[str, ...]

    def plan(self) -> StudyPlan:
        """Return the plan of the study as its runs are now.

        Raises:
            ConfigError: it is not possible any more.
        """
        configure_openmp()
        enter_folder(self.folder, self.python_path)
        return StudyPlan(read_study(self.overrides, self.config_dir), self.max_learners)


@dataclass(frozen=True)
class StageGroup:
    """Runs of a stage that train together, as plain data."""

    task: GroupTask
    trained: frozenset[str]
    """Keys of the runs of the study, its teachers among them."""


def divide(runs: Sequence[PlannedRun], plan: StudyPlan, title: str) -> list[StageGroup]:
    """Return the groups of the runs that are not complete, checked as a sweep is. Refused runs are reported, left out.

    Networks that are measured in turn are all measured anew if one of them is missing.

    Args:
        runs: runs of one level of a stage.
        plan: of the study.
        title: of the stage.
    """
    set_group(runs, f"{plan.study.label}/{title}")
    left = [run for run in runs if not is_done(run)]
    if any(run.composed and run.config.kind == MEASURE for run in left):
        left = list(runs)
    for run in left:
        run.status, run.path, run.problem = Status.NOT_STARTED, None, None
    readers = check_runs(left)
    groups = group_planned([run for run in left if run.status != Status.REFUSED], plan.max_learners)
    for cache_readers in readers.values():
        share_cache(cache_readers, epochs_with_teacher(cache_readers, groups or one_by_one(cache_readers)))
    trained = frozenset(run.key for run in plan.all_runs() if run.key)
    return [
        StageGroup(pack_group(group, first), trained) for first, group in zip(numbers_of(groups), groups, strict=True)
    ]


class StageJob(SlurmCall):
    """Some groups of a stage, one after the other: an array task.

    Args:
        groups: the groups, or the file in which a `PlanJob` writes those of all tasks.
        number: place of the task in its array, counted from 0.
        count: number of tasks of the array. There may be more groups than were foreseen, or fewer.
        max_stops: see `kdbench.sweep.slurm_job.GroupJob`.
        requeue: see there.
    """

    def __init__(
        self,
        groups: Sequence[StageGroup] | Path,
        number: int = 0,
        count: int = 1,
        max_stops: int = 3,
        requeue: bool = True,
    ) -> None:
        self.groups = groups
        self.number = number
        self.count = count
        self.max_stops = max_stops
        self.requeue = requeue

    def __call__(self) -> None:
        """Complete the runs. The exit code is 1 if some failed, or the one with which the job is requeued."""
        log_to_console()
        with leaving_when_stopped():
            missing = sum(self.complete(group) for group in self.own_groups())
        if missing:
            sys.exit(1)

    def own_groups(self) -> Sequence[StageGroup]:
        """Return the groups of this task.

        Raises:
            RunError: the job that writes them did not.
        """
        if not isinstance(self.groups, Path):
            return self.groups
        try:
            check_owner(self.groups)
            groups: list[StageGroup] = pickle.loads(self.groups.read_bytes())
        except OSError as error:
            raise RunError(
                f"the groups of this stage cannot be read ({error}); the job that selects and plans them has its error",
                code="not_found",
            ) from None
        return groups[self.number :: self.count]

    def complete(self, group: StageGroup) -> int:
        """Complete the runs of a group as far as their teachers are there; return how many are missing then."""
        runs = unpack_group(group.task)
        ready, files = [], own_task()
        failed = files.read_failed()
        for run in runs:
            if run.key in failed:
                log.info("%s: failed before this job was requeued; its error is above", run.title)
            elif reason := lack_of_teacher(run, group.trained):
                report_error(RunError(reason, code="teacher_failed", key="teacher"), where=f"{run.title}: ")
            else:
                ready.append(run)
        statuses = set[Status]()
        for _ in range(ATTEMPTS):
            if left := [run for run in ready if not is_done(run)]:
                is_measured = left[0].config.kind == MEASURE
                task = pack_group(ready if is_measured else left, group.task.first)
                GroupJob(task, self.max_stops, self.requeue)()  # leaves the process where the job is to be requeued
                statuses = {result.status for result in files.read_results()}
                if Status.INTERRUPTED in statuses:
                    sys.exit(signals.INTERRUPTED)
        if Status.SKIPPED not in statuses:
            files.add_failed([run.key for run in ready if not is_done(run)])
        return sum(not is_done(run) for run in runs)


def check_owner(file: Path) -> None:
    """Check that this user has written a file and its folder, which are about to be executed.

    Raises:
        RunError: another user has.
        OSError: one is not there.
    """
    for path in (file, file.parent):
        if path.lstat().st_uid != os.getuid():
            raise RunError(
                f"{path} belongs to another user, and a pickle can hold any program; nothing of it was read. Give the "
                "command of the study again",
                code="wrong_owner",
            )


def check_stops(stops: int, most: int) -> None:
    """Check that a job was not stopped too often.

    Raises:
        RunError: it was.
    """
    if stops >= most:
        raise RunError(
            f"stopped {times(stops)} by SLURM before the job was done (hydra.launcher.max_stops); "
            "give it more time: hydra.launcher.time",
            code="stopped",
            key="hydra.launcher.max_stops",
        )


@dataclass(frozen=True)
class PlanJob(SlurmCall):
    """Job that selects the winners a stage needs, writes selected.yaml, and divides runs of the stage into groups."""

    command: StudyCommand
    title: str
    level: int
    """Place of the runs' step in their chains, counted from 0."""
    file: Path
    """Receives the groups."""
    max_stops: int = 3

    def __call__(self) -> None:
        """Select the winners and write the groups. The exit code is 1 once the job was stopped `max_stops` times."""
        log_to_console()
        with leaving_when_stopped():
            check_stops(own_task().count_stops(), self.max_stops)
            plan = self.command.plan()
            StudyExecution(plan).select_for(self.title)
            levels = plan.levels_of(self.title)
            groups = divide(levels[self.level], plan, self.title) if self.level < len(levels) else []
            with atomic_path(self.file) as temporary:
                temporary.write_bytes(pickle.dumps(groups))
            log.info("stage %s: %d groups", self.title, len(groups))


@dataclass(frozen=True)
class FinishJob(SlurmCall):
    """Job that completes what no other has, such as runs of a lost one, and writes the report. Failed runs stay failed.

    Stopped `max_stops` times without progress, it executes no run any more: those that are left fail. Stopped twice as
    often, it fails itself: planning or the report takes longer than its time limit.
    """

    command: StudyCommand
    arguments: tuple[str, ...]
    """Arguments of kdbench-study, without those of its launcher."""
    given: argparse.Namespace
    """The same, parsed."""
    max_stops: int = 3

    def __call__(self) -> None:
        """Complete the study. The exit code is 75, with which the job is requeued, for a requested stop alone."""
        log_to_console()
        with leaving_when_stopped():
            check_stops(own_task().stops_since_progress(STUDY), 2 * self.max_stops)
            plan = self.command.plan()
            launch = self.fail if self.is_stuck(plan) else None
            execution = StudyExecution(plan, launch, show=show_runs, only_new=True)
            code = finish_study(execution, self.arguments, self.given, last=True)
        sys.stdout.flush()
        if code:
            sys.exit(code)

    def is_stuck(self, plan: StudyPlan) -> bool:
        """Return whether the job was stopped `max_stops` times since runs of the study last came further."""
        progress = progress_of([run.directory for run in plan.all_runs() if not run.error])
        return own_task().stops_without_progress(STUDY, progress) >= self.max_stops

    def fail(self, runs: Sequence[PlannedRun], first: int) -> list[JobResult]:
        """Return the results of runs that are not executed any more. See `kdbench.sweep.execute.LaunchGroup`."""
        results = give_up(runs, self.max_stops)
        for run, result in zip(runs, results, strict=True):
            if result.status == Status.FAILED:
                report_error(RunError(str(result.error), code="failed_runs"), where=f"{run.title}: ")
        return results


def command_of(overrides: Sequence[str], config_dir: Path | None, max_learners: int) -> StudyCommand:
    """Return the command line of a study for jobs; see `StudyCommand`."""
    return StudyCommand(tuple(overrides), config_dir, max_learners, str(Path.cwd()), import_path())
