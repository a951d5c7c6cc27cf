"""The training loop: one batch, one teacher forward, then one step per learner."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from kdbench.data.batches import Batches
from kdbench.data.dataset import Dataset
from kdbench.stopping import leave_if_asked
from kdbench.train.display import Display
from kdbench.train.group import Group
from kdbench.train.steps import Steps


def no_one(images: int) -> None:
    """Nobody is told."""


def fit(group: Group, steps: Steps, dataset: Dataset, epochs: int, display: Display) -> None:
    """Train a group until those who are left in it have done `epochs`.

    Args:
        group: At least one pupil. Who fails is told so, leaves it, and the others go on.
        steps: How a step is carried out.
        dataset: For validation.
        epochs: In total, those before a resume included.
        display: Is told of every batch and every epoch.

    Raises:
        Interrupted: the process was asked to stop; every learner stands between two steps.
    """
    while group.pupils and group.position[0] < epochs:
        epoch, start = group.position
        for pupil in group.at(epoch):
            with group.apart(pupil):
                steps.begin_epoch(pupil.learner)
        train_epoch(group, steps, (epoch, start), steps.batches.plan(epoch, start), display.add)
        for pupil in group.at(epoch):
            with group.apart(pupil):
                row = pupil.learner.end_epoch(dataset)
                display.epoch_done(row)
                pupil.epoch_done(row)


def train_epoch(
    group: Group,
    steps: Steps,
    position: tuple[int, int],
    plan: Iterable[tuple[Tensor, Tensor]],
    trained: Callable[[int], None] = no_one,
) -> None:
    """Carry out the steps of an epoch, or what is left of it.

    Args:
        group: Nobody in it stands before the first of them.
        steps: How each is carried out.
        position: Of the first of them: epoch, and step.
        plan: Rows and views of their batches.
        trained: Is told of how many images.
    """
    epoch, start = position
    group.begin_clock()
    with steps.running():
        for step, (rows, views) in enumerate(plan, start):
            pupils = group.at(epoch, step)
            if not pupils:  # they failed, or a resume has brought them further
                continue
            batch, known = steps.lesson(rows, views, [pupil.learner for pupil in pupils])
            for pupil in pupils:
                with group.apart(pupil):
                    steps.take(pupil.learner, batch, known)
                    pupil.between_steps()
            trained(len(rows))
            group.share_time(pupils)
            leave_if_asked()
    wait_for_device(steps.batches)
    group.share_time(group.at(epoch))


def wait_for_device(batches: Batches) -> None:
    device = batches.dataset.train.labels.device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
