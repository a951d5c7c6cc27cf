"""Data-parallel training: several processes train one run as one process does.

Every process prepares the same batches. Teachers and students compute their rows of a batch; the outputs of all rows
are gathered, and every process computes the loss of the whole batch. So every method, also one that compares the
images of a batch or keeps a memory bank, computes what it computes in one process, up to rounding. Gradients are
averaged; the backward pass of the gathering multiplies by the number of processes, so that

    mean over processes (processes * gradient of own rows) = gradient of all rows

and what each process computes in full, such as projections of the method, is its own mean.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kdbench.data.batches import Batch, Batches, BatchPlan
from kdbench.errors import RunError
from kdbench.methods.base import TeacherOutput
from kdbench.models import Network, Output
from kdbench.system import signals
from kdbench.system.memory import is_out_of_memory
from kdbench.system.random import random_state, seeded, set_random_state
from kdbench.system.world import ProcessEndedError, World
from kdbench.train.learner import Learner
from kdbench.train.steps import EagerSteps, TeacherOutputs
from kdbench.train.sums import NonFiniteError
from kdbench.train.synced_batch_norm import SyncedBatchNorm

EXACT = "exact"
"""The value of `runtime.parallel` with which several processes compute what one does."""
TOLERANCE = 1e-3
"""Relative difference of logits that rounding cannot cause in float32."""


class GatherRows(torch.autograd.Function):
    """Returns the rows of all processes; backward, the gradient of own rows times the number of processes."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, images: int, world: World) -> Tensor:
        ctx.rows, ctx.size = world.rows(images), world.size
        return world.gather(own, images)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad[ctx.rows] * ctx.size, None, None


class ParallelStudent:
    """The forward pass of a student over several processes, and the mean of their gradients.

    Args:
        student: network on its device; the same weights in every process.
        world: the processes.
        exact: whether batch norm uses the images of all processes, so that the result is that of one process.
        device: device of the student.
    """

    def __init__(self, student: Network, world: World, exact: bool, device: str) -> None:
        self.student = student
        self.world = world
        self.exact = exact
        self.device = device
        self.statistics = [buffer for buffer in student.buffers() if buffer.is_floating_point()]

    def __call__(self, images: Tensor) -> Output:
        """Return logits and features of a whole batch [B, C, H, W], of which this process computes its rows."""
        count = len(images)
        with SyncedBatchNorm(self.world) if self.exact else self.own_random():
            own = self.student(images[self.world.rows(count)])
        features = {
            stage: GatherRows.apply(values.contiguous(), count, self.world) for stage, values in own.features.items()
        }
        return Output(GatherRows.apply(own.logits.contiguous(), count, self.world), features)

    @contextlib.contextmanager
    def own_random(self) -> Iterator[None]:
        """Draw random numbers of this process in the block; afterwards all processes draw the same again."""
        seed = int(torch.randint(2**62, ()))
        before = random_state(self.device)
        torch.manual_seed(seed + self.world.rank)
        try:
            yield
        finally:
            set_random_state(before, self.device)

    def average_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Write the mean of the processes' gradients; without synchronised batch norm also of running statistics."""
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.world.average([p.grad for p in parameters if p.grad is not None])
        if not self.exact:
            self.world.average(self.statistics)

    @torch.no_grad()
    def check_exact(self, images: Tensor) -> None:
        """Check that the parts of a batch, computed apart, are the whole batch: nothing but batch norm mixes images.

        Args:
            images: some images, the same in every process.

        Raises:
            RunError: the network draws random numbers, or computes statistics of a batch in another way.
        """
        student, before = self.student, [buffer.clone() for buffer in self.student.buffers()]
        unsaved, random = student.unsaved_state(), random_state(self.device)
        outputs = []
        try:
            for forward in (student, self):
                with seeded(0):
                    torch.manual_seed(0)
                    outputs.append(forward(images).logits.float())
                for buffer, value in zip(student.buffers(), before, strict=True):
                    buffer.copy_(value)
                student.load_unsaved_state(unsaved)
        finally:
            set_random_state(random, self.device)
        whole, parts = outputs
        difference = float((whole - parts).abs().max() / whole.abs().max().clamp_min(1e-6))
        if not difference <= TOLERANCE:
            raise RunError(
                f"runtime.parallel=exact: {self.world.size} processes compute other logits than one (relative "
                f"difference {difference:.2g}): the network draws random numbers, such as dropout, or computes "
                "statistics of a batch by itself. Train it in one process (a teacher too), or use "
                "runtime.parallel=local, with which the number of processes is part of the run's key",
                code="not_parallel",
                key="runtime.parallel",
            )


