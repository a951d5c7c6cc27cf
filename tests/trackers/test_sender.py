"""How long runs wait for their trackers: with a clock that goes on only while they wait."""

import logging
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kdbench.trackers import sender
from kdbench.trackers.marker import write_error
from kdbench.trackers.sender import PATIENCE_SECONDS, Tracking, wait_for_trackers


class Replies:
    """A process of trackers that replies at given times.

    Args:
        replies: times in seconds, and the tracking and the name of the tracker that is done then.
    """

    def __init__(self, *replies: tuple[float, Tracking, str]) -> None:
        self.replies = list(replies)
        self.now = 0.0
        self.dead = False
        self.waits: list[float] = []
        self.unresponsive: set[str] = set()
        self.trackings: dict[str, Tracking] = {}

    def receive(self, seconds: float) -> None:
        """Wait for the next reply, or for some seconds."""
        assert not self.dead
        self.waits.append(seconds)
        if not self.replies or self.replies[0][0] > self.now + seconds:
            self.now += seconds
            return
        self.now, tracking, name = self.replies.pop(0)
        tracking.handle({"tracker": name, "done": True})


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Replies:
    """A process whose clock is that of `wait_for_trackers`."""
    process = Replies()
    monkeypatch.setattr(sender, "time", SimpleNamespace(monotonic=lambda: process.now, time=time.time))
    return process


def ended(process: Any, *names: str, root: str = "nowhere") -> Tracking:
    """Return the tracking of a run that has ended, with trackers that are not done."""
    nodes = [SimpleNamespace(node=lambda name=name: {"name": name}) for name in names]
    tracking = Tracking(
        cast(Any, SimpleNamespace(trackers=nodes, output_root=root)), cast(Any, SimpleNamespace(log=None)), None
    )
    tracking.process, tracking.waiting, tracking.ended = process, set(names), True
    return tracking


def test_runs_of_a_group_wait_for_a_second_in_all(process: Replies, caplog: pytest.LogCaptureFixture) -> None:
    runs = [ended(process, "hanging", "slow"), ended(process, "hanging", "slow")]
    process.replies = [(0.5, runs[0], "slow"), (0.75, runs[1], "slow")]
    with caplog.at_level(logging.INFO, "kdbench"):
        wait_for_trackers([*runs, None])
    assert process.now == PATIENCE_SECONDS
    assert process.waits == [1.0, 0.5, 0.25]
    (line,) = caplog.messages
    assert line.startswith("tracker hanging: still at work in the background")


def test_no_run_waits_twice_for_a_tracker(process: Replies, caplog: pytest.LogCaptureFixture) -> None:
    """It is waited for again after a reply."""
    first, second = ended(process, "hanging"), ended(process, "hanging")
    with caplog.at_level(logging.INFO, "kdbench"):
        wait_for_trackers([first])
        wait_for_trackers([first, second])
    assert process.now == PATIENCE_SECONDS
    assert len(caplog.messages) == 1
    first.handle({"tracker": "hanging", "done": True})
    third = ended(process, "hanging")
    wait_for_trackers([second, third])
    assert process.now == 2 * PATIENCE_SECONDS


def test_replies_end_the_wait(process: Replies, caplog: pytest.LogCaptureFixture) -> None:
    run = ended(process, "quick")
    process.replies = [(0.25, run, "quick")]
    with caplog.at_level(logging.INFO, "kdbench"):
        wait_for_trackers([run])
    assert (process.now, caplog.messages) == (0.25, [])


def test_runs_of_a_dead_process_do_not_keep_others_from_waiting(
    process: Replies, caplog: pytest.LogCaptureFixture
) -> None:
    dead = Replies()
    dead.dead = True
    first, second = ended(dead, "lines"), ended(process, "lines")
    process.replies = [(0.5, second, "lines")]
    with caplog.at_level(logging.INFO, "kdbench"):
        wait_for_trackers([first, second])
    assert process.now == 0.5
    (line,) = caplog.messages
    assert line.startswith("trackers: their process ended")


def test_the_line_of_a_tracker_that_is_not_done_has_its_last_error(
    process: Replies, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """Its reply may come after the end of the run, which does not read it any more."""
    write_error(tmp_path, "slow", "the server refuses connections")
    with caplog.at_level(logging.INFO, "kdbench"):
        wait_for_trackers([ended(process, "slow", root=str(tmp_path))])
        process.unresponsive.clear()
        write_error(tmp_path, "slow", None)
        wait_for_trackers([ended(process, "slow", root=str(tmp_path))])
    with_error, without = caplog.messages
    assert "(its last error was slow: the server refuses connections); the same command" in with_error
    assert "error" not in without
