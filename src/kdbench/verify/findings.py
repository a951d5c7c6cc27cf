"""What was found of one run, line by line."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from kdbench.errors import KdbenchError, first_line, printable

T = TypeVar("T")
HOLDS, FAILS, NOT_CHECKED = "holds", "FAILS", "not checked"
ROUNDING = 1e-9
"""Relative; of sums and logarithms in float64, which no two libraries take alike to the last bit."""


class NotChecked(Exception):  # noqa: N818  # not an error: the check ends, the run is not at fault
    """Why something cannot be checked here."""


def needed(value: T | None, what: str) -> T:
    """A part of the run that was read, or the end of the check that needs it."""
    if value is None:
        raise NotChecked(f"needs {what}")
    return value


@dataclass(frozen=True)
class Line:
    verdict: str
    what: str
    detail: str

    def __str__(self) -> str:
        return printable(f"  {self.verdict:<11}  {self.what}" + (f": {self.detail}" if self.detail else ""))


@dataclass
class Findings:
    """Collects the lines.

    Args:
        summary: What was recorded.
    """

    summary: Mapping[str, Any]
    lines: list[Line] = field(default_factory=list)

    def holds(self, what: str, detail: str = "") -> None:
        self.lines.append(Line(HOLDS, what, detail))

    def fails(self, what: str, detail: str) -> None:
        self.lines.append(Line(FAILS, what, detail))

    def not_checked(self, what: str, why: str) -> None:
        self.lines.append(Line(NOT_CHECKED, what, why))

    @contextlib.contextmanager
    def checking(self, what: str) -> Iterator[None]:
        """Whatever is raised meanwhile becomes the line of this check."""
        try:
            yield
        except NotChecked as why:
            self.not_checked(what, str(why))
        except KdbenchError as error:
            self.fails(what, first_line(error))
        except Exception as error:  # damaged bytes can raise anything
            self.fails(what, f"cannot be checked ({type(error).__name__}: {first_line(error)})")

    def same(self, key: str, here: Any, source: str, tolerance: float = ROUNDING) -> None:
        """A key of the summary holds what it is found to be."""
        if key not in self.summary:
            self.not_checked(key, "not recorded")
        else:
            self.compare(key, here, self.summary[key], source, tolerance)

    def compare(self, what: str, here: Any, recorded: Any, source: str, tolerance: float = ROUNDING) -> None:
        if alike(json.loads(json.dumps(here)), recorded, tolerance):
            self.holds(what)
        else:
            self.fails(what, f"{shown(here)} {source}, {shown(recorded)} recorded")

    def together(self, what: str, group: "Findings") -> None:
        """Checks of one kind as one line, but for those that fail."""
        held = [line.what for line in group.lines if line.verdict == HOLDS]
        if held:
            self.holds(what, ", ".join(held) if len(held) <= 8 else f"{len(held)} keys")
        self.lines += [line for line in group.lines if line.verdict != HOLDS]


def alike(here: Any, recorded: Any, tolerance: float) -> bool:
    """Equal, or numbers (lists of them) that differ by no more than the tolerance, relative if they are above 1."""
    if isinstance(here, list) and isinstance(recorded, list):
        return len(here) == len(recorded) and all(alike(a, b, tolerance) for a, b in zip(here, recorded, strict=True))
    if type(here) is float and type(recorded) in (int, float):
        return abs(here - recorded) <= tolerance * max(1.0, abs(here))
    return type(here) is type(recorded) and here == recorded


def shown(value: Any) -> str:
    """A value in a line: hashes by their first digits, and no text that fills the screen."""
    if isinstance(value, str) and len(value) == 64:
        return f"{value[:12]}..."
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
