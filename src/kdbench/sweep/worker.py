"""Groups of planned runs as plain data, and their execution in a process of an engine.

Nothing heavy is imported at the top: the process gets its import path and its OpenMP settings first. A worker of
joblib and a task of SLURM have the settings from their start; a process of Ray gets them here.
"""

import dataclasses
import os
import pickle
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import RunError
from kdbench.system import signals
from kdbench.system.cpu import configure_openmp
from kdbench.system.logs import log_to_console, silence_stdout

if TYPE_CHECKING:
    from kdbench.config import RunConfig
    from kdbench.sweep.plan import JobResult, PlannedRun


@dataclass(frozen=True)
class GroupTask:
    """Runs that train together, in a form that every engine can send: text and bytes."""

    runs: bytes
    """The pickled runs. Classes of the user's own code can be imported once `python_path` is set."""
    titles: tuple[str, ...]
    first: int
    """Number of the first run within its sweep, counted from 0."""
    heading: str | None
    """Line to print above the runs."""
    folder: str
    """Working directory, where relative paths start."""
    python_path: tuple[str, ...]
    keys: tuple[str, ...] = ()
    """Run key of each run."""


def pack_group(runs: Sequence["PlannedRun"], first: int = 0, heading: str | None = None) -> GroupTask:
    """Return planned runs as a task for `run_group` in another process.

    Args:
        runs: as `kdbench.sweep.lockstep.group_planned` groups them.
        first: number of the first one within its sweep, counted from 0.
        heading: line to print above them, for example the progress of a study.
    """
    titles, keys = tuple(run.title for run in runs), tuple(run.key for run in runs)
    return GroupTask(pickle.dumps(list(runs)), titles, first, heading, str(Path.cwd()), import_path(), keys)


def import_path() -> tuple[str, ...]:
    """Return the folders from which this process imports, absolute."""
    return tuple(path or str(Path.cwd()) for path in sys.path)


def unpack_group(task: GroupTask) -> list["PlannedRun"]:
    """Return the runs of a task, once this process has its working directory and can import the user's own classes.

    Raises:
        RunError: this machine does not have the working directory.
    """
    enter_folder(task.folder, task.python_path)
    runs: list[PlannedRun] = pickle.loads(task.runs)
    return runs


def run_group(
    task: GroupTask,
    device: str | None = None,
    threads: int | None = None,
    named: bool = False,
    environment: Mapping[str, str] | None = None,
) -> list["JobResult"]:
    """Complete the runs of a task in this process, and return their results, errors of runs included.

    On a requested stop (signals), the runs write checkpoints, and their results are `interrupted`.

    Args:
        task: from `pack_group`.
        device: value of `runtime.device` for runs that leave it to `auto`.
        threads: value of `runtime.threads` for runs that leave it to `auto`.
        named: whether the lines of a run that trains alone begin with its name, since other processes print theirs.
        environment: variables of the command's process that this one gets.
    """
    os.environ.update(environment or {})
    configure_openmp()
    with signals.handled():
        log_to_console()
        from kdbench.sweep.execute import failure, interrupted, launch_here  # here, since it imports torch

        try:
            runs = unpack_group(task)
            for run in runs:
                run.composed = with_runtime(run.config, device, threads)
            heading = task.heading
            return launch_here(runs, task.first, (lambda: heading) if heading else None, named=named)
        except signals.Interrupted as stop:
            return [interrupted(stop)] * len(task.titles)
        except BrokenPipeError:  # standard output is closed; the runs did not fail
            silence_stdout()
            return [interrupted(signals.Interrupted(signal.SIGPIPE))] * len(task.titles)
        except Exception as error:
            return [failure(error, title) for title in task.titles]
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()


def enter_folder(folder: str, python_path: Sequence[str] = ()) -> None:
    """Change to the working directory of the command, and import from where it imports.

    Args:
        folder: the working directory, where relative paths start.
        python_path: folders of modules.

    Raises:
        RunError: this machine does not have the folder.
    """
    sys.path += [path for path in python_path if path not in sys.path]  # last, so that nothing here is hidden
    try:
        os.chdir(folder)
    except OSError as error:
        raise RunError(
            f"the working directory of the command, {folder}, cannot be entered on {socket.gethostname()} "
            f"({error.strerror}); every machine of an engine needs the same folders",
            code="not_found",
        ) from None


def with_runtime(config: "RunConfig", device: str | None, threads: int | None) -> "RunConfig":
    """Return a config with a device and a number of threads where it leaves them to `auto`."""
    runtime = config.runtime
    if device is not None and runtime.device == "auto":
        runtime = dataclasses.replace(runtime, device=device)
    if threads is not None and runtime.threads == "auto":
        runtime = dataclasses.replace(runtime, threads=threads)
    return dataclasses.replace(config, runtime=runtime)
