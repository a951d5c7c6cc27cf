"""Log lines: to the console, and into each run's train.log, also where several runs share a process."""

import contextlib
import logging
import os
import signal
import sys
from contextvars import ContextVar, Token
from pathlib import Path

from kdbench.errors import without_passwords
from kdbench.system import signals

_current: ContextVar[tuple[Path | None, str] | None] = ContextVar("current", default=None)
"""Log file and prefix of the run that the lines belong to."""
RunToken = Token[tuple[Path | None, str] | None]


def set_current_run(log: Path | None, prefix: str = "") -> RunToken:
    """Have the following log lines belong to one run. `reset_current_run` ends it.

    Args:
        log: log file of the run; no other run's log gets the lines.
        prefix: text before each of them on the console.
    """
    return _current.set((log, prefix))


def reset_current_run(token: RunToken) -> None:
    """End what `set_current_run` began."""
    _current.reset(token)


class ConsoleFormatter(logging.Formatter):
    """Messages as they are, after the name of their run where several share the process."""

    def format(self, record: logging.LogRecord) -> str:
        current = _current.get()
        text = without_passwords(record.getMessage())
        return f"{current[1]}{text}" if current else text


class FileFormatter(logging.Formatter):
    """Lines with their time, without passwords."""

    def format(self, record: logging.LogRecord) -> str:
        return without_passwords(super().format(record))


class ConsoleHandler(logging.StreamHandler):
    """Handler for standard output. Once it is closed (`... | head`), it requests a stop as Ctrl-C does."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name for it
        if isinstance(sys.exception(), BrokenPipeError):
            silence_stdout()
            signals.receive(signal.SIGPIPE)
        else:
            super().handleError(record)


class RunLog(logging.FileHandler):
    """The log file of a run: its own lines, and those that belong to no run.

    Args:
        file: the log file. A line that a killed process left without its end gets one.
    """

    level_before = logging.NOTSET
    """Level of kdbench's loggers before the first log was opened."""

    def __init__(self, file: Path) -> None:
        end_torn_line(file)
        super().__init__(file)
        self.file = file
        self.setFormatter(FileFormatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))

    def filter(self, record: logging.LogRecord) -> bool:
        current = _current.get()
        return current is None or current[0] == self.file

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name for it
        """Raise the error, so that the run fails; logging would print a traceback and continue."""
        error = sys.exception()
        assert error is not None
        raise error

    def open(self) -> None:
        """Start to write the lines of kdbench's loggers, at whatever level the process has set."""
        package = logging.getLogger("kdbench")
        if not any(isinstance(handler, RunLog) for handler in package.handlers):
            RunLog.level_before = package.level
        package.setLevel(logging.DEBUG)
        package.addHandler(self)

    def close(self) -> None:
        """Stop writing."""
        package = logging.getLogger("kdbench")
        if self in package.handlers:
            package.removeHandler(self)
            if not any(isinstance(handler, RunLog) for handler in package.handlers):
                package.setLevel(RunLog.level_before)
        with contextlib.suppress(OSError):  # the first error of a failing disk is the one to report
            super().close()


def end_torn_line(file: Path) -> None:
    """End a line that a killed process left without its end."""
    if file.is_file() and file.stat().st_size and not file.read_bytes().endswith(b"\n"):
        with file.open("ab") as opened:
            opened.write(b"\n")


def log_to_console() -> None:
    """Send kdbench's log lines to standard output, and keep Hydra's, which repeat its errors, off the console."""
    package = logging.getLogger("kdbench")
    package.setLevel(logging.DEBUG)
    package.propagate = False
    handler = ConsoleHandler(sys.stdout)
    handler.setLevel(logging.INFO)
    handler.setFormatter(ConsoleFormatter())
    package.handlers = [other for other in package.handlers if isinstance(other, RunLog)]
    package.addHandler(handler)
    logging.getLogger("hydra").setLevel(logging.CRITICAL)


def silence_stdout() -> None:
    """Discard further output: the reader of standard output is gone."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
