"""Errors for the user, each in one line. Anything else that is raised is a bug."""

import argparse
import difflib
import re
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote_plus


class KdbenchError(Exception):
    """An error that the user can fix.

    Args:
        message: one line: which key, what it was, what it may be, what to do.
        code: short name of the kind of error, for example `unknown_key`; tests assert it.
        key: config key or flag that the user has to change, for example `recipe.lr`; empty where there is none.
    """

    exit_code = 1

    def __init__(self, message: str, *, code: str, key: str = "") -> None:
        super().__init__(without_passwords(printable(message)))
        self.code = code
        self.key = key


class ConfigError(KdbenchError):
    """A config that cannot run. Nothing has been written."""

    exit_code = 2


class RunError(KdbenchError):
    """A run that started and could not be finished."""


class BusyError(KdbenchError):
    """Another process holds the lock, and `on_busy` is skip."""

    exit_code = 75


class PrunedError(KdbenchError):
    """A search has ended the run before its last epoch: no failure, and the same command without the search goes on."""

    exit_code = 0


class SettingsChangedError(BusyError):
    """Another process changed what the run has to keep while this one waited; resolving the run again fixes it."""


def report_error(error: KdbenchError, where: str = "", program: str = "kdbench") -> int:
    """Print an error to standard error in one line and return its exit code.

    Args:
        error: the error.
        where: text before the message, for example the title of a run.
        program: name of the command.
    """
    kind = "" if isinstance(error, BusyError | PrunedError) else "error: "
    print(f"{program}: {kind}{where}{error}", file=sys.stderr)
    return error.exit_code


class Parser(argparse.ArgumentParser):
    """Argument parser whose errors are one line; argparse prints its usage first."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{' '.join(message.split())}; see {self.prog} --help", code="usage")


def printable(text: str) -> str:
    """Return a text in one line: line breaks, control characters and broken bytes as their escapes."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


CREDENTIALS = re.compile(r"(?<=://)(?:(?P<user>[^\s/:@?#'\"]*):(?:(?!://)\S)*|[^\s/:@?#'\",]+)@")
"""User and password of a URL, up to its last @: passwords are also given with / or @, although URLs have %2F."""
SECRET = re.compile(r"(?:^|(?<=[?&.;{,\s'\"]))(?P<name>[\w%+-]+)(?P<sign>=|:(?!\s))(?P<value>'[^']*'|[^\s&#,;'\"{}]+)")
"""A parameter of a URL, or an override."""
SECRET_NAMES = re.compile(
    r"(?i)(\w+_)?(ssl)?(password|passwd|pwd|passphrase|secret|token|api[_-]?key|access_?key|secret_?key)"
)


def without_passwords(text: str) -> str:
    """Return a text, such as a URL or a command line, with *** for the passwords and tokens in it."""
    if "://" in text:
        text = CREDENTIALS.sub(lambda found: "***@" if found["user"] is None else f"{found['user']}:***@", text)
    return SECRET.sub(without_secret, text) if "=" in text or ":" in text else text


def without_secret(found: re.Match[str]) -> str:
    """Return a parameter without its value, if that is secret."""
    if not SECRET_NAMES.fullmatch(unquote_plus(found["name"])):
        return found[0]
    return f"{found['name']}{found['sign']}***"


def data_without_passwords(data: Any) -> Any:
    """Return plain data with `without_passwords` of each of its texts."""
    if isinstance(data, str):
        return without_passwords(data)
    if isinstance(data, dict):
        return {key: data_without_passwords(value) for key, value in data.items()}
    return [data_without_passwords(one) for one in data] if isinstance(data, list | tuple) else data


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint for a mistyped `name`: the closest valid names first, then all of them if they are few."""
    options = sorted(valid)
    close = [option for option in options if option.lower() == name.lower()]
    close = close or difflib.get_close_matches(name, options, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    if len(options) <= 35:
        return f"{hint}valid: {', '.join(options) or 'none'}"
    return f"{hint}there are {len(options)} valid names"


def first_line(error: BaseException) -> str:
    """Return an exception's message in one line, or the name of its type if it has none."""
    first, *rest = str(error).splitlines() or [type(error).__name__]
    return f"{first} {rest[0]}" if first.endswith(":") and rest else first or type(error).__name__


def described_at(error: BaseException, cls: type) -> str:
    """Return type, first line and place of an error of a user's class: the line to look at, not one of a library."""
    frames = traceback.extract_tb(error.__traceback__)
    own = getattr(sys.modules.get(cls.__module__), "__file__", None)
    last = [frame for frame in frames if frame.filename == own] or frames
    return f"{type(error).__name__}: {first_line(error)} ({Path(last[-1].filename).name}, line {last[-1].lineno})"
