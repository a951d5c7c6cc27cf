"""Steps on a GPU: recorded once as CUDA graphs, then replayed, so that it does not wait for the host's next launch.

A batch with its teachers' answers is one graph; what each learner does with it (forward, loss, backward, clip,
optimiser and sums) is one more. Batches of another size (the last one of an epoch) have graphs of their own. The
first steps of each size are carried out as written: there libraries choose their kernels. Recording computes nothing.
"""

import logging
import pickle
import random
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from kdbench.config import RuntimeConfig
from kdbench.data.batches import Batch, Batches
from kdbench.errors import first_line
from kdbench.train.learner import Learner
from kdbench.train.steps import Answers, Known, Steps

log = logging.getLogger(__name__)

T = TypeVar("T")
Key = tuple[int, tuple[Answers, ...]]
WARM_UP = 3
"""Steps of a size before they are recorded."""


class Recorder(Protocol):
    """What can record the work of a device."""

    def __call__(self, function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """What a function returns, and what does its work on the device, which recording it does not.

        Raises:
            RuntimeError: it waits for the device, or does something else that cannot be recorded.
        """

    def running(self) -> AbstractContextManager[object]:
        """Where the work that is to be recorded, or was, is done."""


def steps_on(runtime: RuntimeConfig, batches: Batches, teachers: Mapping[Learner, Answers]) -> Steps:
    """How steps are carried out best on a device.

    Args:
        runtime: Resolved.
        batches: Of every epoch.
        teachers: Whom each learner listens to.
    """
    if runtime.device == "cpu" or not runtime.graphs:
        return Steps(batches, teachers)
    if runtime.precision == "fp16":
        log.info("graphs: none, steps are launched one by one (fp16's gradient scaling decides on the host)")
        return Steps(batches, teachers)
    return GraphedSteps(batches, teachers, CudaRecorder(runtime.device))


class CudaRecorder:
    """Records on a stream of its own, with one pool of memory for all recordings: they are replayed in turn.

    Args:
        device: cuda:0, ...
    """

    broken: str | None = None
    """Why nothing more is recorded in this process: torch's memory pools may be stuck after a recording broke off."""

    def __init__(self, device: str) -> None:
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        if CudaRecorder.broken:
            raise RuntimeError(f"an earlier recording in this process broke off: {CudaRecorder.broken}")
        graph = torch.cuda.CUDAGraph()
        mode, waited = torch.cuda.get_sync_debug_mode(), False
        try:
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
                # What waits is refused by torch before the device hears of it, and the recording ends in order.
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
                CudaRecorder.broken = first_line(cause_of(error))
            raise
        return returned, graph.replay

    @contextmanager
    def running(self) -> Iterator[None]:
        """Everything of an epoch on that stream, recorded or not: autograd wants to be on one."""
        around = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(around)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:  # a checkpoint that is written because of a signal must not run ahead of the steps
            around.wait_stream(self.stream)


class Permission:
    """Whether something can be recorded, in batches of whatever size."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.given = True

    def refuse(self, why: str) -> None:
        if self.given:
            log.info("graphs: %s, launched step by step instead: %s", self.what, why)
        self.given = False


class Part(Generic[T]):
    """A piece of a step, for batches of one size: as written at first, then recorded, from then on replayed.

    Args:
        recorder: Of the device.
        permission: Taken back where it cannot be recorded.
        owners: Modules that may keep a state of their own.
    """

    def __init__(self, recorder: Recorder, permission: Permission, owners: Sequence[nn.Module] = ()) -> None:
        self.recorder = recorder
        self.owners = owners
        self.permission = permission
        self.done = 0
        """Times, as written."""
        self.replay: Callable[[], None] | None = None
        self.returned: T

    def __call__(self, written: Callable[[], T], lasting: bool = True) -> T:
        """Do it.

        Args:
            written: Does it, and reads and writes the same tensors each time.
            lasting: Whether it really does, now.
        """
        if self.replay is None and self.permission.given and lasting and self.done >= WARM_UP:
            self.record(written)
        if self.replay is not None:
            self.replay()
            return self.returned
        watched = self.permission.given and self.done < WARM_UP
        drawn, kept = (drawn_on_host(), kept_on_host(self.owners)) if watched else (b"", [])
        returned = written()
        self.done += 1
        if watched and drawn != drawn_on_host():
            self.permission.refuse("it draws random numbers on the host, which a recording would repeat")
        if watched and (changed := changed_on_host(kept)):
            self.permission.refuse(f"it changes {changed} on the host, which a recording would not")
        return returned

    def record(self, written: Callable[[], T]) -> None:
        try:
            self.returned, self.replay = self.recorder(written)
        except RuntimeError as error:
            self.permission.refuse(first_line(cause_of(error)))

    def forget(self) -> None:
        """What was recorded no longer holds; the next time it is recorded anew."""
        self.replay = None


def cause_of(error: BaseException) -> BaseException:
    """What broke a recording: what ends it complains about that too."""
    while error.__context__:
        error = error.__context__
    return error


def kept_on_host(owners: Sequence[nn.Module]) -> list[tuple[nn.Module, str, Any]]:
    """Attributes of modules, their buffers among them, as they are now: module, name, value."""
    kept = []
    for module in (module for owner in owners for module in owner.modules()):
        values = {**vars(module), **module._buffers}  # a buffer that is assigned anew is another tensor
        kept += [(module, name, held(value)) for name, value in values.items() if not name.startswith("_")]
    return kept


def held(value: Any) -> Any:
    """A container by what is in it, anything else as it is."""
    if isinstance(value, dict):
        return [*value, *value.values()]
    return list(value) if isinstance(value, list | tuple | set | deque) else value


def changed_on_host(kept: Sequence[tuple[nn.Module, str, Any]]) -> str | None:
    """The first attribute that is no longer what it was, for the user. Tensors may have changed in place."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, list) and isinstance(b, list):
            return len(a) == len(b) and all(map(same, a, b))
        return a is b or (isinstance(a, bool | int | float | str) and a == b)

    for module, name, value in kept:
        if not same(value, held(getattr(module, name, None))):
            return f"{type(module).__name__}.{name}"
    return None


def drawn_on_host() -> bytes:
    """Where the host's generators stand."""
    return pickle.dumps((random.getstate(), np.random.get_state(), torch.get_rng_state().numpy()))


class GraphedSteps(Steps):
    """Steps recorded and replayed. What cannot be is carried out as written, after one line that says why.

    Args:
        batches: Of every epoch.
        teachers: Whom each learner listens to.
        recorder: Of the device.
    """

    def __init__(self, batches: Batches, teachers: Mapping[Learner, Answers], recorder: Recorder) -> None:
        super().__init__(batches, teachers)
        self.recorder = recorder
        self.inputs: dict[Key, tuple[Tensor, Tensor]] = {}
        """Rows and views that recordings read, for batches of a size and those who are asked about them."""
        self.lessons: dict[Key, Part[tuple[Batch, Known]]] = {}
        self.parts: dict[Learner, dict[Key, Part[None]]] = {learner: {} for learner in teachers}
        self.permission = Permission("batches and what the teacher says of them")
        self.permissions = {one: Permission(f"the part of {type(one.method).__name__}") for one in teachers}
        self.now: Key = (0, ())
        """Of the step that is being carried out."""

    def running(self) -> AbstractContextManager[object]:
        return self.recorder.running()

    def begin_epoch(self, learner: Learner) -> None:
        if learner.progress.was_asked:  # what was recorded is of the epoch before
            for part in self.parts[learner].values():
                part.forget()
        super().begin_epoch(learner)

    def lesson(self, rows: Tensor, views: Tensor, learners: Sequence[Learner]) -> tuple[Batch, Known]:
        key = self.now = (len(rows), tuple(dict.fromkeys(self.teachers[learner] for learner in learners)))
        if key not in self.inputs:
            self.inputs[key] = torch.empty_like(rows), torch.empty_like(views)
            self.lessons[key] = Part(self.recorder, self.permission)
        for kept, new in zip(self.inputs[key], (rows, views), strict=True):
            kept.copy_(new)
        return self.lessons[key](lambda: Steps.lesson(self, *self.inputs[key], learners))

    def learn(self, learner: Learner, batch: Batch, known: Known) -> None:
        owners = [learner.method, learner.student]
        part = self.parts[learner].setdefault(self.now, Part(self.recorder, self.permissions[learner], owners))
        # A recording reads what the lesson's recording writes.
        lasting = self.lessons[self.now].replay is not None
        part(lambda: Steps.learn(self, learner, batch, known), lasting)
