"""Finished runs that these tests begin with."""

from tests.derived import copies

__all__ = ["copies"]
