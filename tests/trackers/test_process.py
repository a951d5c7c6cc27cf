"""The process of the trackers: signals do not end it, and a dead one is replaced."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.config import RunConfig
from kdbench.rundir.directory import RunDirectory
from kdbench.trackers import sender
from kdbench.trackers.sender import Tracking
from tests.trackers.conftest import own, statuses, wait_for

pytestmark = pytest.mark.slow  # each starts a process
Opened = Callable[..., Tracking]


@pytest.fixture
def opened(track: Callable[..., RunConfig], tmp_path: Path) -> Opened:
    """Open the record of a run that has no files yet: `opened(name, tracker=...)`."""

    def open_record(name: str, **tracker: Any) -> Tracking:
        tracking = Tracking(track(**tracker), RunDirectory(tmp_path / name, name), None)
        tracking.open(0)
        return tracking

    return open_record


def test_signals_to_all_processes_of_a_job_do_not_lose_the_status(opened: Opened, tmp_path: Path) -> None:
    tracking = opened("run", lines=own(tmp_path / "lines"))
    wait_for(lambda: list((tmp_path / "lines").glob("*.jsonl")))
    assert tracking.process is not None
    for name in ("SIGHUP", "SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
        tracking.process.process.send_signal(signal.Signals[name])
    tracking.end("interrupted", "SIGTERM")
    wait_for(lambda: statuses(tmp_path / "lines") == ["interrupted"])
    sender.close()
    assert tracking.process.process.wait(60) == 0


def test_dead_process_is_replaced_and_leaves_nothing(opened: Opened, tmp_path: Path) -> None:
    """Runs of the dead one go on without trackers: the numbers of its pipes belong to the new one."""
    first = opened("first", faulty=own(tmp_path / "faulty", "Faulty", at="start", how="die"))
    dead = first.process
    assert dead is not None
    wait_for(lambda: first.receive(0.1) or dead.dead)
    second = opened("second", lines=own(tmp_path / "lines"))
    assert second.process is not None
    assert second.process is not dead
    assert dead.process.returncode == 9
    assert dead.process.stdin is not None
    assert dead.process.stdin.closed
    assert os.fstat(second.process.stdin)
    first.end_epoch(1)
    first.end("complete")
    second.end("complete")
    wait_for(lambda: second.receive(0.1) or not second.waiting)
    assert statuses(tmp_path / "lines") == ["complete"]
