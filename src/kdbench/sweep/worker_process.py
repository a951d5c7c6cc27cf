"""A worker process of hydra/launcher=joblib: what it executes, and its end with the process that has started it.

Nothing heavy is imported at the top: the process has imported this module before it can do anything.
"""

import os
import signal
import threading
import time
from typing import TYPE_CHECKING

from tqdm import tqdm

from kdbench.sweep.worker import GroupTask, run_group
from kdbench.system import signals

if TYPE_CHECKING:
    from kdbench.sweep.plan import JobResult

_executing = threading.Event()
"""Set while the process executes a group."""


def prepare(parent: int) -> None:
    """Prepare a new worker process: Ctrl-C is the parent's to handle, and without the parent it ends itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=end_with_parent, args=(parent,), daemon=True).start()


def end_with_parent(parent: int) -> None:
    """End this process when its parent is gone, with checkpoints of what it trains."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    while _executing.is_set():
        time.sleep(0.1)
    os._exit(signals.NOT_FINISHED)


def execute(task: GroupTask, device: str | None, threads: int) -> list["JobResult"]:
    """Execute a group. Arguments: see `kdbench.sweep.worker.run_group`."""
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which a killed process leaves to be reported
    _executing.set()
    try:
        return run_group(task, device, threads, named=True)
    finally:
        _executing.clear()
