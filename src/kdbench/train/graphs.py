"""Training steps on a GPU: captured once as CUDA graphs, then replayed, so that the GPU does not wait for the host.

A batch with its teachers' outputs is one graph; each learner's forward pass, loss, backward pass, clipping, optimiser
and sums are one more. Batches of another size (the last one of an epoch) have graphs of their own. The first steps of
each size are executed eagerly, since libraries choose their kernels there. Capturing computes nothing.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

import torch

from kdbench.data.batches import Batch, Batches, BatchPlan
from kdbench.errors import first_line
from kdbench.system.device import kind_of
from kdbench.train.learner import Learner, TeacherSource
from kdbench.train.parallel import ParallelSteps
from kdbench.train.steps import EagerSteps, Steps, TeacherOutputs

log = logging.getLogger(__name__)

T = TypeVar("T")
Key = tuple[int, tuple[TeacherSource, ...]]
WARM_UP = 3
"""Eager steps of a batch size before the first capture."""


class Recorder(Protocol):
    """Interface for capturing the work of a device."""

    def __call__(self, function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Return what a function returns, and a function that repeats its work on the device.

        Raises:
            RuntimeError: the function waits for the device, or does something else that cannot be captured.
        """

    def enter_stream(self) -> None:
        """Have the following work done where captures are replayed."""

    def leave_stream(self) -> None:
        """End what `enter_stream` began."""


def steps_for(learners: Sequence[Learner], batches: Batches) -> Steps:
    """Return the way of executing steps that is fastest on the learners' device: captured or eager."""
    runtime = learners[0].runtime
    if parallel := learners[0].parallel:
        if kind_of(runtime.device) == "cuda" and runtime.graphs:
            log.info("CUDA graphs: not used by several processes")
        return ParallelSteps(batches, parallel.world, learners)
    if kind_of(runtime.device) != "cuda" or not runtime.graphs:
        return EagerSteps(batches)
    if runtime.precision == "fp16":
        log.info("CUDA graphs: not used, since fp16's gradient scaling decides on the host")
        return EagerSteps(batches)
    return CapturedSteps(batches, CudaRecorder(runtime.device))


