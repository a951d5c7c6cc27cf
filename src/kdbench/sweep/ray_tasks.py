"""Groups of runs as tasks of a Ray cluster: start them, start lost ones again, and stop what runs on request."""

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.errors import RunError, first_line
from kdbench.rundir.summary import Status
from kdbench.sweep.execute import Groups, Results, failure, mark_launched, numbers_of
from kdbench.sweep.plan import JobResult, PlannedRun, longest_grace
from kdbench.sweep.ray_cluster import Cluster, GroupOptions
from kdbench.sweep.worker import pack_group, run_group
from kdbench.system import signals

log = logging.getLogger(__name__)

POLL_SECONDS = 1.0
"""Longest time between two looks at stop requests."""
RETRY_SECONDS = 5.0
"""Time before a group is started again, doubled each time: Ray needs up to half a minute to notice that a node is gone,
and would send it there."""
STOP_SECONDS = 15.0
"""Time beyond `checkpoint.grace_seconds` that a stop request takes to reach tasks, and their answers to come back."""


@dataclass(frozen=True)
class Attempt:
    """A group that a task executes, or will."""

    position: int
    number: int = 1
    """1 for the first attempt."""
    not_before: float = 0.0
    """Time by the monotonic clock."""


class RayTasks:
    """The tasks of a sweep.

    Args:
        groups: groups of runs.
        cluster: cluster that executes them.
        options: what each group gets.
    """

    def __init__(self, groups: Groups, cluster: Cluster, options: GroupOptions) -> None:
        self.groups = groups
        self.cluster = cluster
        self.options = options
        self.first = numbers_of(groups)
        self.waiting = [Attempt(position) for position in range(len(groups))]
        self.running: dict[Any, Attempt] = {}
        """Tasks by their references."""
        self.environment = {k: v for k, v in os.environ.items() if k.startswith(options.environment)}
        self.warned = False

    def start_next(self) -> None:
        """Start groups as long as the cluster has room; more would queue up at nodes, and be lost with them."""
        now = time.monotonic()
        while attempt := next((attempt for attempt in self.waiting if attempt.not_before <= now), None):
            if len(self.running) >= self.room(attempt.position):
                return
            self.waiting.remove(attempt)
            self.running[self.start(attempt.position)] = attempt

    def request(self, position: int) -> dict[str, float]:
        """Return what the group at a position takes of a node, by Ray's names of resources."""
        return self.cluster.request(self.options, self.groups[position][0].config.runtime.device)

    def room(self, position: int) -> int:
        """Return the number of groups like one that the cluster executes at once; all where it grows by itself."""
        return len(self.groups) if self.options.autoscaling else self.cluster.room(self.request(position))

    def start(self, position: int) -> Any:
        """Start a group as a task, and return its reference.

        Args:
            position: of the group.
        """
        import ray

        runs, first, options = self.groups[position], self.first[position], self.options
        mark_launched(runs)
        request = self.request(position)
        device = "cuda" if "GPU" in request else "cpu"
        remote: Any = ray.remote(run_group)  # Ray's types know no default values
        task = remote.options(
            name=task_name(runs, first),  # precedes its lines
            num_cpus=request.pop("CPU"),
            num_gpus=request.pop("GPU", 0),
            memory=request.pop("memory", None),
            resources=request,
            scheduling_strategy=options.strategy,
            max_retries=0,  # `lost` starts it again, and says so
        )
        return task.remote(pack_group(runs, first), device, options.threads, environment=self.environment)

    def ended(self) -> list[tuple[Attempt, Any]]:
        """Return the tasks that have ended, with their references; wait a moment for one."""
        import ray

        if not self.running:
            time.sleep(POLL_SECONDS)
            self.warn_of_size()
            return []
        references, _ = ray.wait(list(self.running), num_returns=1, timeout=POLL_SECONDS)
        return [(self.running.pop(reference), reference) for reference in references]

    def warn_of_size(self) -> None:
        """Print once that groups wait because no node is large enough, after one was lost."""
        short = None if self.warned else self.cluster.lacking(self.request(self.waiting[0].position))
        if short:
            log.info("waiting for a node: a group needs %s in %s", short, self.cluster.name)
            self.warned = True

    def results(self, attempt: Attempt, reference: Any) -> Results | None:
        """Return the results of a group; None if its process was lost and it is to be started again."""
        import ray
        from ray import exceptions

        try:
            results: Sequence[JobResult] = ray.get(reference)
        except exceptions.RayTaskError as error:  # an error of this code, or kdbench is missing there
            return self.failed(attempt, f"the task failed: {first_line(error.cause or error)}")
        except exceptions.RayError as error:
            return self.lost(attempt, reason_of(error))
        stopped = next((result for result in results if result.status == Status.INTERRUPTED), None)
        return self.lost(attempt, f"its process was {stopped.error}") if stopped else results

    def lost(self, attempt: Attempt, reason: str) -> Results | None:
        """Have a group started again whose process was lost, or return its failure after the last attempt.

        Args:
            attempt: the one that was lost.
            reason: the end of the sentence that says why.
        """
        name = task_name(self.groups[attempt.position], self.first[attempt.position])
        if attempt.number > self.options.retries:
            times = f" ({attempt.number} times)" if attempt.number > 1 else ""
            results = self.failed(attempt, f"{reason}{times}; the same command continues from the last checkpoint")
            return [JobResult(Status.FAILED, error=result.error, lost=True) for result in results]
        log.info("%s: %s; starting it again (%d of %d retries)", name, reason, attempt.number, self.options.retries)
        pause = RETRY_SECONDS * 2 ** (attempt.number - 1)
        self.waiting.insert(0, Attempt(attempt.position, attempt.number + 1, time.monotonic() + pause))
        return None

    def failed(self, attempt: Attempt, reason: str) -> list[JobResult]:
        """Print why the runs of a group have no result, and return that as their results."""
        runs = self.groups[attempt.position]
        error = RunError(f"{self.cluster.name}: {reason}", code="engine_failed", key="hydra/launcher")
        return [failure(error, run.title) for run in runs]

    def stop(self) -> None:
        """Request every task to write checkpoints and to end; end those that do not within their grace time."""
        import ray

        if not self.running:
            return
        for force in (False, True):
            for reference in self.running:
                ray.cancel(reference, force=force)
            waiting = list(self.running)
            ended, _ = ray.wait(waiting, num_returns=len(waiting), timeout=self.grace_seconds())
            for reference in ended:
                del self.running[reference]
            if not self.running:
                return

    def grace_seconds(self) -> float:
        """Return the longest time in which the runs write their checkpoints."""
        return longest_grace(run for attempt in self.running.values() for run in self.groups[attempt.position])


