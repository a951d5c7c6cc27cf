"""Checkpoints: a learner, its random state included, at any step of an epoch or at its end.

`last.ckpt` is the newest, `previous.ckpt` the one before it: should the newest be damaged, a run goes on from there.
"""

import io
import logging
import time
from collections.abc import Mapping
from typing import Any

import torch

from kdbench import checked
from kdbench.config import CheckpointConfig
from kdbench.errors import RunError, first_line
from kdbench.locks import Held
from kdbench.runs import RunDirectory
from kdbench.stopping import Interrupted
from kdbench.train.learner import Learner

log = logging.getLogger(__name__)


class Checkpointer:
    """Writes a run's checkpoints when they are due, and reads them back.

    Args:
        directory: Of the run.
        config: When they are due.
        learner: What is kept.
        lock: Of the run: who has lost it writes no more.
        facts: What the run depends on and must find again when it goes on: JSON values.
    """

    def __init__(
        self,
        directory: RunDirectory,
        config: CheckpointConfig,
        learner: Learner,
        lock: Held,
        facts: Mapping[str, Any],
    ) -> None:
        self.directory = directory
        self.config = config
        self.learner = learner
        self.lock = lock
        self.facts = dict(facts)
        self.written = time.monotonic()

    def between_steps(self) -> None:
        """Write where minutes make it due."""
        if self.minutes_are_over():
            self.save()

    def end_of_epoch(self) -> None:
        """Write where epochs or minutes make it due; at the end of the training in any case: testing takes time too."""
        epoch, every = self.learner.epoch, self.config.every_epochs
        if self.minutes_are_over() or (every and epoch % every == 0) or epoch == self.learner.recipe.epochs:
            self.save()

    def minutes_are_over(self) -> bool:
        every = self.config.every_minutes
        return every is not None and time.monotonic() - self.written >= 60 * every

    def save(self) -> None:
        """Write last.ckpt; the one before it is kept as previous.ckpt.

        Raises:
            OSError: it could not be written; those that are there stand.
            RunError: the training went wrong before this, so there is nothing worth keeping.
        """
        self.lock.check()
        self.learner.raise_if_failed()
        state = {"learner": self.learner.state_dict()}
        facts = self.facts | {"epoch": self.learner.epoch, "step": self.learner.step_of_epoch}
        content = io.BytesIO()
        torch.save(state, content)
        self.directory.write_checkpoint(lambda path: checked.write(path, facts, content.getvalue()))
        self.written = time.monotonic()

    def keep(self, interruption: Interrupted) -> None:
        """Write a checkpoint because a signal has ended the training."""
        self.save()
        log.info("%s: stopped after %s", interruption, self.where())

    def resume(self) -> None:
        """Bring a fresh learner to where the newest readable checkpoint stands, if there is one.

        Raises:
            RunError: the run cannot go on from it.
        """
        files = [file for file in self.directory.checkpoints() if file.is_file()]
        for position, file in enumerate(files):
            try:
                facts, content = checked.read(file)
                # Only tensors and plain values are ever unpickled. Loading moves what has to be on the device.
                state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            except OSError:
                raise
            except Exception as error:  # damaged bytes can raise anything
                log.info("%s is damaged or no checkpoint (%s)", file, first_line(error).rstrip("."))
                continue
            self.check_facts(facts)
            try:
                self.learner.load_state_dict(state["learner"])
            except (KeyError, RuntimeError, ValueError, TypeError, AttributeError) as error:
                raise RunError(
                    f"{file} was written by another version ({first_line(error)}); delete it to begin this run anew"
                ) from None
            for damaged in files[:position]:
                damaged.unlink()  # or the next one would take the place of this good one
            log.info("resuming from %s after %s", file.name, self.where())
            return
        if files:
            log.info("no checkpoint is readable; starting over")

    def where(self) -> str:
        """Where the training stands, for the user."""
        steps = f" and {self.learner.step_of_epoch} steps" if self.learner.step_of_epoch else ""
        return f"{self.learner.epoch} of {self.learner.recipe.epochs} epochs{steps}"

    def check_facts(self, there: Mapping[str, Any]) -> None:
        """That what the run depends on is what it was when it began."""
        for name, here in self.facts.items():
            if there.get(name, here) != here:
                raise RunError(
                    f"this run began with another {name.replace('_', ' ')}: {there[name]} then, {here} now; bring "
                    f"that one back, or delete {self.directory.path} to begin anew"
                )