class ParallelSteps(EagerSteps):
    """Executes steps together with other processes.

    Args:
        batches: training batches, the same in every process.
        world: the processes.
        learners: all learners of the group, in the same order in every process.
    """

    def __init__(self, batches: Batches, world: World, learners: Sequence[Learner]) -> None:
        super().__init__(batches)
        self.world = world
        self.learners = learners

    def prepare_batch(self, plan: BatchPlan, learners: Sequence[Learner]) -> tuple[Batch, TeacherOutputs]:
        """Return a batch, and the teachers' outputs for it, of which each process computes its rows."""
        with self.announced():
            batch = self.batches.batch(plan)
            count = len(batch.labels)
            own = batch.part(self.world.rows(count))

            def whole(output: TeacherOutput | None) -> TeacherOutput | None:
                if output is None:
                    return None
                features = {stage: self.world.gather(values, count) for stage, values in output.features.items()}
                logits = output.logits
                return TeacherOutput(None if logits is None else self.world.gather(logits, count), features)

            teachers = dict.fromkeys(learner.teacher for learner in learners)
            return batch, {teacher: whole(teacher(own)) for teacher in teachers}

    def train_step(self, learner: Learner, batch: Batch, teacher_outputs: TeacherOutputs) -> None:
        """Train one learner on a batch. Errors: those of one process; any other ends all processes."""
        with self.announced():
            super().train_step(learner, batch, teacher_outputs)

    def agree(self) -> None:
        """Stop together, and fail together. Errors: see `agree`."""
        agree(self.learners, self.world)

    @contextlib.contextmanager
    def announced(self) -> Iterator[None]:
        """End all processes at an exception that only this one meets: the others wait for its tensors.

        An exception that every process meets, such as one of a method's code, fails its run as in one process.
        """
        self.world.parts += 1
        try:
            yield
        except (NonFiniteError, ProcessEndedError):
            raise
        except Exception as error:
            if is_out_of_memory(error) or not self.world.all_failed():
                self.world.announce_end(error)
            raise


def agree(learners: Sequence[Learner], world: World) -> None:
    """Stop together and fail together: a stop request at any process reaches all, and so does the failure of a run.

    Args:
        learners: all learners of the group, in the same order in every process.
        world: the processes.

    Raises:
        Interrupted: a process was asked to stop.
        ProcessEndedError: another process has ended.
    """
    requested = signals.requested()
    stop, *failed = world.largest([requested or 0, *(int(learner.failed) for learner in learners)])
    for learner, elsewhere in zip(learners, failed, strict=True):
        if elsewhere and not learner.failed:
            with learner.guard:
                raise RunError("the run failed in another of its processes; its lines are above", code="process_ended")
    if stop and not requested:
        signals.receive(stop)
    signals.raise_if_requested()


def parallelise(learners: Sequence[Learner], world: World) -> None:
    """Have learners train over several processes, each of which has the same learners.

    Args:
        learners: learners in the same state in every process.
        world: the processes.
    """
    for learner in learners:
        exact = learner.runtime.parallel == EXACT
        learner.parallel = ParallelStudent(learner.student, world, exact, learner.runtime.device)
