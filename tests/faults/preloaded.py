"""Imported by the process that all children are forked from."""

from tests.faults.processes import preload

preload()
