"""What a run's checkpoints cost: the training waits while one is written, flushed and read back."""

import copy
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from kdbench.bench.arms import Bench
from kdbench.bench.measure import spread
from kdbench.data.dataset import NUM_CLASSES
from kdbench.models import build
from kdbench.runs import RunDirectory
from kdbench.runtime import placed
from kdbench.train.checkpoint import Checkpointer
from kdbench.train.learner import Learner

TIMES = 5


def cost_of_checkpoints(bench: Bench, folder: Path) -> dict[str, Any]:
    """Measure a run's checkpoints in the middle of an epoch after the first, when they hold all that they can.

    Args:
        bench: Of the run.
        folder: On the disk that is to be measured; it is left as it was.

    Returns:
        `seconds` of writing one (median, lowest, highest, n), its `bytes`, and `share`: of a run's time, at the
        config's `checkpoint.every_minutes`; null where that is null.
    """
    config = bench.config
    torch.manual_seed(0)
    student = placed(build(config.student, NUM_CLASSES, bench.method.needs.student_stages), config.runtime)
    learner = Learner(student, placed(bench.method, config.runtime), config.recipe, config.runtime)
    learner.step_of_epoch = 1
    learner.best = {
        "epoch": 1,
        "val_acc": 0.0,
        "weights": copy.deepcopy(student.body.state_dict()),
        "method": copy.deepcopy(learner.method.state_dict()),
        "val_logits": torch.zeros(len(bench.dataset.val), NUM_CLASSES),
    }
    with tempfile.TemporaryDirectory(dir=folder) as root:
        directory = RunDirectory(Path(root) / "runs" / "checkpoints", "checkpoints")
        directory.create()
        with directory.locked("this benchmark", "wait") as lock:
            checkpointer = Checkpointer(directory, config.checkpoint, learner, lock, {})
            seconds = []
            for _ in range(TIMES + 1):
                started = time.perf_counter()
                checkpointer.save()
                seconds.append(time.perf_counter() - started)
        size = directory.checkpoint.stat().st_size
    every = config.checkpoint.every_minutes
    found = spread(seconds[1:])  # the first one meets a cold cache
    share = None if every is None else found["median"] / (60 * every + found["median"])
    return {"seconds": found, "bytes": size, "every_minutes": every, "share": share}
