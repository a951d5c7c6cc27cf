"""Worker processes of hydra/launcher=joblib that end while they have no group."""

from concurrent.futures import BrokenExecutor, Future
from typing import Any

import pytest

from kdbench.sweep import processes
from kdbench.sweep.devices import Device
from kdbench.sweep.processes import Worker
from kdbench.sweep.worker import GroupTask

DEVICE = Device("cpu", ("core0",), workers=1, threads=1)
TASK = GroupTask(b"", ("seed=0",), 0, None, ".", ())


class Pool:
    """Takes the place of loky's pool; the first one has lost its process."""

    made: list["Pool"]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.is_broken = not self.made
        self.is_closed = False
        self.made.append(self)

    def submit(self, *call: Any) -> Future[Any]:
        if self.is_broken:
            raise BrokenExecutor("a worker process was terminated")
        return Future()

    def shutdown(self, wait: bool, kill_workers: bool) -> None:
        self.is_closed = True


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> list[Pool]:
    Pool.made = []
    monkeypatch.setattr(processes, "ProcessPoolExecutor", Pool)
    return Pool.made


def test_a_worker_whose_process_was_killed_between_groups_gets_a_new_one(pools: list[Pool]) -> None:
    worker = Worker(DEVICE, "worker 1 of 1")
    worker.start(3, TASK, None)
    assert [(pool.is_broken, pool.is_closed) for pool in pools] == [(True, True), (False, False)]
    assert (worker.position, worker.pool) == (3, pools[1])
    assert worker.result is not None
