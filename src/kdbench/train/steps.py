"""The parts of a training step: a batch with the teachers' outputs, and each learner's own part."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from kdbench.data.batches import Batch, Batches, BatchPlan
from kdbench.methods.base import TeacherOutput
from kdbench.system.signals import raise_if_requested
from kdbench.train.learner import Learner, TeacherSource

TeacherOutputs = Mapping[TeacherSource, TeacherOutput | None]
"""Outputs for one batch by the teacher that computed them."""


class Steps(Protocol):
    """Execution of steps. Every implementation computes the same."""

    def prepare_batch(self, plan: BatchPlan, learners: Sequence[Learner]) -> tuple[Batch, TeacherOutputs]: ...

    def train_step(self, learner: Learner, batch: Batch, teacher_outputs: TeacherOutputs) -> None: ...

    def raise_if_stopped(self) -> None: ...

    def enter_stream(self) -> None: ...

    def leave_stream(self) -> None: ...


class EagerSteps:
    """Steps that are executed as they are written.

    Args:
        batches: training batches.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def prepare_batch(self, plan: BatchPlan, learners: Sequence[Learner]) -> tuple[Batch, TeacherOutputs]:
        """Return a batch, and the output of each distinct teacher of the learners, computed once.

        Args:
            plan: plan of the batch.
            learners: learners that take the step.
        """
        batch = self.batches.batch(plan)
        return batch, {teacher: teacher(batch) for teacher in dict.fromkeys(learner.teacher for learner in learners)}

    def train_step(self, learner: Learner, batch: Batch, teacher_outputs: TeacherOutputs) -> None:
        """Train one learner on a batch. An exception concerns this learner only."""
        learner.begin_step()
        with learner.rng_scope():
            learner.train_step(batch, teacher_outputs[learner.teacher])
        learner.step_of_epoch += 1

    def raise_if_stopped(self) -> None:
        """Leave if a stop was requested.

        Raises:
            Interrupted: a signal was received.
        """
        raise_if_requested()

    def enter_stream(self) -> None:
        """Do nothing: eager steps are executed on the current stream."""

    def leave_stream(self) -> None:
        """Do nothing."""
