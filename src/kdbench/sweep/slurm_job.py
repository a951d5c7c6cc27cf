"""Array tasks of SLURM: a group of runs each, executed once or as often as it is stopped and requeued.

`GroupJob` is pickled by submitit. submitit is not imported at the top: other modules read results.
"""

import contextlib
import json
import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from signal import SIGINT
from typing import Any, NoReturn

from kdbench.config import RunConfig
from kdbench.errors import KdbenchError, report_error
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.files import write_json
from kdbench.rundir.identity import teacher_config, teacher_directory
from kdbench.rundir.summary import Status
from kdbench.runner.failures import record_given_up
from kdbench.runner.run import resolve_run
from kdbench.sweep.execute import interrupted, result_of_complete
from kdbench.sweep.plan import JobResult, PlannedRun
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
    def array(self) -> str:
        """Id of the job without the number of the task."""
        return self.job.partition("_")[0]

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
    def failed(self) -> Path:
        return self.folder / f"{self.job}_failed.json"

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

    def stops_without_progress(self, name: str, progress: Any, stopping: int = 0) -> int:
        """Return how often the job was stopped since some runs last came further, and note how far they are.

        Args:
            name: of the runs; a task may have several groups.
            progress: how far they are, as JSON.
            stopping: 1 while it is being stopped, which its script has not counted yet.
        """
        stops = self.count_stops() + stopping
        noted = read_json(self.progress, {})
        before = noted.get(name)
        if before is None or before["progress"] != progress:
            write_json(self.progress, noted | {name: {"progress": progress, "stops": stops}})
            return 0
        return stops - int(before["stops"])

    def stops_since_progress(self, name: str) -> int:
        """Return how often the job was stopped since `stops_without_progress` last noted that some runs came further.

        Args:
            name: of the runs.
        """
        return self.count_stops() - int(read_json(self.progress, {}).get(name, {"stops": 0})["stops"])

    def read_failed(self) -> set[str]:
        """Return the keys of runs that have failed in this task as often as they are tried."""
        return set(read_json(self.failed, []))

    def add_failed(self, keys: Collection[str]) -> None:
        """Note runs that have failed as often as they are tried; a requeued task leaves them out."""
        if keys:
            write_json(self.failed, sorted({*self.read_failed(), *keys}))


def own_task() -> ArrayTask:
    """Return the array task that this process is."""
    import submitit

    environment = submitit.JobEnvironment()
    return ArrayTask(environment.job_id, environment.paths.folder)


class SlurmCall(ABC):
    """A call of submitit's that is the same when its job is requeued, which its batch script does, and counts."""

    @abstractmethod
    def __call__(self) -> None:
        """Execute the job."""

    def checkpoint(self) -> NoReturn:
        """Leave with the exit code with which the script requeues the job; submitit itself would requeue it uncounted.

        submitit's handler of signals calls it, in the moment before those of kdbench are installed.
        """
        sys.exit(signals.NOT_FINISHED)


@contextlib.contextmanager
def leaving_when_stopped() -> Iterator[None]:
    """Handle signals while the block runs: a requested stop ends the process with its exit code, and so does an error
    for the user, printed in one line."""
    with signals.handled():
        try:
            yield
        except signals.Interrupted as stop:
            sys.exit(stop.exit_code)
        except KdbenchError as error:
            report_error(error)
            sys.exit(1)


class GroupJob(SlurmCall):
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
        files = own_task()
        with leaving_when_stopped():
            try:
                results = self.given_up() if self.is_stuck(files) else run_group(self.task)
                stop = signals.interruption()
            except signals.Interrupted as requested:  # while modules are imported
                stop, results = requested, [interrupted(requested)] * len(self.task.titles)
            if stop and self.requeue and stop.requested is not SIGINT:
                if not self.is_stuck(files, stopping=1):
                    sys.exit(signals.NOT_FINISHED)
                results = self.given_up()
            files.write_results(results)

    def is_stuck(self, files: ArrayTask, stopping: int = 0) -> bool:
        """Return whether the job was stopped `max_stops` times since its runs last came further.

        Args:
            files: files of the job.
            stopping: 1 while it is being stopped, which its script has not counted yet.
        """
        name = " ".join([str(self.task.first), *self.task.keys])
        return files.stops_without_progress(name, self.progress(), stopping) >= self.max_stops

    def progress(self) -> list[list[Any]]:
        """Return how far the runs are. Resolved here: on another machine, `auto` may mean another run."""
        try:
            return progress_of(directories_of([run.config for run in unpack_group(self.task)]))
        except Exception as error:  # of the user's code, or of missing folders: `run_group` reports it for each run
            log.debug("the progress of the runs is not known: %s", error)
            return []

    def given_up(self) -> list[JobResult]:
        """Return the results of runs whose job is not requeued any more, and write their failure.json."""
        try:
            runs = unpack_group(self.task)
        except Exception as error:  # of the user's code, or of missing folders
            log.debug("the failure cannot be recorded: %s", error)
            return [given_up_result(self.max_stops)] * len(self.task.titles)
        return give_up(runs, self.max_stops)


def give_up(runs: Sequence[PlannedRun], max_stops: int) -> list[JobResult]:
    """Record runs as failed whose job was stopped too often, but for those that are complete; return the results.

    Args:
        runs: the runs.
        max_stops: number of stops.
    """
    failed = given_up_result(max_stops)
    for run in runs:
        record_given_up(*resolve_run(run.config), str(failed.error))
    return [result_of_complete(run) or failed for run in runs]


def given_up_result(max_stops: int) -> JobResult:
    """Return the result of a run whose job was stopped `max_stops` times."""
    error = (
        f"stopped {times(max_stops)} by SLURM without a new checkpoint (hydra.launcher.max_stops); "
        "give it more time: hydra.launcher.time"
    )
    return JobResult(Status.FAILED, error=error)


def times(number: int) -> str:
    """Return how often something happened, in words."""
    return "once" if number == 1 else f"{number} times"


def read_json(file: Path, absent: Any) -> Any:
    """Return the content of a JSON file, or a value where there is none."""
    return json.loads(file.read_text()) if file.is_file() else absent


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
