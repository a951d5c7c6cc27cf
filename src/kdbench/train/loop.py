"""The training loop: one batch, one teacher forward, then one step per learner."""

from collections.abc import Callable, Iterable, Sequence

import torch

from kdbench.data.batches import Batch, Batches
from kdbench.data.dataset import Dataset
from kdbench.methods.method import Knowledge
from kdbench.train.display import Display
from kdbench.train.learner import Learner

Answers = Callable[[Batch], Knowledge | None]
"""How a teacher answers a batch (`kdbench.teaching`)."""


def fit(
    learners: Sequence[Learner],
    batches: Batches,
    dataset: Dataset,
    teacher: Answers,
    epochs: int,
    display: Display,
    watched: Callable[[Iterable[Batch]], Iterable[Batch]],
    end_of_epoch: Callable[[Learner], None],
) -> None:
    """Train learners that have done equally many epochs and steps until they have done `epochs`.

    Args:
        learners: At least one.
        batches: The training batches of every epoch.
        dataset: For validation.
        teacher: What the methods asked for about a batch.
        epochs: In total, those before a resume included.
        display: Is told of every batch and every epoch.
        watched: Hands the batches on; what it does between two of them is done between two steps.
        end_of_epoch: Called for each learner when its row is recorded: where records and checkpoints are written.

    Raises:
        NonFiniteError: a loss was not finite.
        Interrupted: the process was asked to stop; the learners stand between two steps.
    """
    for epoch in range(learners[0].epoch, epochs):
        for learner in learners:
            learner.begin_epoch()
        steps = display.counted(batches.epoch(epoch, learners[0].step_of_epoch))
        train_epoch(learners, watched(steps), teacher)
        wait_for_device(batches)
        for learner in learners:
            row = learner.end_epoch(dataset, learner.seconds())
            display.epoch_done(row)
            end_of_epoch(learner)


def train_epoch(learners: Sequence[Learner], batches: Iterable[Batch], teacher: Answers) -> None:
    for batch in batches:
        knowledge = teacher(batch)
        for learner in learners:
            terms = learner.losses(batch, knowledge)
            learner.step(terms)


def wait_for_device(batches: Batches) -> None:
    device = batches.dataset.train.labels.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
