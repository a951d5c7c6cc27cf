"""The execution of a plan: check every run, launch those that can run, and keep one record.

The same function executes `kdbench -m`, its lockstep launcher, and the sweeps of a study.
"""

import contextlib
import dataclasses
import itertools
import logging
import traceback
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Protocol

from kdbench.config import RunConfig
from kdbench.errors import (
    BusyError,
    ConfigError,
    KdbenchError,
    PrunedError,
    RunError,
    printable,
    report_error,
    without_passwords,
)
from kdbench.rundir.access import denied_error, is_denied
from kdbench.rundir.files import check_writable
from kdbench.rundir.summary import Status
from kdbench.runner.policy import run_with_retries
from kdbench.runner.run import RunResult, check_run, is_complete
from kdbench.runner.run_all import Train
from kdbench.sweep.plan import JobResult, PlannedRun, scores_of
from kdbench.sweep.record import Record
from kdbench.system.signals import Interrupted
from kdbench.teachers.cache import pays_off
from kdbench.train.loop import fit

log = logging.getLogger(__name__)


STOPPED_BY = "stopped by "
"""Begins the message of a run whose process was stopped; the name of the signal follows."""
Results = Sequence[JobResult | None]
"""Results of the runs of a group; None for a run whose process died."""
Groups = Sequence[Sequence[PlannedRun]]
"""Runs that are checked, none of them refused; those of a group train together."""
Launch = Callable[[Groups], Generator[tuple[int, Results], None, None]]
"""Executes groups, and yields the position of each and its results in the order in which they end.

Where it is closed before its end, it stops what it has started.
"""


class LaunchGroup(Protocol):
    """Function that executes the runs of one group and returns when they have ended."""

    def __call__(self, runs: Sequence[PlannedRun], first: int) -> Results:
        """Return the result of each run.

        Args:
            runs: runs of the group.
            first: number of the first one within its sweep, counted from 0.
        """


Group = Callable[[Sequence[PlannedRun]], list[list[PlannedRun]]]
"""Divides runs into those that are launched at once."""


def one_by_one(runs: Sequence[PlannedRun]) -> list[list[PlannedRun]]:
    """Return groups of one run each."""
    return [[run] for run in runs]


def execute(
    runs: Sequence[PlannedRun],
    output_root: Path,
    launch: Launch,
    group: Group = one_by_one,
    *,
    lockstep: bool = False,
    show: Callable[[Sequence[Path]], None] = lambda paths: None,
) -> None:
    """Execute a plan: refuse what cannot run, launch the rest, and record each result on its run.

    Args:
        runs: from `kdbench.sweep.plan.plan`.
        output_root: folder of the record.
        launch: function that executes groups, several at a time if it likes.
        group: function that divides the runs into groups.
        lockstep: whether the runs of a group share the passes of their teacher.
        show: function that shows the directories of the complete runs at the end.

    Raises:
        RunError: at the end, if a run was refused or failed.
        BusyError: at the end, if a run was skipped because another process holds it, or if its process was stopped.
        Interrupted: a stop was requested; the record is written.
    """
    record = Record(output_root, runs)
    check_writable(record.file.parent, "output_root")
    for run in runs:
        run.status, run.path, run.problem, run.launched = Status.NOT_STARTED, None, None, False
    readers = check_runs(runs)
    groups = group([run for run in runs if run.status != Status.REFUSED])
    for cache_readers in readers.values():
        share_cache(
            cache_readers, epochs_with_teacher(cache_readers, groups if lockstep else one_by_one(cache_readers))
        )
    if groups:
        record.make_folder()
    log.info("jobs: %d", sum(map(len, groups)))
    unfinished = dict(enumerate(groups))
    try:
        with contextlib.closing(launch(groups)) as ended:
            for position, results in ended:
                for run, result in zip(unfinished.pop(position), results, strict=True):
                    lost = result is None or result.lost
                    run.finish((lost and result_of_complete(run)) or result)
                    if run.status == Status.INTERRUPTED:
                        mark_interrupted(run)
                record.write()
    except BaseException:
        for together in unfinished.values():
            for run in together:
                mark_interrupted(run)
        record.write()
        raise
    assert not unfinished
    paths = [Path(run.path) for run in runs if run.path]
    if paths:
        show(paths)
        print(f"\nrecord of this sweep: {record.file}", flush=True)
    raise_failures(runs)


