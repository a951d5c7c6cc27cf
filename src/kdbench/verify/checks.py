"""The checks of one run: a line each, with its verdict. Imports no torch."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kdbench.errors import KdbenchError, first_line, printable
from kdbench.rundir.summary import names

T = TypeVar("T")
PASS, FAIL, NOT_CHECKED = "pass", "FAIL", "not checked"
ROUNDING = 1e-9
"""Relative tolerance of sums and logarithms in float64, which libraries compute alike but for the last bits."""


class NotChecked(Exception):  # noqa: N818  # not an error: the check ends, and the run is not at fault
    """Reason why something cannot be checked here."""


def needed(value: T | None, what: str) -> T:
    """Return an artifact that a check needs.

    Raises:
        NotChecked: it could not be read.
    """
    if value is None:
        raise NotChecked(f"needs {what}")
    return value


@dataclass(frozen=True)
class Line:
    """The outcome of one check."""

    verdict: str
    what: str
    detail: str

    def __str__(self) -> str:
        return printable(f"  {self.verdict:<11}  {self.what}" + (f": {self.detail}" if self.detail else ""))


@dataclass
class Checks:
    """Lines of the checks of one run.

    Args:
        recorded: keys that the run's summary.json holds, with their values.
    """

    recorded: Mapping[str, Any] = field(default_factory=dict)
    lines: list[Line] = field(default_factory=list)

    def passed(self, what: str, detail: str = "") -> None:
        """Add a check that passed."""
        self.lines.append(Line(PASS, what, detail))

    def failed(self, what: str, detail: str) -> None:
        """Add a check that failed."""
        self.lines.append(Line(FAIL, what, detail))

    def not_checked(self, what: str, why: str) -> None:
        """Add something that could not be checked."""
        self.lines.append(Line(NOT_CHECKED, what, why))

    @contextlib.contextmanager
    def checking(self, what: str) -> Iterator[None]:
        """Turn an exception of the block into the line of this check."""
        try:
            yield
        except NotChecked as why:
            self.not_checked(what, str(why))
        except KdbenchError as error:
            self.failed(what, first_line(error))
        except Exception as error:  # damaged bytes can raise anything
            self.failed(what, f"cannot be checked ({type(error).__name__}: {first_line(error)})")

    def same(self, source: str, tolerance: float = ROUNDING, /, **expected: Any) -> None:
        """Compare keys of the summary with recomputed values.

        Args:
            source: source of the values, for people: "from the logits".
            tolerance: accepted difference of numbers, see `alike`.
            expected: recomputed value per key; a `NotChecked` says why there is none.
        """
        for name, value in names(**expected).items():
            if isinstance(value, NotChecked):
                self.not_checked(name, str(value))
            elif name not in self.recorded:
                self.not_checked(name, "not recorded")
            else:
                self.compare(name, value, self.recorded[name], source, tolerance)

    def compare(self, what: str, expected: Any, recorded: Any, source: str, tolerance: float = ROUNDING) -> None:
        """Compare a recomputed value with the recorded one."""
        if alike(json.loads(json.dumps(expected)), recorded, tolerance):
            self.passed(what)
        else:
            self.failed(what, f"{shortened(expected)} {source}, {shortened(recorded)} recorded")

    def add_group(self, what: str, group: "Checks") -> None:
        """Add checks of one kind as one line, but for those that did not pass."""
        passed = [line.what for line in group.lines if line.verdict == PASS]
        if passed:
            self.passed(what, ", ".join(passed) if len(passed) <= 8 else f"{len(passed)} keys")
        self.lines += [line for line in group.lines if line.verdict != PASS]


def alike(expected: Any, recorded: Any, tolerance: float) -> bool:
    """Return whether two JSON values are equal, or numbers (lists of them) within a tolerance.

    The tolerance is relative for numbers above 1, absolute below.
    """
    if isinstance(expected, list) and isinstance(recorded, list):
        pairs = zip(expected, recorded, strict=False)
        return len(expected) == len(recorded) and all(alike(a, b, tolerance) for a, b in pairs)
    if type(expected) is float and type(recorded) in (int, float):
        return abs(expected - recorded) <= tolerance * max(1.0, abs(expected))
    return type(expected) is type(recorded) and expected == recorded


def shortened(value: Any) -> str:
    """Return a value for a line: the first digits of a hash, and at most 120 characters of anything else."""
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:12]}..."
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
