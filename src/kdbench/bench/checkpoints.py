"""The cost of a run's checkpoints: training waits while one is written, flushed and read back."""

import tempfile
import time
from pathlib import Path
from typing import Any

from kdbench.bench.arms import KDBENCH
from kdbench.bench.measure import spread
from kdbench.bench.trainee import Bench
from kdbench.bench.training import Training
from kdbench.rundir.directory import RunDirectory
from kdbench.runner.build import bind, build_learner, build_parts
from kdbench.train.checkpoint import Checkpointer

TIMES = 5
"""Number of checkpoints that are measured."""


def cost_of_checkpoints(bench: Bench, folder: Path) -> dict[str, Any]:
    """Measure a run's checkpoints in the middle of its second epoch, when they hold all that they can.

    Args:
        bench: the run.
        folder: folder on the disk that is measured; it is left as it was.

    Returns:
        `seconds` of writing one (median, lowest, highest, n), its `bytes`, and `share`: the share of a run's time at
        the config's `checkpoint.every_minutes`; null where that is null.
    """
    config = bench.config
    parts = build_parts(config)
    bind(parts, bench.networks)
    learner = build_learner(config, parts)
    learner.teacher = bench.teacher_for(KDBENCH, config)
    Training([learner], parts.batches).train(1)
    learner.end_epoch(parts.dataset)
    Training([learner], parts.batches).train(1)
    with tempfile.TemporaryDirectory(dir=folder) as root:
        directory = RunDirectory(Path(root) / "runs" / "checkpoints", "checkpoints")
        directory.create()
        lock = directory.lock("benchmark")
        lock.acquire(wait=True)
        try:
            checkpointer = Checkpointer(directory, config.checkpoint, learner, lock, {})
            seconds = []
            for _ in range(TIMES + 1):
                started = time.perf_counter()
                checkpointer.save()
                seconds.append(time.perf_counter() - started)
        finally:
            lock.release()
        size = directory.checkpoint.stat().st_size
    every = config.checkpoint.every_minutes
    measured = spread(seconds[1:])  # the first one finds a cold cache
    share = None if every is None else measured["median"] / (60 * every + measured["median"])
    return {"seconds": measured, "bytes": size, "every_minutes": every, "share": share}