def check_runs(runs: Sequence[PlannedRun]) -> dict[Path, list[PlannedRun]]:
    """Check everything that can be wrong with each run before it starts, and report the ones that are refused.

    Returns:
        The runs that could read the same logit cache, by its file.
    """
    readers: dict[Path, list[PlannedRun]] = {}
    for run in runs:
        try:
            if run.error:
                raise run.error
            if cache := check_run(run.config):
                readers.setdefault(cache, []).append(run)
        except ConfigError as error:
            run.refuse(error)
            report_error(error, where=f"{run.title}: ")
        except Exception as error:  # raised by code from elsewhere; the other runs still start
            result = failure(error, run.title)
            run.status, run.problem = Status.REFUSED, result.error
    return readers


def epochs_with_teacher(readers: Sequence[PlannedRun], groups: Groups) -> int:
    """Return the number of epochs for which runs need the passes of their teacher.

    Args:
        readers: runs of that teacher.
        groups: runs that are launched at once; in lockstep they share their passes.
    """
    sharing = [shared for group in groups if (shared := [run for run in group if run in readers])]
    return sum(shared[0].config.recipe.epochs for shared in sharing)


def share_cache(readers: Sequence[PlannedRun], epochs: int) -> None:
    """Turn on the logit cache of one teacher for its runs, if it saves more teacher passes than it costs.

    Args:
        readers: runs of that teacher.
        epochs: number of epochs with that teacher, see `epochs_with_teacher`.
    """
    if not pays_off(epochs, readers[0].config):
        return
    teacher = readers[0].config.teacher
    assert teacher is not None
    log.info("teacher %s: one logit cache for %d runs, %d epochs in all", teacher.model.name, len(readers), epochs)
    for run in readers:
        config = run.config
        assert config.teacher is not None
        run.overrides += ("teacher.cache=on",)
        run.composed = dataclasses.replace(config, teacher=dataclasses.replace(config.teacher, cache="on"))


def result_of_complete(run: PlannedRun) -> JobResult | None:
    """Return the result of a run that is complete, whatever became of its process afterwards; None if it is not."""
    directory = run.directory
    if run.config.overwrite or not directory.is_complete():  # what is complete there may be the run of before
        return None
    try:
        scores = scores_of(directory.read_summary())
    except ConfigError:  # a damaged file
        return None
    return JobResult(Status.COMPLETE, str(directory.path), scores=scores, objectives=tuple(run.config.objectives))


def mark_interrupted(run: PlannedRun) -> None:
    """Record a run without a result, whose launcher was interrupted; it may be complete, or not have started."""
    directory = run.directory
    if directory.is_complete():
        run.status, run.path, run.problem = Status.COMPLETE, str(directory.path), None
    elif run.launched or directory.path.exists():
        run.status, run.path = Status.INTERRUPTED, None


def raise_failures(runs: Sequence[PlannedRun]) -> None:
    """Raise the error of a sweep in which runs are missing. Errors: see `execute`."""
    statuses = [run.status for run in runs]
    skipped, stopped = statuses.count(Status.SKIPPED), statuses.count(Status.INTERRUPTED)
    done = statuses.count(Status.COMPLETE) + statuses.count(Status.PRUNED)
    failed = len(statuses) - skipped - stopped - done
    if failed:
        raise RunError(f"{failed} of {len(runs)} jobs failed; the error of each is above", code="failed_runs")
    if skipped:
        raise BusyError(
            f"{skipped} of {len(runs)} jobs were skipped: other processes hold their runs", code="busy", key="on_busy"
        )
    if stopped:
        raise BusyError(
            f"{stopped} of {len(runs)} jobs were stopped by signals to their processes; the same command continues",
            code="interrupted",
        )


# Launching in this process


def in_turn(launch_group: LaunchGroup) -> Launch:
    """Return a function that executes one group after the other.

    Args:
        launch_group: function that executes one.
    """

    def launch(groups: Groups) -> Generator[tuple[int, Results], None, None]:
        started = 0
        for position, runs in enumerate(groups):
            mark_launched(runs)
            yield position, launch_group(runs, started)
            started += len(runs)

    return launch


def mark_launched(runs: Sequence[PlannedRun]) -> None:
    """Note that runs have started, for the record of a sweep that is interrupted."""
    for run in runs:
        run.launched = True


def numbers_of(groups: Groups) -> list[int]:
    """Return the number of the first run of each group within the sweep, counted from 0."""
    return [0, *itertools.accumulate(map(len, groups))][: len(groups)]


