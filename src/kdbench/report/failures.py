"""Runs that ended in an error: which they are, and what they would change."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FailedRun:
    """Run that ended in an error and has no result."""

    student: str
    teacher: str | None
    method: str
    seed: int | None
    reason: str
    path: str
