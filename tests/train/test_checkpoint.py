"""When checkpoints are written, and what is not written or not restored."""

import dataclasses
import io
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench.config import RunConfig
from kdbench.data import Batches
from kdbench.errors import RunError
from kdbench.runner.build import build_learner, build_parts
from kdbench.runner.run import resolve_run
from kdbench.system.signals import Interrupted
from kdbench.train.checkpoint import Checkpointer
from kdbench.train.learner import Learner
from kdbench.train.loop import fit
from tests.runner.trainers import at, raising

Small = Callable[..., RunConfig]
NEVER = "checkpoint.every_minutes=null"


class Memory:
    """Keeps records and checkpoints in memory."""

    def __init__(self) -> None:
        self.positions: list[tuple[int, int]] = []
        """Position of each checkpoint: finished epochs, and steps of the next."""
        self.metadata: dict[str, Any] = {}
        self.content = b""
        self.epochs: list[int] = []
        """Number of rows of each metrics.csv."""

    def write_metrics(self, rows: Sequence[Mapping[str, float]]) -> None:
        self.epochs.append(len(rows))

    def save_checkpoint(self, metadata: Mapping[str, Any], content: bytes) -> None:
        self.positions.append((metadata["epoch"], metadata["step"]))
        self.metadata, self.content = dict(metadata), content

    def read_checkpoints(self) -> Iterator[tuple[Path, dict[str, Any], bytes]]:
        if self.content:
            yield Path("last.ckpt"), self.metadata, self.content

    def checkpoints(self) -> tuple[Path, ...]:
        return (Path("last.ckpt"),)


class Held:
    """A lock that is held, or was lost."""

    def __init__(self) -> None:
        self.lost = False

    def check(self) -> None:
        if self.lost:
            raise RunError("the lock was lost", code="busy")


def start(config: RunConfig, store: Memory, lock: Held | None = None) -> tuple[Learner, Checkpointer, Batches]:
    """Return a fresh learner with its checkpointer and batches."""
    config, _ = resolve_run(config)
    parts = build_parts(config)
    learner = build_learner(config, parts)
    checkpointer = Checkpointer(store, config.checkpoint, learner, lock or Held(), {"settings": {"threads": 1}})
    learner.checkpointer = checkpointer
    return learner, checkpointer, parts.batches


@pytest.fixture
def config(small: Small) -> RunConfig:
    """A run of three epochs of two steps."""
    return small("method=ce", "recipe.epochs=3", NEVER)


EVERY_STEP = [(0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2), (3, 0)]


@pytest.mark.parametrize(
    ("changes", "positions"),
    [
        ({}, [(3, 0)]),
        ({"every_epochs": 1}, [(1, 0), (2, 0), (3, 0)]),
        ({"every_epochs": 2}, [(2, 0), (3, 0)]),
        ({"every_minutes": 0.0}, EVERY_STEP),
        ({"every_minutes": 1000.0}, [(3, 0)]),
    ],
)
def test_checkpoints_are_written_when_they_are_due_and_after_the_last_epoch(
    config: RunConfig, changes: dict[str, Any], positions: list[tuple[int, int]]
) -> None:
    due = dataclasses.replace(config, checkpoint=dataclasses.replace(config.checkpoint, **changes))
    store = Memory()
    learner, _, batches = start(due, store)
    fit([learner], batches, 3)
    assert store.positions == positions
    assert store.epochs == [1, 2, 3]
    assert store.metadata == {"settings": {"threads": 1}, "epoch": 3, "step": 0}


def test_nothing_is_written_once_the_lock_is_lost(config: RunConfig) -> None:
    store, lock = Memory(), Held()
    learner, checkpointer, batches = start(config, store, lock)
    lock.lost = True
    with pytest.raises(RunError) as lost:
        fit([learner], batches, 3)
    assert lost.value.code == "busy"
    with pytest.raises(RunError):
        checkpointer.save()
    assert (store.positions, store.epochs) == ([], [])


def test_a_step_that_ended_the_run_is_in_no_checkpoint(config: RunConfig) -> None:
    store = Memory()
    learner, checkpointer, batches = start(config, store)
    learner.begin_epoch()
    learner.sums.ends_at_once = False  # as on a device that runs ahead of the host
    batch = next(batches.epoch(0))
    learner.train_step(batch._replace(images=batch.images * torch.nan), None)
    with pytest.raises(RunError) as failed:
        checkpointer.save()
    assert failed.value.code == "not_finite"
    assert store.positions == []


def test_a_checkpoint_in_the_middle_of_an_epoch_restores_the_learner(config: RunConfig) -> None:
    store = Memory()
    learner, checkpointer, batches = start(config, store)
    stop = at(("resnet8", "ce"), (1, 1), raising(Interrupted(signal.SIGINT)))
    with pytest.raises(Interrupted):
        stop([learner], batches, 3)
    assert store.positions == []
    checkpointer.save()
    restored, again, _ = start(config, store)
    again.resume()
    assert restored.position == learner.position == (1, 1)
    assert restored.rows == learner.rows
    for (name, value), other in zip(
        learner.student.state_dict().items(), restored.student.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name


def test_a_checkpoint_of_another_version_is_an_error(config: RunConfig) -> None:
    store = Memory()
    learner, checkpointer, _ = start(config, store)
    content = io.BytesIO()
    state = learner.state_dict()
    del state["optimizer"]
    torch.save({"learner": state}, content)
    store.content = content.getvalue()
    with pytest.raises(RunError) as other:
        checkpointer.resume()
    assert (other.value.code, other.value.key) == ("damaged", "last.ckpt")
