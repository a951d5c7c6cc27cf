"""Signals that request a stop: finish the step, write a checkpoint, leave.

Ctrl-C (SIGINT), the batch systems' SIGTERM, SIGUSR1 and SIGUSR2, and the alarm of a study are treated alike. While a
run trains they are noted, the loop finishes its step, writes a checkpoint and leaves. At any other time, when nothing
can be lost, the process leaves at once. A second Ctrl-C leaves at once in any case but under torchrun, which repeats
the first one, and so does a process that does not finish within the grace time: the files on disk are whole at every
moment.

A handler from before ours, such as submitit's, which requeues the job, is called once the runs have left.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

GRACE_SECONDS = 20.0
"""Grace time outside of runs, which have `checkpoint.grace_seconds`. SLURM gives 30 between SIGTERM and SIGKILL."""
NOT_FINISHED = 75
"""Exit code: stopped by a signal, or skipped for another process; the same command continues. BSD's EX_TEMPFAIL."""
TIME_IS_UP = 3
INTERRUPTED = 130
PIPE_CLOSED = 141
"""Exit code of a command whose output is no longer read: 128 + SIGPIPE, as a shell reports it."""
EXIT_CODES = {signal.SIGINT: INTERRUPTED, signal.SIGALRM: TIME_IS_UP, signal.SIGPIPE: PIPE_CLOSED}
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM)


class Interrupted(KeyboardInterrupt):
    """A requested stop. Passes every `except Exception`, as Ctrl-C does."""

    def __init__(self, requested: signal.Signals) -> None:
        super().__init__(requested.name)
        self.requested = requested

    def __reduce__(self) -> tuple[type["Interrupted"], tuple[signal.Signals]]:
        return Interrupted, (self.requested,)  # `args` holds its name alone

    @property
    def exit_code(self) -> int:
        return EXIT_CODES.get(self.requested, NOT_FINISHED)


class StopRequest:
    """The signal that this process received, and how it reacts. There is one: signals belong to the process."""

    def __init__(self) -> None:
        self.requested: signal.Signals | None = None
        self.handlers: dict[int, Any] = {}
        """Handlers from before ours were installed; empty where they are not."""
        self.deferring = 0
        self.leaving = False
        """True once the stop was raised as an exception, which unwinds the code."""
        self.grace_seconds = GRACE_SECONDS
        self.watchdog: threading.Timer | None = None
        self.repeats = False
        """True if Ctrl-C arrives more than once by itself: from the terminal, and from torchrun."""


_stop = StopRequest()


def install() -> None:
    """Handle the signals as this module describes, from now on. In a thread, where Python handles none, do nothing."""
    if threading.current_thread() is threading.main_thread() and not _stop.handlers:
        _stop.handlers = {number: signal.signal(number, receive) for number in SIGNALS}


def expect_repeats() -> None:
    """Take a second Ctrl-C for a repetition of the first, as torchrun sends one to its processes."""
    _stop.repeats = True


def uninstall() -> None:
    """Put back the handlers from before `install`, and clear the stop request."""
    for number, handler in _stop.handlers.items():
        signal.signal(number, handler)
    _stop.handlers, _stop.repeats = {}, False
    clear()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Handle the signals as this module describes while the block runs. Blocks may be nested."""
    nested = bool(_stop.handlers)
    install()
    try:
        yield
    except Interrupted as stop:
        if not nested:
            pass_on(stop)
        raise
    finally:
        if not nested:
            uninstall()


@contextlib.contextmanager
def deferred(grace_seconds: float) -> Iterator[None]:
    """Note signals instead of leaving; the block calls `raise_if_requested` where it can leave.

    Args:
        grace_seconds: time in which it does so; after that the process is ended.
    """
    nested, before = bool(_stop.handlers), _stop.grace_seconds
    install()
    _stop.grace_seconds = grace_seconds
    _stop.deferring += 1
    try:
        yield
    except Interrupted as stop:
        if not nested:
            pass_on(stop)
        raise
    finally:
        _stop.deferring -= 1
        _stop.grace_seconds = before
        if not nested:
            uninstall()


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Deliver SIGINT after the block. Processes that are started in it do not get the Ctrl-C of the terminal."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def pass_on(stop: Interrupted) -> None:
    """Call the handler that a signal had before `install`, if a program has set one, now that the runs have left."""
    handler = _stop.handlers.get(stop.requested)
    if callable(handler) and handler is not signal.default_int_handler:
        if _stop.watchdog:
            _stop.watchdog.cancel()
        handler(stop.requested, None)


def requested() -> int | None:
    """Return the number of the signal that requested a stop, or None."""
    return _stop.requested


def raise_if_requested() -> None:
    """Leave if a stop was requested. Called where a run can leave.

    Raises:
        Interrupted: a signal was received.
    """
    if _stop.requested is not None:
        _stop.leaving = True
        raise Interrupted(_stop.requested)


def interruption() -> Interrupted | None:
    """Return the requested stop that has interrupted the code outside of `deferred`, or None.

    An error that follows is a consequence of it: libraries may fail while they unwind, and then raise something else.
    """
    return Interrupted(_stop.requested) if _stop.requested and _stop.leaving and not _stop.deferring else None


def receive(number: int, _frame: FrameType | None = None) -> None:
    """Handle a signal; also called for a stop that has another cause, with the number that fits it."""
    received = signal.Signals(number)
    if _stop.requested is not None:
        if received is signal.SIGINT and not _stop.repeats:
            leave_at_once("interrupted twice, leaving at once", INTERRUPTED)
        return  # batch systems may repeat themselves
    _stop.requested = received
    _stop.watchdog = threading.Timer(_stop.grace_seconds, end_process)
    _stop.watchdog.daemon = True
    _stop.watchdog.start()
    if not _stop.deferring:
        _stop.leaving = True
        raise Interrupted(received)


def end_process() -> None:
    """End a process that did not leave within its grace time."""
    assert _stop.requested is not None
    leave_at_once(
        f"{_stop.requested.name}: not finished within checkpoint.grace_seconds={_stop.grace_seconds:g}, leaving; "
        "the last checkpoint is intact",
        Interrupted(_stop.requested).exit_code,
    )


def leave_at_once(why: str, code: int) -> NoReturn:
    """Print one line and end the process without any clean-up."""
    with contextlib.suppress(OSError, RuntimeError, ValueError):  # a stream may be closed, or be in use right now
        os.write(2, f"kdbench: {why}\n".encode())
        sys.stdout.flush()
    os._exit(code)


def clear() -> None:
    """Clear the stop request."""
    if _stop.watchdog:
        _stop.watchdog.cancel()
    _stop.requested = _stop.watchdog = None
    _stop.leaving = False
