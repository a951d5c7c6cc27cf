"""Description of a column of a table."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """Heading of a column on the page, its meaning for a reader who is no statistician, and its format."""

    heading: str
    meaning: str
    form: str = ""
    """Format specification for numbers."""


PER_CENT, POINTS, P = ".2f", "+.2f", "p"


def named(**columns: Column) -> dict[str, Column]:
    return columns
