"""What a command reported: the errors behind the lines on standard error, with their codes and keys."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from kdbench.errors import KdbenchError


@contextmanager
def recorded_errors() -> Iterator[list[KdbenchError]]:
    """Record every error for the user that is made in the block, whether it is raised, stored or printed."""
    made: list[KdbenchError] = []
    construct = KdbenchError.__init__

    def record(self: KdbenchError, message: str, **named: Any) -> None:
        construct(self, message, **named)
        made.append(self)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(KdbenchError, "__init__", record)
        yield made


def reported(made: list[KdbenchError], err: str) -> list[tuple[str, str]]:
    """Return code and key of the error behind each line of standard error, an empty pair where there is none."""
    found = []
    for line in err.splitlines():
        behind = [error for error in made if line.endswith(str(error))]
        found.append((behind[-1].code, behind[-1].key) if behind else ("", ""))
    return found
