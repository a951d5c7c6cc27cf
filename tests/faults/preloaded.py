"""Imports of the process that all children are forked from, so that they read nothing of it from the disk."""

import signal

import hydra_plugins.kdbench_lockstep
import hydra_plugins.kdbench_sweeper
import kdbench.report.table
import kdbench.rundir.load
import kdbench.runner.api
import kdbench.sweep.execute
import kdbench.sweep.lockstep
from tests.faults.processes import preload

__all__ = ["hydra_plugins", "kdbench"]
# The state of children before they set it themselves: a Ctrl-C in their first millisecond would print a traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)
preload()
