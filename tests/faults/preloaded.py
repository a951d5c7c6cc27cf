"""Imported by the process that all children are forked from: what it has imported, they need not read from the disk."""

import hydra_plugins.kdbench_sweeper
import kdbench.sweep
from tests.faults.processes import preload

__all__ = ["hydra_plugins", "kdbench"]
preload()
