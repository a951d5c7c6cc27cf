"""Imported by the process that all children are forked from: what it has imported, they need not read from the disk."""

import signal

import hydra_plugins.kdbench_lockstep
import hydra_plugins.kdbench_sweeper
import kdbench.sweep
from tests.faults.processes import preload

__all__ = ["hydra_plugins", "kdbench"]
# What children have before they set it themselves; else a Ctrl-C in their first millisecond is a traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)
preload()
