"""Worker processes of this machine: each executes groups of runs, one after the other, on the device that it holds.

Each is a pool of loky with one process, so a process that is killed breaks its own pool alone: the runs of its group
end without a result, and the next group gets a new process.
"""

import contextlib
import itertools
import logging
import os
import signal
import time
import warnings
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait

from joblib.externals.loky.process_executor import ProcessPoolExecutor

from kdbench.errors import RunError, report_error
from kdbench.sweep.devices import Device, DeviceLocks, worker_environment
from kdbench.sweep.execute import (
    STOPPED_BY,
    Groups,
    Results,
    failure,
    interrupted,
    mark_launched,
    numbers_of,
)
from kdbench.sweep.plan import JobResult, PlannedRun, longest_grace
from kdbench.sweep.worker import GroupTask, pack_group
from kdbench.sweep.worker_process import execute, prepare
from kdbench.system import signals

log = logging.getLogger(__name__)

POLL_SECONDS = 0.2
"""Time between two looks for a stop request, and for devices that another process has released."""
LEAVING_SECONDS = 3.0
"""Time beyond the grace time of the runs in which this process waits for its workers to leave."""


class Worker:
    """One process at a time, which executes groups on a device.

    Args:
        device: the device.
        name: text for messages and the heading of its runs.
    """

    def __init__(self, device: Device, name: str) -> None:
        self.device = device
        self.name = name
        self.pool: ProcessPoolExecutor | None = None
        self.pid: Future[int] | None = None
        self.result: Future[list[JobResult]] | None = None
        """Result of the group that it executes."""
        self.position = 0
        """Position of that group."""

    def start(self, position: int, task: GroupTask, device: str | None) -> None:
        """Start a group in the process, which is started where there is none.

        Args:
            position: of the group.
            task: the group.
            device: value of `runtime.device` for its runs; None leaves it to them.
        """
        try:
            self.submit(task, device)
        except BrokenExecutor:  # the process was killed while it had no group
            self.close()
            self.submit(task, device)
        self.position = position

    def submit(self, task: GroupTask, device: str | None) -> None:
        """Send a group to the process. Arguments: see `start`.

        Raises:
            BrokenExecutor: the process has ended.
        """
        if self.pool is None:
            environment = worker_environment(self.device)
            self.pool = ProcessPoolExecutor(1, initializer=prepare, initargs=(os.getpid(),), env=environment)
        with signals.interrupts_blocked():  # the process is started here, and Ctrl-C would end it with a traceback
            self.pid = self.pool.submit(os.getpid)
            self.result = self.pool.submit(execute, task, device, self.device.threads)

    def take_result(self, runs: Sequence[PlannedRun], names: str) -> Results:
        """Return the results of the group that has ended; None for each run if the process died.

        Args:
            runs: runs of the group.
            names: their names in an error.
        """
        assert self.result is not None
        result, self.result = self.result, None
        try:
            return result.result()
        except signals.Interrupted as stop:  # while it imported what the runs need; it cannot be used again
            self.close()
            return [interrupted(stop)] * len(runs)
        except BrokenExecutor as error:
            self.close()
            report_error(death_of(names, self.name, error))
            return [None] * len(runs)
        except Exception as error:  # such as an import that fails
            self.close()
            return [failure(error, f"{names}, {self.name}")] * len(runs)

    def request_stop(self) -> None:
        """Have the process write checkpoints and leave its group; one that is just starting is ended."""
        if self.result is None or self.result.done() or self.pool is None:
            return
        assert self.pid is not None
        if self.pid.done() and not self.pid.exception():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid.result(), signal.SIGTERM)
        else:
            self.close(kill=True)

    def close(self, kill: bool = False) -> None:
        """End the process; it executes nothing, unless it is to be killed."""
        pool, self.pool = self.pool, None
        if pool is not None:
            pool.shutdown(wait=True, kill_workers=kill)


