"""Trainers for `run_all(train=...)`: they act between two steps, count teacher passes, or run out of memory."""

from collections.abc import Callable, Sequence

import torch

from kdbench.data.batches import Batch, Batches, BatchPlan
from kdbench.methods.base import TeacherOutput
from kdbench.runner.run_all import Train
from kdbench.train.learner import Checkpoints, Learner, TeacherSource, no_teacher
from kdbench.train.loop import fit
from kdbench.train.steps import EagerSteps, TeacherOutputs

Act = Callable[[Learner], None]
Subject = tuple[str, str]
"""Student and method of a run."""


def subject_of(learner: Learner) -> Subject:
    """Return student and method of a learner."""
    student, method, *_ = learner.title.split()
    return student, method


class ActingCheckpoints:
    """Acts after each step, before the checkpoint that may follow.

    Args:
        learner: learner whose checkpoints these are.
        act: called with the learner.
    """

    def __init__(self, learner: Learner, act: Act) -> None:
        self.learner = learner
        self.checkpoints: Checkpoints = learner.checkpointer
        self.act = act

    def maybe_save(self) -> None:
        self.act(self.learner)
        self.checkpoints.maybe_save()

    def end_epoch(self) -> None:
        self.checkpoints.end_epoch()


def after_steps(act: Act) -> Train:
    """Return a trainer that acts after each step of each learner, before the checkpoint that may follow."""

    def train(learners: Sequence[Learner], batches: Batches, epochs: int) -> None:
        for learner in learners:
            learner.checkpointer = ActingCheckpoints(learner, act)
        fit(learners, batches, epochs)

    return train


def at(subject: Subject, position: tuple[int, int], act: Callable[[], None]) -> Train:
    """Return a trainer that acts once: after the step that brings one learner to a position."""

    def act_at(learner: Learner) -> None:
        if subject_of(learner) == subject and learner.position == position:
            act()

    return after_steps(act_at)


def raising(error: BaseException) -> Callable[[], None]:
    """Return a function that raises an error."""

    def act() -> None:
        raise error

    return act


def with_learners(see: Callable[[Sequence[Learner]], None]) -> Train:
    """Return a trainer that calls a function with the learners before it trains them."""

    def train(learners: Sequence[Learner], batches: Batches, epochs: int) -> None:
        see(learners)
        fit(learners, batches, epochs)

    return train


class CountedTeacher:
    """Appends the size of each batch that a teacher computes to a list."""

    def __init__(self, teacher: TeacherSource, sizes: list[int]) -> None:
        self.teacher = teacher
        self.sizes = sizes

    def __call__(self, batch: Batch) -> TeacherOutput | None:
        self.sizes.append(len(batch.labels))
        return self.teacher(batch)


def counting_teacher_passes(sizes: list[int]) -> Train:
    """Return a trainer that appends the size of each batch that a teacher computes to a list."""

    def count(learners: Sequence[Learner]) -> None:
        counted: dict[TeacherSource, CountedTeacher] = {}
        for learner in learners:
            if learner.teacher is not no_teacher:
                learner.teacher = counted.setdefault(learner.teacher, CountedTeacher(learner.teacher, sizes))

    return with_learners(count)


class ScarceMemory(EagerSteps):
    """Runs out of memory in the second step of the second epoch.

    Args:
        batches: training batches.
        most: largest number of learners that fit into the memory.
    """

    def __init__(self, batches: Batches, most: int) -> None:
        super().__init__(batches)
        self.most = most

    def prepare_batch(self, plan: BatchPlan, learners: Sequence[Learner]) -> tuple[Batch, TeacherOutputs]:
        if len(learners) > self.most and learners[0].position == (1, 1):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return super().prepare_batch(plan, learners)


def with_memory_for(most: int) -> Train:
    """Return a trainer that runs out of memory with more than so many learners."""
    return lambda learners, batches, epochs: fit(learners, batches, epochs, ScarceMemory(batches, most))
