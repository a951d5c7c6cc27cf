"""Signals that ask a run to stop: what happens between the asking and the leaving.

Ctrl-C (SIGINT), the batch systems' SIGTERM, SIGUSR1 and SIGUSR2, and a study's own alarm are treated alike. While a run
trains they are noted, the loop finishes its step, writes a checkpoint and leaves; at any other time, when there is
nothing to lose, the process leaves at once. A second Ctrl-C leaves at once in any case, and so does a process that
could not do it within its grace: what is on disk is whole at every moment.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

GRACE_SECONDS = 20.0
"""Until a run says its own (checkpoint.grace_seconds). SLURM gives 30 between SIGTERM and SIGKILL."""
NOT_FINISHED = 75
"""Exit code: stopped by a signal, or left to another process; the same command goes on. BSD's EX_TEMPFAIL."""
TIME_IS_UP = 3
INTERRUPTED = 130
EXIT_CODES = {signal.SIGINT: INTERRUPTED, signal.SIGALRM: TIME_IS_UP}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)


class Interrupted(KeyboardInterrupt):
    """A signal has asked to stop. Passes everything that catches errors, as Ctrl-C does."""

    def __init__(self, asked: signal.Signals) -> None:
        super().__init__(asked.name)
        self.asked = asked

    @property
    def exit_code(self) -> int:
        return EXIT_CODES.get(self.asked, NOT_FINISHED)


class Request:
    """What this process was asked, and how it is to answer. There is one: signals belong to the process."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None
        self.listeners = 0
        self.deferring = 0
        self.grace_seconds = GRACE_SECONDS
        self.watchdog: threading.Timer | None = None


_request = Request()


@contextlib.contextmanager
def listening() -> Iterator[None]:
    """Answer signals as this module says, meanwhile. In a thread, where Python hears none, nothing changes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, note) for number in SIGNALS}
    _request.listeners += 1
    try:
        yield
    finally:
        _request.listeners -= 1
        for number, handler in before.items():
            signal.signal(number, handler)
        if not _request.listeners:
            forget()


@contextlib.contextmanager
def deferred(grace_seconds: float) -> Iterator[None]:
    """Note signals instead of leaving: whoever works inside calls `leave_if_asked` where it can leave.

    Args:
        grace_seconds: Within which it does so; then the process is ended.
    """
    before, _request.grace_seconds = _request.grace_seconds, grace_seconds
    _request.deferring += 1
    try:
        yield
    finally:
        _request.deferring -= 1
        _request.grace_seconds = before


def leave_if_asked() -> None:
    """A place at which a run can leave.

    Raises:
        Interrupted: a signal has asked to.
    """
    if _request.asked is not None:
        raise Interrupted(_request.asked)


def note(number: int, _frame: FrameType | None) -> None:
    """The handler of every signal listened to."""
    asked = signal.Signals(number)
    if _request.asked is not None:
        if asked is signal.SIGINT:
            leave_at_once("interrupted twice, leaving at once", INTERRUPTED)
        return  # batch systems may repeat themselves
    _request.asked = asked
    _request.watchdog = threading.Timer(_request.grace_seconds, out_of_grace)
    _request.watchdog.daemon = True
    _request.watchdog.start()
    if not _request.deferring:
        raise Interrupted(asked)


def out_of_grace() -> None:
    assert _request.asked is not None
    leave_at_once(
        f"{_request.asked.name}: not done within checkpoint.grace_seconds={_request.grace_seconds:g}, leaving; "
        "the last checkpoint stands",
        Interrupted(_request.asked).exit_code,
    )


def leave_at_once(why: str, code: int) -> NoReturn:
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # a stream may be closed, or be written to right now
        os.write(2, f"kdbench: {why}\n".encode())
        sys.stdout.flush()
    os._exit(code)


def forget() -> None:
    """Be as a process that was asked nothing."""
    if _request.watchdog:
        _request.watchdog.cancel()
    _request.asked = _request.watchdog = None
