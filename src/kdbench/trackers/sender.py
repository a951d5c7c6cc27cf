"""The trackers of a run: one object that sends events to their process, and never waits for it.

Nothing here raises, and no library of a tracker is imported: see `kdbench.trackers.process`.
"""

import contextlib
import functools
import itertools
import json
import logging
import os
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from kdbench.config import RunConfig
from kdbench.rundir.directory import RunDirectory
from kdbench.system.logs import reset_current_run, set_current_run
from kdbench.trackers.base import TrackedRun
from kdbench.trackers.marker import has_marker, read_error

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 1.0
"""Longest time for which a run, or a group of runs that train together, waits for its trackers in all."""
COMMAND = """
import json, signal, sys
for name in ("SIGHUP", "SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"):
    signal.signal(getattr(signal, name), signal.SIG_IGN)  # a job or container sends them to all of its processes
sys.path[:] = json.loads(sys.stdin.buffer.readline())
from kdbench.trackers.process import main
main()
"""
"""Program of the process. It ends with the process of the runs, so that it can send how they ended."""
REAP_SECONDS = 0.1
"""Longest time to wait for the exit code of a process that closed its pipes, which takes milliseconds."""


class TrackerProcess:
    """The process of the trackers of this process's runs. Its pipes never block."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the run
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        for pipe in (self.stdin, self.stdout):
            os.set_blocking(pipe, False)
        self.outgoing, self.incoming = b"", b""
        self.dead = False
        self.trackings: dict[str, Tracking] = {}
        """Runs whose replies are not all there, by their id."""
        self.unresponsive: set[str] = set()
        """Names of the trackers for which a run waited in vain; no other run waits until they have replied."""
        self.write(sys.path)

    def write(self, message: Any) -> None:
        """Write a message as far as the pipe has room."""
        self.outgoing += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Write what the pipe had no room for."""
        try:
            while self.outgoing and not self.dead:
                self.outgoing = self.outgoing[os.write(self.stdin, self.outgoing) :]
        except BlockingIOError:
            pass
        except OSError:  # it ended
            self.dead = True

    def receive(self, seconds: float = 0.0) -> None:
        """Handle replies; wait for the first of them for some time."""
        self.flush()
        if self.dead or not select.select([self.stdout], [], [], seconds)[0]:
            return
        try:
            content = os.read(self.stdout, 65_536)
        except BlockingIOError:
            return
        self.dead = self.dead or not content
        *lines, self.incoming = (self.incoming + content).split(b"\n")
        for reply in map(json.loads, lines):
            if tracking := self.trackings.get(reply["id"]):
                tracking.handle(reply)

    def close(self) -> None:
        """Close the pipes, whose numbers others may have from now on. The process ends once it has sent what it can."""
        died, self.dead = self.dead, True
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()
        if died:
            with contextlib.suppress(subprocess.TimeoutExpired):  # the system reaps it when this process ends
                self.process.wait(REAP_SECONDS)


_process: TrackerProcess | None = None
_numbers = itertools.count()


def tracker_process() -> TrackerProcess:
    """Return the process of the trackers, which is started at the first call, and again if it died."""
    global _process
    if _process is not None and (_process.owner != os.getpid() or _process.dead):
        _process.close()
        _process = None
    if _process is None:
        _process = TrackerProcess()
    return _process


def close() -> None:
    """End the process of the trackers, if there is one."""
    global _process
    if _process is not None:
        _process.close()
    _process = None