def death_of(names: str, worker: str, error: BaseException) -> RunError:
    """Return the error of runs whose process died."""
    text = str(error)
    how = text[text.rfind("{") + 1 : text.rfind("}")] if "{" in text else "it ended"
    return RunError(
        f"{names}: the process of {worker} died ({how}); their last checkpoints are intact, and the same command "
        "continues them. SIGKILL is what the system does when memory is short: hydra.launcher.n_jobs sets a smaller "
        "number of workers",
        code="process_died",
        key="hydra.launcher",
    )


def execute_groups(
    groups: Groups, devices: Sequence[Device], locks: DeviceLocks, device: str | None = None
) -> Generator[tuple[int, Results], None, None]:
    """Execute groups in worker processes, each of which holds a device. See `kdbench.sweep.execute.Launch`.

    Args:
        groups: the groups, in the order in which they start.
        devices: the devices.
        locks: locks of the devices; a device that another process holds gets no group until it is free.
        device: value of `runtime.device` for the runs; None leaves it to them.

    Raises:
        Interrupted: a stop was requested; the workers have stopped, and their runs have checkpoints.
    """
    total = sum(place.workers for place in devices)
    numbered = itertools.count(1)
    workers = [Worker(place, f"worker {next(numbered)} of {total}") for place in devices for _ in range(place.workers)]
    numbers, waiting = numbers_of(groups), deque(range(len(groups)))
    grace = longest_grace(itertools.chain(*groups))
    remark = f"waiting for a device: hydra.launcher.exclusive=true, and {{}} holds {', '.join(d.name for d in devices)}"
    warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)  # loky renews a large process
    with signals.deferred(grace + LEAVING_SECONDS):
        try:
            while waiting or any(worker.result for worker in workers):
                signals.raise_if_requested()
                for worker in workers:
                    if waiting and worker.result is None and locks.acquire(worker.device):
                        position = waiting.popleft()
                        runs = groups[position]
                        mark_launched(runs)
                        heading = f"{worker.name}, {worker.device.description}"
                        worker.start(position, pack_group(runs, numbers[position], heading), device)
                release_unused(workers, locks, bool(waiting))
                running = [worker for worker in workers if worker.result]
                if not running:
                    if remark:
                        log.info(remark.format(locks.holders_of(devices)))
                        remark = ""
                    time.sleep(POLL_SECONDS)
                    continue
                wait([worker.result for worker in running if worker.result], POLL_SECONDS, FIRST_COMPLETED)
                for worker in running:
                    if worker.result and worker.result.done():
                        runs = groups[worker.position]
                        names = names_of(runs, numbers[worker.position])
                        results = worker.take_result(runs, names)
                        pass_on_closed_output(results)
                        yield worker.position, results
        finally:
            stop(workers, grace)
            locks.release_all()


def names_of(runs: Sequence[PlannedRun], first: int) -> str:
    """Return the names of a group's runs, as its lines on the console have them."""
    return ", ".join(f"job {first + n + 1}" for n in range(len(runs)))


def pass_on_closed_output(results: Results) -> None:
    """Request a stop if a worker found standard output closed: nobody reads this process's either."""
    if any(result and result.error == f"{STOPPED_BY}{signal.SIGPIPE.name}" for result in results):
        signals.receive(signal.SIGPIPE)


def release_unused(workers: Sequence[Worker], locks: DeviceLocks, more: bool) -> None:
    """End workers that have nothing left to do, and release the devices that no worker uses.

    Args:
        workers: all workers.
        locks: locks of the devices.
        more: whether groups are waiting.
    """
    if more:
        return
    used = {worker.device for worker in workers if worker.result}
    for worker in workers:
        if worker.result is None:
            worker.close()
        if worker.device not in used:
            locks.release(worker.device)


def stop(workers: Sequence[Worker], grace: float) -> None:
    """Stop workers: those that execute a group write checkpoints first, within the grace time of their runs."""
    for worker in workers:
        worker.request_stop()
    left = [worker.result for worker in workers if worker.result]
    wait(left, grace + LEAVING_SECONDS / 2)
    for worker in workers:
        late = worker.result is not None and not worker.result.done()
        worker.close(kill=late)
