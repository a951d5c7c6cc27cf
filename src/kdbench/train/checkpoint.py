"""last.ckpt: a learner and the random state, at the end of an epoch."""

import logging
import time
from pathlib import Path
from typing import Any

import torch

from kdbench.config import CheckpointConfig
from kdbench.errors import RunError, first_line
from kdbench.runs import RunDirectory
from kdbench.train.learner import Learner

log = logging.getLogger(__name__)


class Checkpointer:
    """Writes a run's last.ckpt when it is due, and reads it back."""

    def __init__(self, directory: RunDirectory, config: CheckpointConfig) -> None:
        self.directory = directory
        self.config = config
        self.written = time.monotonic()

    def save_if_due(self, learner: Learner) -> None:
        """Write when the last one is `every_minutes` old; and at the end, where it is to be kept."""
        finished = learner.epoch == learner.recipe.epochs
        if self.config.keep_last if finished else time.monotonic() - self.written >= 60 * self.config.every_minutes:
            state = {"learner": learner.state_dict(), "random": random_state(learner.runtime.device)}
            self.directory.write_with(self.directory.checkpoint, lambda path: torch.save(state, path))
            self.written = time.monotonic()

    def resume(self, learner: Learner) -> None:
        """Bring a fresh learner to where last.ckpt stands, if there is a readable one."""
        path = self.directory.checkpoint
        if not path.is_file():
            return
        state = read(path)
        if state is None:
            log.info("%s is damaged; starting over", path)
            return
        try:
            learner.load_state_dict(state["learner"])
            set_random_state(state["random"], learner.runtime.device)
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise RunError(
                f"{path} was written by another version ({first_line(error)}); delete it to begin this run anew"
            ) from None
        log.info("resuming after epoch %d of %d", learner.epoch, learner.recipe.epochs)


def read(path: Path) -> dict[str, Any] | None:
    """The content of a checkpoint, or None if it is damaged. Only tensors and plain values are ever unpickled."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)  # loading moves what has to be on the device
    except Exception:  # damaged bytes can raise anything
        return None


def random_state(device: str) -> dict[str, torch.Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device != "cpu":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, torch.Tensor], device: str) -> None:
    torch.set_rng_state(state["cpu"])
    if device != "cpu" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
