"""Checkpoints: a learner with its random state, after any step of an epoch or at its end.

`last.ckpt` is the newest and `previous.ckpt` the one before it: if the newest is damaged, a run resumes from that.
"""

import io
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from kdbench.config import CheckpointConfig
from kdbench.errors import RunError, first_line
from kdbench.system.memory import is_out_of_memory
from kdbench.system.signals import Interrupted
from kdbench.train.learner import Learner

log = logging.getLogger(__name__)


class Store(Protocol):
    """Where records and checkpoints are kept: a run directory."""

    def write_metrics(self, rows: Sequence[Mapping[str, float]]) -> None: ...

    def save_checkpoint(self, metadata: Mapping[str, Any], content: bytes) -> None: ...

    def read_checkpoints(self) -> Iterator[tuple[Path, dict[str, Any], bytes]]: ...

    def checkpoints(self) -> tuple[Path, ...]: ...


class Ownership(Protocol):
    """The lock of the run."""

    def check(self) -> None: ...


class Checkpointer:
    """Records and checkpoints of a learner, written when they are due and read to restore it.

    Args:
        store: run directory.
        config: when checkpoints are due.
        learner: the learner.
        lock: lock of the run; without it nothing is written.
        metadata: JSON values that can be read without the learner's state.
        on_rows: function that is called with the number of finished epochs when their rows are written.
    """

    def __init__(
        self,
        store: Store,
        config: CheckpointConfig,
        learner: Learner,
        lock: Ownership,
        metadata: Mapping[str, Any],
        on_rows: Callable[[int], None] = lambda epochs: None,
    ) -> None:
        self.store = store
        self.config = config
        self.learner = learner
        self.lock = lock
        self.metadata = dict(metadata)
        self.on_rows = on_rows
        self.written = time.monotonic()

    def maybe_save(self) -> None:
        """Write a checkpoint after a step, if one is due by time."""
        if self.minutes_are_over():
            self.save()

    def end_epoch(self) -> None:
        """Write the metrics after an epoch, and a checkpoint if one is due; after the last epoch in any case.

        The test takes time too, so the end of the training is worth keeping.
        """
        self.lock.check()
        self.store.write_metrics(self.learner.rows)
        self.on_rows(self.learner.epoch)
        epoch, every = self.learner.epoch, self.config.every_epochs
        if self.minutes_are_over() or (every and epoch % every == 0) or epoch == self.learner.recipe.epochs:
            self.save()

    def minutes_are_over(self) -> bool:
        """Return whether the last checkpoint is older than `checkpoint.every_minutes`."""
        every = self.config.every_minutes
        return every is not None and time.monotonic() - self.written >= 60 * every

    def save(self) -> None:
        """Write last.ckpt; the one before it is kept as previous.ckpt.

        Raises:
            OSError: it could not be written; the existing ones are intact.
            RunError: a step of this epoch ended the run, so its state is not worth keeping.
        """
        self.lock.check()
        self.learner.raise_if_failed()
        content = io.BytesIO()
        torch.save({"learner": self.learner.state_dict()}, content)
        position = {"epoch": self.learner.epoch, "step": self.learner.step_of_epoch}
        self.store.save_checkpoint(self.metadata | position, content.getvalue())
        self.written = time.monotonic()

    def save_interrupted(self, interruption: Interrupted) -> None:
        """Write a checkpoint because a stop was requested."""
        self.save()
        log.info("%s: stopped after %s", interruption, self.position())

    def resume(self) -> None:
        """Restore a fresh learner from the newest readable checkpoint, if there is one.

        Raises:
            RunError: the checkpoint is of another version.
        """
        for file, _, content in self.store.read_checkpoints():
            try:
                # Only tensors and plain values are ever unpickled. Loading moves what has to be on the device.
                state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            except Exception as error:  # foreign bytes raise many types
                if is_out_of_memory(error):
                    raise
                log.info("%s is damaged or no checkpoint (%s)", file, first_line(error).rstrip("."))
                continue
            try:
                self.learner.load_state_dict(state["learner"])
            except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
                if is_out_of_memory(error):
                    raise
                raise RunError(
                    f"{file} was written by another version ({first_line(error)}); delete it to start this run again",
                    code="damaged",
                    key="last.ckpt",
                ) from None
            for newer in self.store.checkpoints():
                if newer == file:
                    break
                newer.unlink(missing_ok=True)  # damaged: the next checkpoint would replace this good one by it
            log.info("resuming from %s after %s", file.name, self.position())
            return
        if any(file.is_file() for file in self.store.checkpoints()):
            log.info("no checkpoint is readable; starting over")

    def position(self) -> str:
        """Return the learner's position, for the user."""
        steps = f" and {self.learner.step_of_epoch} steps" if self.learner.step_of_epoch else ""
        return f"{self.learner.epoch} of {self.learner.recipe.epochs} epochs{steps}"
