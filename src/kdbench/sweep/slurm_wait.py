"""Waiting for array tasks of SLURM: results as they come, and tasks that an earlier process has submitted."""

import json
import logging
import time
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from kdbench.errors import RunError, report_error
from kdbench.rundir.summary import Status
from kdbench.runner.run import is_complete
from kdbench.sweep.execute import launch_here, mark_launched, numbers_of
from kdbench.sweep.plan import JobResult, PlannedRun
from kdbench.sweep.slurm import FOLDER, TASKS_FILE, submit
from kdbench.sweep.slurm_commands import ENDED, JobState, SlurmError, jobs_of_user, unreachable
from kdbench.sweep.slurm_job import ArrayTask
from kdbench.sweep.slurm_options import SlurmOptions
from kdbench.system import signals

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
SQUEUE_SECONDS = 10.0
"""Time between two calls of squeue, which reveal tasks that ended without a result."""
RESULT_SECONDS = 30.0
"""Time for which the results of an ended job may take to show in a folder of another machine."""
HELD = (
    "BadConstraints",
    "DependencyNeverSatisfied",
    "InvalidAccount",
    "InvalidQOS",
    "JobHeld",
    "launch failed",
    "launch_failed",
)
"""Beginnings of the reasons for which SLURM does not start a job without somebody's help."""


def running_tasks(output_root: Path) -> list[ArrayTask]:
    """Return the array tasks of earlier commands that SLURM still has, and that have no results yet.

    Raises:
        SlurmError: SLURM does not answer.
    """
    found = []
    for job in jobs_of_user().values():
        folder = job.script.parent
        if job.state in ENDED or folder.parent.name != FOLDER:
            continue
        with suppress(OSError, ValueError, KeyError, IndexError, TypeError):  # of another program, or removed
            if folder.parent.samefile(output_root.expanduser() / FOLDER):
                number = int(job.job.partition("_")[2] or 0)
                keys = json.loads((folder / TASKS_FILE).read_text())["keys"][number]
                task = ArrayTask(job.job, folder, tuple(map(str, keys)))
                if not task.results.is_file():
                    found.append(task)
    return found


def divide_running(
    runs: Sequence[PlannedRun],
) -> tuple[list[ArrayTask], list[list[PlannedRun]], list[PlannedRun]]:
    """Return the tasks of earlier commands that complete some of the runs, these runs by task, and the other runs.

    Raises:
        ConfigError: SLURM does not answer.
    """
    tasks: list[ArrayTask] = []
    groups: list[list[PlannedRun]] = []
    left = {run.key: run for run in reversed(runs) if not run.config.overwrite}
    if left:
        try:
            known = running_tasks(output_root_of(runs))
        except SlurmError as error:
            raise unreachable(f"its controller does not answer: {error}") from None
        for task in known:
            if own := [left.pop(key) for key in task.keys if key in left]:
                tasks.append(task)
                groups.append(own)
    taken = {run for group in groups for run in group}
    return tasks, groups, [run for run in runs if run not in taken]


def output_root_of(runs: Sequence[PlannedRun]) -> Path:
    """Return the output root of a sweep."""
    return Path(runs[0].config.output_root)


def results_of_tasks(
    options: SlurmOptions, groups: Sequence[Sequence[PlannedRun]], running: Sequence[ArrayTask]
) -> Generator[tuple[int, Sequence[JobResult]], None, None]:
    """Submit groups that are not complete, wait for them, and print their results (`kdbench.sweep.execute.Launch`).

    The jobs belong to SLURM: where the caller stops, they go on, and the same command waits for them again.

    Args:
        options: keys that SLURM accepts (`kdbench.sweep.slurm.check_slurm`).
        groups: from `SlurmLauncher.group`.
        running: tasks of earlier commands, for as many groups at the beginning.
    """
    waiting: dict[int, ArrayTask] = {}
    new: list[int] = []
    firsts = numbers_of(groups)
    for position, (task, runs) in enumerate(zip(running, groups, strict=False)):
        if all(run.config.on_busy == "skip" for run in runs):
            error = f"skipped: SLURM job {task.job} completes the run (on_busy=skip)"
            yield position, show(runs, firsts[position], [JobResult(Status.SKIPPED, error=error)] * len(runs), task)
        else:
            log.info("SLURM job %s of an earlier command has %s", task.job, titles(runs))
            waiting[position] = task
    for position in range(len(running), len(groups)):
        runs = groups[position]
        if all(is_complete(run.config) and not run.config.overwrite for run in runs):
            mark_launched(runs)
            yield position, launch_here(runs, firsts[position])  # at once, without a task in a queue
        else:
            new.append(position)
    if new:
        chosen, numbers = [groups[position] for position in new], [firsts[position] for position in new]
        submitted = submit(options, chosen, numbers, output_root_of(chosen[0]))
        jobs = list(dict.fromkeys(task.array for task in submitted))
        log.info("SLURM job %s: %d tasks; files: %s", ", ".join(jobs), len(submitted), submitted[0].folder)
        waiting |= zip(new, submitted, strict=True)
    try:
        signals.raise_if_requested()
        for runs in groups:
            mark_launched(runs)
        for position, results in wait(dict(waiting)):
            task = waiting.pop(position)
            by_key = dict(zip(task.keys, results, strict=True))
            runs = groups[position]
            yield position, show(runs, firsts[position], [by_key[run.key] for run in runs], task)
    finally:
        if waiting:
            jobs = list(dict.fromkeys(task.array for task in waiting.values()))
            log.info(
                "%d tasks of SLURM go on without this process; the same command waits for them again, and scancel %s "
                "cancels them",
                len(waiting),
                " ".join(jobs),
            )