class Tracking:
    """The trackers of one run; without any, every method does nothing.

    Args:
        config: config of the run.
        directory: its directory, with its config.yaml.
        started: time at which the training started, in ISO 8601.
        prefix: text before the lines of the run on the console.
    """

    def __init__(self, config: RunConfig, directory: RunDirectory, started: str | None, prefix: str = "") -> None:
        self.trackers = [tracker.node() for tracker in config.trackers]
        self.config, self.directory, self.started, self.prefix = config, directory, started, prefix
        self.id = str(next(_numbers))
        self.process: TrackerProcess | None = None
        self.ended = False
        self.waiting: set[str] = set()
        """Names of the trackers that have not replied yet that they are done."""
        self.reported: set[str] = set()
        """Names of the trackers of which a line was printed."""

    @functools.cached_property
    def run(self) -> TrackedRun:
        """The run as its trackers see it."""
        return TrackedRun(
            key=self.directory.key,
            title=self.config.title,
            path=self.directory.path.absolute(),
            output_root=Path(self.config.output_root).expanduser().absolute(),
            group=None,
            started=datetime.fromisoformat(self.started).timestamp() if self.started else time.time(),
        )

    def open(self, epochs: int) -> None:
        """Begin or continue the records of the run.

        Args:
            epochs: number of finished epochs.
        """
        if not self.trackers:
            return
        try:
            self.process = tracker_process()
            self.process.trackings[self.id] = self
            self.waiting = {tracker["name"] for tracker in self.trackers}
            run = {"key": self.run.key, "title": self.run.title, "started": self.run.started}
            paths = {"path": str(self.run.path), "output_root": str(self.run.output_root)}
            self.process.write(
                {"event": "open", "id": self.id, "run": run | paths, "trackers": self.trackers, "epochs": epochs}
            )
        except Exception as error:  # no memory or no process left
            self.process = None
            self.say(f"trackers: their process cannot be started ({error}); the run goes on without them")

    def end_epoch(self, epochs: int) -> None:
        """Note that an epoch is finished: metrics.csv has its row."""
        if self.process and not self.ended:
            self.notify({"event": "rows", "id": self.id, "epochs": epochs}, droppable=True)

    def end(self, status: str, error: str = "") -> None:
        """Note how the run ended. `wait_for_trackers` waits for the trackers.

        Args:
            status: complete, failed, interrupted or pruned.
            error: message of the error that ended it, if it failed.
        """
        if self.process and not self.ended:
            self.ended = True
            self.notify({"event": "end", "id": self.id, "status": status, "error": error[:1000]})

    def notify(self, message: dict[str, Any], droppable: bool = False) -> None:
        """Send a message, unless the trackers do not read and a later message says the same."""
        assert self.process is not None
        try:
            if not (droppable and self.process.outgoing):
                self.process.write(message)
            self.process.receive()
        except Exception as error:
            log.debug("trackers: %r", error)
        if self.process.dead:
            self.report_death()

    def report_death(self) -> None:
        """Print that the process of the trackers ended, once."""
        if self.waiting - self.reported:
            self.say("trackers: their process ended; the run goes on, and the same command sends what is missing")
        self.reported |= self.waiting
        self.waiting.clear()

    def handle(self, reply: dict[str, Any]) -> None:
        """Handle a reply of the trackers' process: a tracker is done, or failed."""
        name = reply["tracker"]
        if "text" in reply and name not in self.reported:
            self.reported.add(name)
            self.say(f"tracker {name}: {reply['text']}; the run goes on, what is missing is sent later")
        if reply.get("done") and self.process:
            self.waiting.discard(name)
            self.process.unresponsive.discard(name)
            if not self.waiting:
                self.process.trackings.pop(self.id, None)

    def waits(self) -> bool:
        """Return whether it is worth waiting for a tracker of the run."""
        return self.process is not None and not self.process.dead and bool(self.waiting - self.process.unresponsive)

    def receive(self, seconds: float) -> None:
        """Handle replies; wait for the first of them for some time."""
        assert self.process is not None
        self.process.receive(seconds)

    def stop_waiting(self) -> set[str]:
        """Stop waiting for trackers; return the names of those that are not done and had no line yet."""
        if self.process is None:
            return set()
        if self.process.dead:
            self.report_death()
        silent = self.waiting - self.reported - self.process.unresponsive
        self.process.unresponsive |= self.waiting
        return silent

    def say(self, text: str) -> None:
        """Print a line of this run."""
        token = set_current_run(self.directory.log, self.prefix)
        try:
            log.info("%s", text)
        except OSError:  # the log cannot be written
            log.debug("%s", text)
        finally:
            reset_current_run(token)


def check_trackers(config: RunConfig) -> None:
    """Check the keys of a run's trackers that depend on where the runs are.

    Raises:
        ConfigError: one does not fit.
    """
    for tracker in config.trackers:
        roots = [Path(root) for root in (config.output_root, *config.shared_roots)]
        tracker.target.check(tracker.params, tracker.name, roots)


def resend(config: RunConfig, directory: RunDirectory, started: str | None, prefix: str = "") -> Tracking | None:
    """Return the trackings of a complete run whose records lack something, opened and ended; None if none does.

    Arguments: see `Tracking`.
    """
    tracking = Tracking(config, directory, started, prefix)
    try:
        tracking.trackers = [one for one in tracking.trackers if not has_marker(tracking.run, one)]
        epochs = len(tracking.run.rows()) if tracking.trackers else 0
    except (OSError, ValueError) as error:
        log.debug("trackers: %r", error)
        return None
    tracking.open(epochs)
    tracking.end("complete")
    return tracking


def wait_for_trackers(trackings: Sequence[Tracking | None]) -> None:
    """Wait for the trackers of runs that have ended, `PATIENCE_SECONDS` at most, and go on without the others."""
    ended = [tracking for tracking in trackings if tracking and tracking.ended and tracking.waiting]
    until = time.monotonic() + PATIENCE_SECONDS
    try:
        while (left := until - time.monotonic()) > 0 and (waiting := [one for one in ended if one.waits()]):
            waiting[0].receive(left)
    except Exception as error:
        log.debug("trackers: %r", error)
    roots = {name: Path(tracking.config.output_root) for tracking in ended for name in tracking.stop_waiting()}
    if roots:
        errors = [
            f"{name}: {text}" for name, root in sorted(roots.items()) if (text := read_error(root.expanduser(), name))
        ]
        last = f" (its last error was {'; '.join(errors)})" if errors else ""
        log.info(
            "tracker %s: still at work in the background%s; the same command sends what is then missing",
            ", ".join(sorted(roots)),
            last,
        )
