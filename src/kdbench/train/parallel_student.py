"""A student over several processes: forward pass, mean of the gradients, and a check that the parts are the whole."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import RunError
from kdbench.models import Network, Output
from kdbench.system.random import random_state, seeded, set_random_state
from kdbench.system.world import World
from kdbench.train.synced_batch_norm import SyncedBatchNorm

TOLERANCE = 1e-3
"""Relative difference of logits that rounding cannot cause in float32."""


class GatherRows(torch.autograd.Function):
    """Gathering of the rows of all processes. Its gradient: that of own rows times the number of processes."""

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
        """Write the mean of the processes' gradients; with random numbers by process also of running statistics."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if not self.exact:
            self.complete_gradients(parameters)
            self.world.average(self.statistics)
        self.world.average([p.grad for p in parameters if p.grad is not None])

    def complete_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Set gradients of zero where only other processes have one, as of a layer that this one has skipped."""
        anywhere = self.world.largest([int(p.grad is not None) for p in parameters])
        for parameter, has_gradient in zip(parameters, anywhere, strict=True):
            if has_gradient and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)

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