def titles(runs: Sequence[PlannedRun]) -> str:
    """Return the runs of a group in one line."""
    return runs[0].title if len(runs) == 1 else f"{runs[0].title} and {len(runs) - 1} more"


def show(runs: Sequence[PlannedRun], first: int, results: list[JobResult], task: ArrayTask) -> list[JobResult]:
    """Print the results of a group, each in one line, and return them.

    Args:
        runs: runs of the group.
        first: number of the first one within the sweep, counted from 0.
        results: result of each.
        task: task that has completed them.
    """
    for number, (run, result) in enumerate(zip(runs, results, strict=True), first + 1):
        if result.status == Status.FAILED:
            report_error(RunError(result.error or "failed", code="failed_runs"), where=f"{run.title}: ")
        else:
            print(f"job {number}: {result.error or result.run} (SLURM job {task.job})", flush=True)
    return results


def wait(waiting: dict[int, ArrayTask]) -> Iterator[tuple[int, list[JobResult]]]:
    """Yield the position of each task and its results in the order in which they end.

    A task that ended without results has failed ones. SLURM being away for a while is no end.

    Args:
        waiting: tasks by position; those that ended are removed.
    """
    watch = JobWatch()
    while waiting:
        present = files_in({task.folder for task in waiting.values()})
        for position, task in list(waiting.items()):
            if task.results in present:
                del waiting[position]
                yield position, task.read_results()
        if waiting:
            for position, state in watch.ended(waiting):
                yield position, results_of_lost(waiting.pop(position), state)
            time.sleep(POLL_SECONDS if waiting else 0)


def files_in(folders: Collection[Path]) -> set[Path]:
    """Return the files in folders: one listing each, in place of a question for each of many tasks."""
    found: set[Path] = set()
    for folder in folders:
        with suppress(OSError):  # removed by somebody
            found |= set(folder.iterdir())
    return found


class JobWatch:
    """States of tasks that have no results yet, fetched from SLURM at most every `SQUEUE_SECONDS`."""

    def __init__(self) -> None:
        self.called = time.monotonic()
        self.gone: dict[int, float] = {}
        """Time at which a task was first seen to have ended."""
        self.last: dict[int, str] = {}
        self.reported: set[str] = set()

    def ended(self, waiting: Mapping[int, ArrayTask]) -> list[tuple[int, str]]:
        """Return the positions of tasks that ended some time ago, and their states."""
        now = time.monotonic()
        if now - self.called < SQUEUE_SECONDS:
            return []
        self.called = now
        try:
            jobs = jobs_of_user()
        except SlurmError as error:
            self.report("slurm", f"SLURM does not answer ({error}); its jobs are waited for all the same")
            return []
        over = []
        for position, task in waiting.items():
            job = jobs.get(task.job)
            if job and job.state not in ENDED:
                self.gone.pop(position, None)
                self.report_held(job)
                continue
            if job:
                self.last[position] = job.state
            if now - self.gone.setdefault(position, now) >= RESULT_SECONDS:
                over.append((position, self.last.get(position, "not known to squeue any more")))
        return over

    def report_held(self, job: JobState) -> None:
        """Print why a job will not start by itself."""
        if job.state == "PENDING" and job.reason.startswith(HELD):
            self.report(
                f"{job.job}{job.reason}",
                f"SLURM job {job.job} does not start: {job.reason} (scontrol release {job.job}, or scancel {job.job})",
            )

    def report(self, what: str, line: str) -> None:
        """Print a line once."""
        if what not in self.reported:
            self.reported.add(what)
            log.info("%s", line)


def results_of_lost(task: ArrayTask, state: str) -> list[JobResult]:
    """Return the results of the runs of a task that ended without any."""
    error = f"SLURM job {task.job} ended without a result: {state}; its log: {task.log}; the same command continues"
    return [JobResult(Status.FAILED, error=error, lost=True)] * len(task.keys)