class CudaRecorder:
    """Recorder with a stream of its own, and one memory pool for all graphs, which are replayed in turn.

    Args:
        device: cuda:0, ...
    """

    broken: str | None = None
    """Why this process captures nothing more: torch's memory pools may be stuck after a failed capture."""

    def __init__(self, device: str) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.surrounding: torch.cuda.Stream | None = None

    def __call__(self, function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        if CudaRecorder.broken:
            raise RuntimeError(f"an earlier capture in this process failed: {CudaRecorder.broken}")
        graph = torch.cuda.CUDAGraph()
        mode, waited = torch.cuda.get_sync_debug_mode(), False
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                # A wait is refused by torch before it reaches the device, and the capture ends in order.
                torch.cuda.set_sync_debug_mode("error")
                try:
                    returned = function()
                except RuntimeError as error:
                    waited = "synchronizing" in str(error)
                    raise
                finally:
                    torch.cuda.set_sync_debug_mode(mode)
        except RuntimeError as error:
            if not waited:
                CudaRecorder.broken = first_line(root_cause(error))
            raise
        return returned, graph.replay

    def enter_stream(self) -> None:
        """Make the stream of the captures the current one: autograd needs all work of an epoch on one stream."""
        self.surrounding = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(self.surrounding)
        torch.cuda.set_stream(self.stream)

    def leave_stream(self) -> None:
        """Return to the stream from before; a checkpoint that follows must not run ahead of the steps."""
        assert self.surrounding is not None
        torch.cuda.set_stream(self.surrounding)
        self.surrounding.wait_stream(self.stream)


class CapturedStep(Generic[T]):
    """A part of a step, for batches of one size: eager at first, then captured and replayed.

    Args:
        recorder: recorder of the device.
        name: name of the part in the line that says why it stays eager.
    """

    def __init__(self, recorder: Recorder, name: str) -> None:
        self.recorder = recorder
        self.name = name
        self.capturable = True
        """True if no capture has failed."""
        self.eager_steps = 0
        self.replay: Callable[[], None] | None = None
        self.returned: T

    def __call__(self, function: Callable[[], T], ready: bool = True) -> T:
        """Execute the part.

        Args:
            function: the part; it reads and writes the same tensors at each call.
            ready: whether that already holds, so that it may be captured now.
        """
        if self.replay is None and self.capturable and ready and self.eager_steps >= WARM_UP:
            try:
                self.returned, self.replay = self.recorder(function)
            except RuntimeError as error:
                self.capturable = False
                log.info("CUDA graphs: %s stays eager: %s", self.name, first_line(root_cause(error)))
        if self.replay is not None:
            self.replay()
            return self.returned
        self.eager_steps += 1
        return function()


def root_cause(error: BaseException) -> BaseException:
    """Return the error that made a capture fail; ending the capture raises further ones."""
    while error.__context__:
        error = error.__context__
    return error


class CapturedSteps:
    """Steps that are captured and replayed. A part that cannot be captured stays eager, with one line that says why.

    Args:
        batches: training batches.
        recorder: recorder of the device.
    """

    def __init__(self, batches: Batches, recorder: Recorder) -> None:
        self.eager = EagerSteps(batches)
        self.recorder = recorder
        self.inputs: dict[Key, BatchPlan] = {}
        """Plan whose tensors the captures read, per batch size and teachers."""
        self.prepared: dict[Key, CapturedStep[tuple[Batch, TeacherOutputs]]] = {}
        self.trained: dict[Learner, dict[Key, CapturedStep[None]]] = {}
        self.eager_learners: set[Learner] = set()
        """Learners whose step cannot be captured."""
        self.key: Key = (0, ())
        """Batch size and teachers of the current step."""

    def prepare_batch(self, plan: BatchPlan, learners: Sequence[Learner]) -> tuple[Batch, TeacherOutputs]:
        """Return a batch and the teachers' outputs. Arguments: see `EagerSteps.prepare_batch`."""
        key = self.key = (len(plan.rows), tuple(dict.fromkeys(learner.teacher for learner in learners)))
        if key not in self.inputs:
            self.inputs[key] = BatchPlan._make(None if values is None else torch.empty_like(values) for values in plan)
            self.prepared[key] = CapturedStep(self.recorder, "the batch with its teachers' outputs")
        for kept, new in zip(self.inputs[key], plan, strict=True):
            if kept is not None and new is not None:
                kept.copy_(new)
        capturable = all(part.capturable for part in self.prepared.values())  # what failed for one size is not retried
        return self.prepared[key](lambda: self.eager.prepare_batch(self.inputs[key], learners), capturable)

    def train_step(self, learner: Learner, batch: Batch, teacher_outputs: TeacherOutputs) -> None:
        """Train one learner on a batch. An exception concerns this learner only."""
        part = self.part_of(learner)
        # A capture reads the tensors that the capture of the batch writes.
        ready = self.prepared[self.key].replay is not None and learner not in self.eager_learners
        learner.begin_step()
        with learner.rng_scope():
            part(lambda: learner.train_step(batch, teacher_outputs[learner.teacher]), ready)
        if not part.capturable:
            self.eager_learners.add(learner)
        learner.step_of_epoch += 1

    def part_of(self, learner: Learner) -> CapturedStep[None]:
        """Return the learner's part for the current batch size."""
        name = f"the step of {type(learner.method).__name__}"
        if learner not in self.trained:
            self.trained[learner] = {}
            if not learner.method.capturable:
                self.eager_learners.add(learner)
                log.info("CUDA graphs: %s stays eager: the method declares capturable = False", name)
            elif not learner.student.capturable:
                self.eager_learners.add(learner)
                log.info("CUDA graphs: %s stays eager: the student draws or counts on the host", name)
        parts = self.trained[learner]
        if self.key not in parts:
            parts[self.key] = CapturedStep(self.recorder, name)
        return parts[self.key]

    def raise_if_stopped(self) -> None:
        """Leave if a stop was requested. Errors: see `EagerSteps.raise_if_stopped`."""
        self.eager.raise_if_stopped()

    def enter_stream(self) -> None:
        """Have the following work done where captures are replayed."""
        self.recorder.enter_stream()

    def leave_stream(self) -> None:
        """End what `enter_stream` began."""
        self.recorder.leave_stream()
