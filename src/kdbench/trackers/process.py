"""The process of the trackers, beside the runs of one process: reads events, and brings every record up to date.

Whatever a tracker or its library does happens here: imports, connections, hooks at exit, output, which is discarded.
The runs write a line of JSON per event to standard input and are not slowed down by any of it. Rows and settings are
read from the run directory, so an event carries no data, and a record that missed some gets them with the next event.
"""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from kdbench.config.schema import typed
from kdbench.config.targets import fault_of_tracker, import_class
from kdbench.trackers.base import TrackedRun, Tracker
from kdbench.trackers.errors import described
from kdbench.trackers.marker import write_error, write_marker

LINGER_SECONDS = 30.0
"""Time after the end of the runs in which a record may still be brought up to date."""
LONGEST_PAUSE = 60.0
"""Longest time in seconds until a tracker that failed is tried again."""


class Recording(threading.Thread):
    """Thread that keeps the record of one run in one tracker up to date.

    Args:
        run: the run.
        tracker: name, target and params of the tracker.
        reply: function that sends a reply to the process of the run.
    """

    def __init__(self, run: TrackedRun, tracker: Mapping[str, Any], reply: Callable[[Mapping[str, Any]], None]) -> None:
        super().__init__(daemon=True)
        self.tracked = run
        self.node = tracker
        self.reply = reply
        self.tracker: Tracker | None = None
        self.logged: set[int] = set()
        self.epochs = 0
        """Number of finished epochs; further rows of metrics.csv are of an earlier attempt."""
        self.ended: tuple[str, str] | None = None
        """Status and error of the run, once it has ended."""
        self.event = threading.Event()

    def notify(self, epochs: int | None = None, ended: tuple[str, str] | None = None) -> None:
        """Note an event of the run.

        Args:
            epochs: number of finished epochs; None: as before.
            ended: status and error of a run that has ended.
        """
        self.epochs = self.epochs if epochs is None else epochs
        self.ended = ended or self.ended
        self.event.set()

    def run(self) -> None:
        """Update the record after every event, until the run has ended. An error is reported, and tried again."""
        failures, not_before = 0, 0.0
        while True:
            self.event.wait()
            self.event.clear()
            ended = self.ended
            if time.monotonic() < not_before and not ended:
                continue
            try:
                self.update(ended)
                failures = 0
                write_error(self.tracked.output_root, self.node["name"], None)
            except BaseException as error:  # a library may call sys.exit
                self.tracker = None
                failures += 1
                not_before = time.monotonic() + min(2.0**failures, LONGEST_PAUSE)
                text = described(error)
                write_error(self.tracked.output_root, self.node["name"], text)  # the run may not wait for the reply
                self.reply({"text": text})
            if ended:
                self.reply({"done": True})
                return

    def update(self, ended: tuple[str, str] | None) -> None:
        """Log every epoch that the record lacks, and close it if the run has ended."""
        if self.tracker is None:
            tracker = self.make()
            self.logged = set(tracker.start(self.tracked))
            self.tracker = tracker
        for row in self.tracked.rows():
            epoch = int(row.pop("epoch"))
            if epoch not in self.logged and epoch <= self.epochs:
                self.tracker.log(epoch, row)
                self.logged.add(epoch)
        if ended:
            self.tracker.finish(ended[0], self.tracked.summary(), ended[1])
            if self.tracked.is_complete:
                write_marker(self.tracked, self.node)

    def make(self) -> Tracker:
        """Return a new tracker."""
        path = f"tracker.{self.node['name']}"
        cls = import_class(self.node["target"], path, "kdbench.trackers.Tracker", fault_of_tracker, "no_tracker")
        tracker: Tracker = cls(typed(cls.Config, self.node["params"], path))
        return tracker


class Recordings:
    """All recordings of the process.

    Args:
        replies: stream to the process of the runs.
    """

    def __init__(self, replies: TextIO) -> None:
        self.replies = replies
        self.lock = threading.Lock()
        self.by_run: dict[str, list[Recording]] = {}

    def handle(self, message: Mapping[str, Any]) -> None:
        """Start the recordings of a run, or notify them."""
        id = message["id"]
        if message["event"] == "open":
            self.by_run[id] = [self.started(id, message["run"], tracker) for tracker in message["trackers"]]
        ended = (message["status"], message["error"]) if message["event"] == "end" else None
        for recording in self.by_run[id]:
            recording.notify(message.get("epochs"), ended)

    def started(self, id: str, run: Mapping[str, Any], tracker: Mapping[str, Any]) -> Recording:
        """Return the recording of a run in one tracker, started.

        Args:
            id: name of the run in messages.
            run: plain fields of the run.
            tracker: name, target and params of the tracker.
        """
        paths = {name: Path(run[name]) for name in ("path", "output_root")}
        tracked = TrackedRun(**{**run, **paths, "group": tracker["params"].get("group")})
        own = {"id": id, "tracker": tracker["name"]}
        recording = Recording(tracked, tracker, lambda reply: self.write(own | dict(reply)))
        recording.start()
        return recording

    def write(self, reply: Mapping[str, Any]) -> None:
        """Write a reply, unless nobody reads it any more."""
        with self.lock, contextlib.suppress(OSError, ValueError):
            self.replies.write(json.dumps(reply) + "\n")
            self.replies.flush()

    def close(self) -> None:
        """End the recordings of runs whose process died, and wait for all."""
        recordings = [recording for of_run in self.by_run.values() for recording in of_run]
        for recording in recordings:
            if not recording.ended:
                recording.notify(ended=("interrupted", "the process of the run was killed"))
        for recording in recordings:
            recording.join()


def main() -> None:
    """Serve one process of runs until it ends."""
    with contextlib.suppress(OSError):
        os.nice(5)  # the training comes first
    replies = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    recordings = Recordings(replies)
    for line in iter(sys.stdin.buffer.readline, b""):
        recordings.handle(json.loads(line))
    watchdog = threading.Timer(LINGER_SECONDS, os._exit, (0,))
    watchdog.daemon = True
    watchdog.start()
    recordings.close()