def launch_here(
    runs: Sequence[PlannedRun],
    first: int,
    heading: Callable[[], str] | None = None,
    train: Train = fit,
    named: bool = False,
) -> list[JobResult]:
    """Execute a run, or runs in lockstep, in this process. Result: see `LaunchGroup`.

    Args:
        runs: as `kdbench.sweep.lockstep.group_planned` groups them.
        first: number of the first one within its sweep, counted from 0.
        heading: function that returns a line to print above them, for example the progress of a study.
        train: the training loop.
        named: whether the lines of a single run begin with its name, since other processes print theirs.
    """
    configs = [run.config for run in runs]
    above = [heading()] if heading else []
    names = [f"job {first + n + 1}" for n in range(len(runs))]
    if len(runs) == 1:
        title = runs[0].title
        print_heading(*above, f"{names[0]}: {title}")
        (result,) = run_with_retries(configs, names if named else (), train=train)
        return [job_result(result, f"{names[0]}: {title}" if named else title, f"{names[0]}: " if named else "")]
    print_heading(*above, group_heading(configs), *named_differences(names, runs))
    results = run_with_retries(configs, names, train=train)
    return [job_result(result, name, f"{name}: ") for result, name in zip(results, names, strict=True)]


def run_single(number: int, title: str, compose: Callable[[], RunConfig]) -> JobResult:
    """Execute one run of a sweep that a launcher of Hydra has started, maybe in a process of its own.

    Args:
        number: of the run within its sweep, counted from 0.
        title: overrides of the run.
        compose: function that returns its config.
    """
    print_heading(f"job {number + 1}: {title}")
    try:
        (result,) = run_with_retries([compose()])
    except Exception as error:
        return failure(error, title)
    return job_result(result, title)


def group_heading(configs: Sequence[RunConfig]) -> str:
    """Return the heading of a group of runs."""
    if all(is_complete(config) for config in configs):
        return f"{len(configs)} jobs that are complete"
    teacher = next((config.teacher.model.name for config in configs if config.teacher), None)
    return f"{len(configs)} jobs in lockstep" + (f", teacher: {teacher}" if teacher else "")


def named_differences(names: Sequence[str], runs: Sequence[PlannedRun]) -> list[str]:
    """Return a line for each run of a group: its name and the overrides that not all of the group have."""
    common = set(runs[0].overrides).intersection(*(run.overrides for run in runs))
    lines = []
    for name, run in zip(names, runs, strict=True):
        own = [override for override in run.overrides if override not in common] or run.overrides
        lines.append(without_passwords(printable(f"{name}: {' '.join(own)}")))
    return lines


def print_heading(*lines: str) -> None:
    """Print lines above a run, or above runs that are launched together."""
    print("", *lines, sep="\n", flush=True)


def job_result(result: RunResult, title: str, prefix: str = "") -> JobResult:
    """Return the result of a run as plain data, and print why there is none.

    Args:
        result: of the run.
        title: name of the run in an error.
        prefix: name of the run in other lines, where several runs print theirs.
    """
    if result.error:
        return failure(result.error, title, prefix)
    assert result.directory is not None
    scores, objectives = scores_of(result.directory.read_summary()), tuple(result.config.objectives)
    return JobResult(Status.COMPLETE, run=str(result.path), scores=scores, objectives=objectives)


def interrupted(stop: Interrupted) -> JobResult:
    """Return the result of a run whose process was asked to stop by a signal."""
    return JobResult(Status.INTERRUPTED, error=f"{STOPPED_BY}{stop}")


def failure(error: Exception, title: str, prefix: str = "") -> JobResult:
    """Print an error that ended a run, and return it as the run's result. Arguments: see `job_result`."""
    if isinstance(error, BusyError):
        print(f"{prefix}{error}", flush=True)
        return JobResult(Status.SKIPPED, error=str(error))
    if isinstance(error, PrunedError):
        print(f"{prefix}{error}", flush=True)
        return JobResult(Status.PRUNED, error=str(error))
    if isinstance(error, OSError) and is_denied(error):
        error = denied_error(error)
    if isinstance(error, KdbenchError):
        report_error(error, where=f"{title}: ")
        return JobResult(Status.FAILED, error=str(error))
    traceback.print_exception(error)  # a bug: printed in full, and the other runs still start
    return JobResult(Status.FAILED, error=repr(error))
