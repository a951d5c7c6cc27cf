"""What a training step is made of: a batch, what teachers say of it, and each learner's own part."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from torch import Tensor

from kdbench.data.batches import Batch, Batches
from kdbench.methods.method import Knowledge
from kdbench.train.learner import Learner

Answers = Callable[[Batch], Knowledge | None]
"""How a teacher answers a batch (`kdbench.teaching`)."""
Known = Mapping[Answers, Knowledge | None]
"""What was answered, by who answered it."""


class Steps:
    """Carries steps out as they are written. What else does it (`kdbench.train.graphs`) computes the same.

    Args:
        batches: Of every epoch.
        teachers: Whom each learner listens to. One that several have is asked once a batch.
    """

    def __init__(self, batches: Batches, teachers: Mapping[Learner, Answers]) -> None:
        self.batches = batches
        self.teachers = teachers

    def lesson(self, rows: Tensor, views: Tensor, learners: Sequence[Learner]) -> tuple[Batch, Known]:
        """A batch, and what the learners' teachers say of it."""
        batch = self.batches.batch(rows, views)
        return batch, {teacher: teacher(batch) for teacher in dict.fromkeys(self.teachers[one] for one in learners)}

    def take(self, learner: Learner, batch: Batch, known: Known) -> None:
        """A learner's part. What goes wrong in it concerns this learner alone."""
        with learner.drawing():
            self.learn(learner, batch, known)
        learner.step_of_epoch += 1

    def learn(self, learner: Learner, batch: Batch, known: Known) -> None:
        knowledge = known[self.teachers[learner]]
        terms = learner.losses(batch, knowledge.only(learner.method.needs) if knowledge else None)
        learner.step(terms)

    def begin_epoch(self, learner: Learner) -> None:
        learner.begin_epoch()

    def running(self) -> AbstractContextManager[object]:
        """Where an epoch's steps are carried out."""
        return nullcontext()
