"""What kdbench says: to the user, and into each run's train.log, also where several runs share a process."""

import contextlib
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

_subject: ContextVar[tuple[Path, str] | None] = ContextVar("subject", default=None)
"""Log file of the run that is being spoken of, and what the user is to read before its lines."""


@contextmanager
def about(log: Path, prefix: str = "") -> Iterator[None]:
    """What is said meanwhile concerns the run with this log alone; no other run's log gets it."""
    token = _subject.set((log, prefix))
    try:
        yield
    finally:
        _subject.reset(token)


class Said(logging.Formatter):
    """For the user: messages as they are, after the name of the run that they are about where there are several."""

    def format(self, record: logging.LogRecord) -> str:
        subject = _subject.get()
        return f"{subject[1]}{record.getMessage()}" if subject else record.getMessage()


class LogFile(logging.FileHandler):
    """A run's log: what is said of it and of nobody in particular. The run ends when it cannot be written."""

    def __init__(self, file: Path) -> None:
        super().__init__(file)
        self.file = file
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))

    def filter(self, record: logging.LogRecord) -> bool:
        subject = _subject.get()
        return subject is None or subject[0] == self.file

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name for it
        """Hand the error on; logging would print it with a traceback and go on."""
        error = sys.exception()
        assert error is not None
        raise error


@contextmanager
def logged(file: Path) -> Iterator[None]:
    """Everything kdbench logs meanwhile also goes to this file, but for what is about another run."""
    end_torn_line(file)
    handler = LogFile(file)
    package = logging.getLogger("kdbench")
    level = package.level
    package.setLevel(logging.DEBUG)
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        with contextlib.suppress(OSError):  # of a disk that fails, the first error is the one to tell
            handler.close()


def end_torn_line(file: Path) -> None:
    """A line that a killed process left without its end gets one, so that what follows stands on its own."""
    if file.is_file() and file.stat().st_size and not file.read_bytes().endswith(b"\n"):
        with file.open("ab") as opened:
            opened.write(b"\n")
