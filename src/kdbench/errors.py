"""What kdbench tells a user who can do something about it. Anything else that is raised is a bug."""

import argparse
import difflib
import sys
from collections.abc import Iterable
from typing import NoReturn


class KdbenchError(Exception):
    """One line for the user: which key, what it was, what it may be, what to do."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class ConfigError(KdbenchError):
    """A config that cannot run. Nothing has been written."""

    exit_code = 2


class RunError(KdbenchError):
    """A run that started and could not be finished."""


class BusyError(KdbenchError):
    """Another process has this run, and it was not to be waited for."""

    exit_code = 75


def refuse(error: KdbenchError, where: str = "", program: str = "kdbench") -> int:
    """Say it in one line; its exit code."""
    kind = "" if isinstance(error, BusyError) else "error: "  # leaving a run to another process is none
    print(f"{program}: {kind}{where}{error}", file=sys.stderr)
    return error.exit_code


class Parser(argparse.ArgumentParser):
    """Says what is wrong with a command line in one line, as for a config, where argparse prints its usage first."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{' '.join(message.split())}; see {self.prog} --help")


def printable(text: str) -> str:
    """Text that a user gave, in one line: line breaks, control characters and broken bytes as their escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def nearest(name: str, valid: Iterable[str]) -> str:
    """A hint for a mistyped `name`: the closest valid names first, then all of them if they are few."""
    options = sorted(valid)
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    if len(options) <= 30:
        return f"{hint}valid: {', '.join(options) or 'none'}"
    return f"{hint}there are {len(options)} valid names"


def first_line(error: BaseException) -> str:
    """An exception in one line: its type's name if it says nothing."""
    first, *rest = str(error).splitlines() or [type(error).__name__]
    return f"{first} {rest[0]}" if first.endswith(":") and rest else first or type(error).__name__
