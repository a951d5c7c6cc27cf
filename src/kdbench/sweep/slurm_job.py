"""What an array task of SLURM executes: a group of runs, once or as often as they are stopped and requeued.

`GroupJob` is pickled by submitit. submitit is not imported at the top: other modules read results.
"""

import json
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import SIGINT
from typing import Any

from kdbench.config import RunConfig
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.files import write_json
from kdbench.rundir.identity import teacher_config, teacher_directory
from kdbench.rundir.summary import Status
from kdbench.runner.run import resolve_run
from kdbench.sweep.plan import JobResult
from kdbench.sweep.worker import GroupTask, run_group, unpack_group
from kdbench.system import signals

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ArrayTask:
    """An array task of SLURM that completes a group of runs.

    Args:
        job: id, such as 12_3, or 12 where the group is the only one.
        folder: folder of the array's files.
        keys: run key of each run; the job itself has no use for them.
    """

    job: str
    folder: Path
    keys: tuple[str, ...] = ()

    @property
    def results(self) -> Path:
        return self.folder / f"{self.job}_results.json"

    @property
    def log(self) -> Path:
        return self.folder / f"{self.job}_0_log.out"

    @property
    def progress(self) -> Path:
        return self.folder / f"{self.job}_progress.json"

    @property
    def stops(self) -> Path:
        return self.folder / f"{self.job}_stops"

    def read_results(self) -> list[JobResult]:
        """Return the results of the runs, in the order of the keys."""
        return [result_from(node) for node in json.loads(self.results.read_text())]

    def write_results(self, results: Sequence[JobResult]) -> None:
        """Write the results of the runs."""
        write_json(self.results, [asdict(result) for result in results])

    def count_stops(self) -> int:
        """Return how often the job's script has requeued it; it writes a line each time."""
        return len(self.stops.read_text().splitlines()) if self.stops.is_file() else 0


class GroupJob:
    """A group of runs as submitit calls it.

    Args:
        task: the runs.
        max_stops: number of stops in a row without progress after which the job is not requeued again.
        requeue: whether a stopped job is requeued at all.
    """

    def __init__(self, task: GroupTask, max_stops: int, requeue: bool) -> None:
        self.task = task
        self.max_stops = max_stops
        self.requeue = requeue

    def __call__(self) -> None:
        """Complete the runs and write their results, or end with an exit code with which the job is requeued."""
        import submitit

        environment = submitit.JobEnvironment()
        files = ArrayTask(environment.job_id, environment.paths.folder)
        with signals.handled():
            try:
                results = self.given_up() if self.is_stuck(files) else run_group(self.task)
                stop = signals.interruption()
            except signals.Interrupted as requested:  # while modules are imported
                stop, results = requested, [stopped(requested)] * len(self.task.titles)
            if stop and self.requeue and stop.requested is not SIGINT:
                if not self.is_stuck(files, stopping=1):
                    sys.exit(signals.NOT_FINISHED)
                results = self.given_up()
            files.write_results(results)

    def checkpoint(self) -> Any:
        """Return the call with which submitit requeues the job.

        Its handler of signals is in place for the moment before `run_group` installs those of kdbench.
        """
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def is_stuck(self, files: ArrayTask, stopping: int = 0) -> bool:
        """Return whether the job was stopped `max_stops` times since its runs last came further.

        Args:
            files: files of the job.
            stopping: 1 while it is being stopped, which its script has not counted yet.
        """
        stops, progress = files.count_stops() + stopping, self.progress()
        before = json.loads(files.progress.read_text()) if files.progress.is_file() else {}
        if before.get("progress") != progress:
            write_json(files.progress, {"progress": progress, "stops": stops})
            return False
        return stops - int(before["stops"]) >= self.max_stops

    def progress(self) -> list[list[Any]]:
        """Return how far the runs are. Resolved here: on another machine, `auto` may mean another run."""
        try:
            return progress_of(directories_of([run.config for run in unpack_group(self.task)]))
        except Exception as error:  # of the user's code, or of missing folders: `run_group` reports it for each run
            log.debug("the progress of the runs is not known: %s", error)
            return []

    def given_up(self) -> list[JobResult]:
        """Return the results of runs whose job is not requeued any more."""
        error = (
            f"stopped {self.max_stops} times by SLURM without a new checkpoint (hydra.launcher.max_stops); "
            "give it more time: hydra.launcher.time"
        )
        return [JobResult(Status.FAILED, error=error)] * len(self.task.titles)


def stopped(stop: signals.Interrupted) -> JobResult:
    """Return the result of a run whose process was asked to stop by a signal."""
    return JobResult(Status.INTERRUPTED, error=f"stopped by {stop}")


def result_from(node: dict[str, Any]) -> JobResult:
    """Return a result from its JSON form."""
    return JobResult(**node | {"status": Status(node["status"]), "objectives": tuple(node["objectives"])})


def directories_of(configs: Sequence[RunConfig]) -> list[RunDirectory]:
    """Return the run directories of runs and of the teachers that may be trained for them."""
    resolved = [resolve_run(config) for config in configs]
    found = [directory for _, directory in resolved] + [found for run, _ in resolved for found in teachers_of(run)]
    return list(dict.fromkeys(found))


def teachers_of(config: RunConfig) -> Iterator[RunDirectory]:
    """Return the directories of a run's teacher, of the teacher's own teacher, and so on."""
    while config.teacher is not None:
        yield teacher_directory(config)
        if config.teacher.checkpoint or config.teacher.run:
            return
        config = teacher_config(config)


def progress_of(directories: Sequence[RunDirectory]) -> list[list[Any]]:
    """Return how far runs are, as JSON: per run whether it is complete, epoch, step, and bytes of logit caches."""
    return [
        [
            directory.path.name,
            directory.is_complete(),
            *(directory.checkpoint_metadata().get(name) for name in ("epoch", "step")),
            sum(file.stat().st_size for file in directory.path.glob("*logits-*")),
        ]
        for directory in directories
    ]
