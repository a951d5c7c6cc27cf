"""The processes that train one run together, as torchrun starts them, and their communication.

Rank 0 does everything that one process does; the others wait for its tasks and train the same learners
(`kdbench.runner.parallel`). Tensors of a step are sent by NCCL between GPUs and by Gloo between CPUs, everything else
by Gloo.
"""

import contextlib
import datetime
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from kdbench.errors import ConfigError, RunError, first_line
from kdbench.system.memory import is_out_of_memory
from kdbench.system.torchrun import VARIABLES, starts_several

log = logging.getLogger(__name__)

STEP_TIMEOUT = datetime.timedelta(minutes=30)
COMMAND_TIMEOUT = datetime.timedelta(days=365)
"""Time that processes wait for rank 0, which may train nothing for hours while it builds a logit cache."""
GLOO_ADVICE = ". This is typically caused by"
"""Beginning of a text without facts in the messages of Gloo."""
FAILURE_SECONDS = 10.0
"""Time in which all processes meet an error that they have in common."""
REASON_SECONDS = 1.0
"""Time to wait for the reason that a process has given for its end."""


class ProcessEndedError(RunError):
    """Another process of the run has ended, so that no step can be trained any more."""


@dataclass(eq=False)
class World:
    """The processes that train together.

    Args:
        rank: number of this process, counted from 0; rank 0 writes all files.
        size: number of processes; a single one never communicates.
        local_rank: number of this process on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    blocks: int = 0
    """Number of executed blocks of `collective`, the same in every process."""
    problem: str | None = None
    """Reason for which the processes cannot communicate any more; None while they can."""
    tensors: Any = field(default=None, repr=False)
    """Process group for tensors of a step."""
    control: Any = field(default=None, repr=False)
    """Process group for everything else, on the CPU."""
    store: Any = field(default=None, repr=False)

    @property
    def several(self) -> bool:
        return self.size > 1

    def connect(self) -> None:
        """Connect to the other processes, at the first call. Waits until all of them have.

        Raises:
            RunError: they cannot be reached.
        """
        if not self.several or self.control is not None:
            return
        if torch.cuda.is_available():
            torch.cuda.set_device(self.local_rank % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            self.store, _, _ = next(iter(rendezvous("env://")))
            own = PrefixStore("kdbench", self.store)
            dist.init_process_group(backend, timeout=STEP_TIMEOUT, store=own, rank=self.rank, world_size=self.size)
            self.tensors = dist.group.WORLD
            self.control = dist.new_group(backend="gloo", timeout=COMMAND_TIMEOUT)
        except RuntimeError as error:
            self.problem = f"process {self.rank} of {self.size} cannot reach the others ({first_line(error)})"
            address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            raise RunError(
                f"{self.problem}; MASTER_ADDR and MASTER_PORT are {address}, which torchrun sets: check "
                "--rdzv-endpoint, and that no other program has the port",
                code="unreachable",
                key="MASTER_ADDR",
            ) from None

    def disconnect(self) -> None:
        """Close the connections; rank 0 lets the other processes end."""
        if self.several and self.rank == 0 and self.problem is None:
            with contextlib.suppress(RuntimeError, RunError):  # they may be gone, or never have been there
                self.share(None)
        if self.control is not None:
            with contextlib.suppress(RuntimeError, ValueError):  # of connections that are broken already
                dist.destroy_process_group()
        self.tensors = self.control = None

    def share(self, value: Any = None) -> Any:
        """Return a Python value of rank 0 in every process.

        Args:
            value: the value, in rank 0; others give nothing.

        Raises:
            ProcessEndedError: another process has ended.
        """
        self.connect()
        values = [value]
        with self.communicating():
            dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def largest(self, numbers: Sequence[int]) -> list[int]:
        """Return the largest of each number over the processes.

        Raises:
            ProcessEndedError: another process has ended.
        """
        tensor = torch.tensor(numbers, dtype=torch.int64)
        with self.communicating():
            dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.control)
        return [int(number) for number in tensor]

    def rows(self, images: int, rank: int | None = None) -> slice:
        """Return the rows of a batch that a process computes; in order of the ranks they are all of it.

        Args:
            images: number of images of the batch.
            rank: the process; None for this one.
        """
        rank = self.rank if rank is None else rank
        return slice(images * rank // self.size, images * (rank + 1) // self.size)

    def gather(self, own: Tensor, images: int) -> Tensor:
        """Return a tensor with the rows of all processes [images, ...], without gradient.

        Args:
            own: rows of this process, as `rows` gives them.
            images: number of all rows.
        """
        counts = [(part := self.rows(images, rank)).stop - part.start for rank in range(self.size)]
        most = max(counts)
        sent = own.new_zeros(most, *own.shape[1:])
        sent[: len(own)] = own
        received = [torch.empty_like(sent) for _ in counts]
        with self.communicating():  # as bytes: no backend computes with them, and Gloo does not know every type
            dist.all_gather([as_bytes(part) for part in received], as_bytes(sent), group=self.tensors)
        return torch.cat([part[:count] for part, count in zip(received, counts, strict=True)])

    def add(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over the processes; it is written in place."""
        with self.communicating():
            dist.all_reduce(tensor, group=self.tensors)
        return tensor

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Write the mean over the processes into tensors, which have the same shapes in each of them."""
        kinds = dict.fromkeys(tensor.dtype for tensor in tensors)
        for dtype in kinds:
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = self.add(torch.cat([tensor.reshape(-1) for tensor in alike])) / self.size
            for tensor, mean in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
                tensor.copy_(mean.view(tensor.shape))

    @contextlib.contextmanager
    def communicating(self) -> Iterator[None]:
        """Turn a broken connection in the block into an error that names the process which has ended.

        Raises:
            ProcessEndedError: a connection is broken, here or in an earlier block.
        """
        if self.problem is None:
            try:
                yield
                return
            except RuntimeError as error:  # torch.distributed has no narrower type for all backends
                cause = first_line(error).partition(GLOO_ADVICE)[0]
                self.problem = self.reason_of_end() or f"a process has ended ({cause})"
                log.info("%s", self.problem)
        raise ProcessEndedError(
            f"{self.problem}; the last checkpoint is intact, and the same command continues",
            code="process_ended",
            key="WORLD_SIZE",
        )

    @contextlib.contextmanager
    def collective(self) -> Iterator[None]:
        """Execute a block in which the processes exchange tensors, the same in each of them.

        An exception that every process meets in the block, such as one of a method's code, is raised as in one
        process. One that only this process meets ends all of them: the others wait for its tensors.
        """
        self.blocks += 1
        try:
            yield
        except ProcessEndedError:
            raise
        except Exception as error:
            if is_out_of_memory(error) or not self.all_failed():
                self.publish_end(error)
            raise

    def all_failed(self) -> bool:
        """Return whether every process fails in the same block of `collective`.

        Each process that fails there calls this function.
        """
        place = f"kdbench/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{self.blocks}"
        deadline = time.monotonic() + FAILURE_SECONDS
        with contextlib.suppress(RuntimeError):  # the store may be gone
            self.store.set(f"{place}/{self.rank}", "1")
            while time.monotonic() < deadline:
                if self.store.check([f"{place}/{rank}" for rank in range(self.size)]):
                    return True
                time.sleep(0.02)
        return False

    def publish_end(self, error: BaseException) -> None:
        """Publish the error that ends this process for the others; where there are none, do nothing."""
        if self.several and self.problem is None:
            self.problem = f"process {self.rank} of {self.size} ended: {first_line(error)}"
        if self.store is not None and self.problem is not None:
            with contextlib.suppress(RuntimeError):  # the store may be gone
                self.store.set(self.name_of_reason(), self.problem)

    def reason_of_end(self) -> str | None:
        """Return the reason that a process has given for its end, or None."""
        deadline = time.monotonic() + REASON_SECONDS
        with contextlib.suppress(RuntimeError):
            while time.monotonic() < deadline:  # torch's own waiting prints lines
                if self.store.check([self.name_of_reason()]):
                    return bytes(self.store.get(self.name_of_reason())).decode()
                time.sleep(0.05)
        return None

    def name_of_reason(self) -> str:
        """Return the name of that reason in the store; torchrun may have started the processes before."""
        return f"kdbench/ended/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"


def as_bytes(tensor: Tensor) -> Tensor:
    """Return a view of a contiguous tensor as bytes."""
    return tensor.view(-1).view(torch.uint8)


_world = World()


def world() -> World:
    """Return the processes that train together with this one: none, unless `start_world` has found others."""
    return _world


def start_world() -> World:
    """Read from the environment which process this is.

    Raises:
        ConfigError: a variable of torchrun has no number.
    """
    global _world
    if starts_several() and not _world.several:
        try:
            rank, size, local_rank = (int(os.environ[name]) for name in VARIABLES[:3])
        except ValueError:
            raise ConfigError(
                "RANK, WORLD_SIZE and LOCAL_RANK of the environment must be whole numbers, as torchrun sets them: "
                f"{', '.join(f'{name}={os.environ[name]}' for name in VARIABLES[:3])}",
                code="usage",
                key="WORLD_SIZE",
            ) from None
        _world = World(rank, size, local_rank)
    return _world


def end_world() -> None:
    """Disconnect this process from the others."""
    global _world
    _world.disconnect()
    _world = World()