def run_groups(groups: Groups, cluster: Cluster, options: GroupOptions) -> Generator[tuple[int, Results], None, None]:
    """Execute groups on a cluster. Result: see `kdbench.sweep.execute.Launch`.

    Args:
        groups: groups of runs.
        cluster: cluster that executes them.
        options: what each group gets.

    Raises:
        Interrupted: a stop was requested; the runs have written checkpoints.
        RunError: the connection to the cluster was lost.
    """
    from ray.exceptions import RayError

    tasks = RayTasks(groups, cluster, options)
    grace = longest_grace(itertools.chain(*groups))
    with signals.deferred(grace + STOP_SECONDS):
        try:
            while tasks.running or tasks.waiting:
                tasks.start_next()
                for attempt, reference in tasks.ended():
                    results = tasks.results(attempt, reference)
                    if results is not None:
                        yield attempt.position, results
                signals.raise_if_requested()
        except (RayError, ConnectionError) as error:
            raise RunError(
                f"the connection to {cluster.name} was lost: {first_line(error)}; the same command continues",
                code="engine_failed",
                key="hydra/launcher",
            ) from error
        finally:
            with contextlib.suppress(RayError, ConnectionError):  # a cluster that is gone has no tasks to stop
                tasks.stop()


def task_name(runs: Sequence[PlannedRun], first: int) -> str:
    """Return the name of a group.

    Args:
        runs: runs of the group.
        first: number of the first one, counted from 0.
    """
    return f"job {first + 1}" if len(runs) == 1 else f"jobs {first + 1}-{first + len(runs)}"


def reason_of(error: Exception) -> str:
    """Return the end of a sentence that says how Ray lost the process of a group."""
    from ray import exceptions

    if isinstance(error, exceptions.NodeDiedError | exceptions.LocalRayletDiedError):
        return "its node was lost"
    if isinstance(error, exceptions.OutOfMemoryError):
        return "its node ran out of memory, and Ray ended its process"
    if isinstance(error, exceptions.WorkerCrashedError):
        return "its process ended without a result"
    if isinstance(error, exceptions.TaskCancelledError):
        return "its task was cancelled"
    return f"it was lost ({first_line(error)})"
