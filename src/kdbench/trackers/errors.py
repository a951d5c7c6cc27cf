"""Texts for the one line that an error of a tracker costs."""

import traceback
from pathlib import Path

from kdbench.errors import first_line, printable, without_passwords

LONGEST = 300
"""Number of characters of an error's message that are printed."""


def described(error: BaseException) -> str:
    """Return an error in one line; one that a library did not explain with its type and place."""
    text = without_passwords(printable(first_line(error)))
    text = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    if isinstance(error, OSError):
        return text
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "site-packages" not in frame.filename] or frames
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {text}{place}"
