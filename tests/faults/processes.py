"""Real processes that start in milliseconds: children of one that has imported everything already."""

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import resource
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

import kdbench
from kdbench import cli
from kdbench.config import RunConfig
from kdbench.data import load
from kdbench.runner.policy import run_with_retries

SMALL = (
    "student=resnet8", "teacher=resnet20", "student.widths=[8,8,16,16]", "teacher.widths=[8,8,16,16]", "data=shapes",
    "data.num_train=64", "data.num_val=20", "data.num_test=20", "recipe=smoke", "recipe.batch_size=16",
    "recipe.epochs=3", "teacher.recipe.batch_size=16", "teacher.recipe.epochs=2", "runtime.device=cpu",
    "runtime.threads=1", "runtime.precision=fp32", "output_root=out", "checkpoint.every_minutes=0",
)  # fmt: skip
"""A run of a second, with a checkpoint after every step."""

NOBODY = 65534
"""User and group without any right to write."""


def fork_server() -> ForkServerContext:
    """Return the context of the children. The data set is in memory, as it would be after the first run of a sweep."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.faults.preloaded"])
    return context


def preload() -> None:
    """Load the data set in the process that the children are forked from."""
    torch.set_num_threads(1)
    load(compose(*SMALL, "method=ce").data, "cpu")


@functools.cache
def compose(*arguments: str) -> RunConfig:
    """Compose a run, once. Hydra needs most of a small run's time, and writes nothing: only sweeps compose anew."""
    return kdbench.compose(arguments)


@dataclasses.dataclass(frozen=True)
class Member:
    """A user of the system, who need not have a name.

    Args:
        uid: number of the user, and of the group of their own.
        groups: further groups.
        umask: permissions that new files do not have.
    """

    uid: int
    groups: tuple[int, ...] = ()
    umask: int = 0o022

    def become(self) -> None:
        """Have this process, which is root's, belong to the user from now on."""
        os.setgroups(self.groups)
        os.setgid(self.uid)
        os.setuid(self.uid)
        os.umask(self.umask)


class Command:
    """One call of `kdbench`, in a process of its own.

    Args:
        context: context of the children.
        folder: working directory.
        arguments: arguments of the command line.
        largest_file: number of bytes beyond which no file can grow, like a full disk at a chosen place.
        unprivileged: whether the process runs as a user without the right to write.
        member: user that the process belongs to; None for that of the tests.
        program: program that reads the command line; None has a single run composed here, once for all tests.
        environment: variables that are added to the environment.
    """

    def __init__(
        self,
        context: ForkServerContext,
        folder: Path,
        arguments: Sequence[str],
        largest_file: int | None = None,
        unprivileged: bool = False,
        member: Member | None = None,
        program: Callable[[], object] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # The output goes through a pipe, so that it arrives where no file can be written.
        self.pipe, end = context.Pipe(duplex=False)
        self.is_sweep = "-m" in arguments
        work = tuple(arguments) if program or self.is_sweep else compose(*arguments)
        if unprivileged and os.getuid() == 0:
            member = Member(NOBODY)
        self.process: BaseProcess = context.Process(
            target=run_command,
            args=(folder, work, end, largest_file, member, program or cli.main, dict(environment or {})),
        )
        self.process.start()
        end.close()
        self.received: str | None = None

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; return whether the process was still running."""
        with contextlib.suppress(ProcessLookupError):
            if self.process.is_alive() and self.process.pid:
                os.kill(self.process.pid, number)
                return True
        return False

    def exit_code(self, timeout: float = 300) -> int:
        """Wait for the end of the process; return its exit code, or the negative number of the signal that ended it."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"still running after {timeout:.0f} s:\n{self.output()}")
        return self.process.exitcode

    def output(self) -> str:
        """Return standard output and standard error, once the process has ended."""
        if self.received is None:
            with open(self.pipe.fileno(), "rb", closefd=False) as pipe:
                self.received = pipe.read().decode()
            self.pipe.close()
        return self.received

    def errors(self) -> list[str]:
        """Return the lines that report an error."""
        return [line for line in self.output().splitlines() if line.startswith("kdbench: error: ")]


def run_command(
    folder: Path,
    work: tuple[str, ...] | RunConfig,
    end: Connection,
    largest_file: int | None,
    member: Member | None,
    program: Callable[[], object],
    environment: dict[str, str],
) -> None:
    """Execute a command line, or a run that is composed already, in the child. Arguments: see `Command`."""
    for standard in (1, 2):
        os.dup2(end.fileno(), standard)
    end.close()
    sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))  # noqa: SIM115  # open until the process ends
    os.chdir(folder)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
    if member:
        member.become()
    if not isinstance(work, RunConfig):
        sys.argv = ["kdbench", *work]
        program()
        return
    try:  # as cli.main, without Hydra
        cli.start()
        (result,) = run_with_retries([work])
        if result.error:
            raise result.error
        cli.finish(0)
    except BaseException as error:
        cli.finish(cli.exit_code(error, "kdbench"))
