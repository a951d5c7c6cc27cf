"""From configs to finished run directories: the path of every run.

Runs that are given together train in lockstep: one batch, and one forward pass of their teacher, for all of them. Each
computes what it would compute alone, bit for bit in float32 on the CPU.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from kdbench.config import RunConfig
from kdbench.config.derived import TRAIN
from kdbench.data import Batches
from kdbench.errors import RunError, SettingsChangedError
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.identity import teacher_config
from kdbench.rundir.related import found_related
from kdbench.runner.derived import complete_derived
from kdbench.runner.imported import import_teacher
from kdbench.runner.parallel import end_others, start_others
from kdbench.runner.run import Run, RunResult
from kdbench.system import signals
from kdbench.system.device import kind_of, torch_settings
from kdbench.teachers.resolve import resolve_teachers
from kdbench.trackers.sender import wait_for_trackers
from kdbench.train.learner import Learner
from kdbench.train.loop import fit

log = logging.getLogger(__name__)

Train = Callable[[Sequence[Learner], Batches, int], None]
"""Trains learners on batches until they have finished a number of epochs, as `kdbench.train.loop.fit` does."""
ATTEMPTS = 3
"""Number of times that a run is resolved again because another process started it with other settings meanwhile."""


def run_all(
    configs: Sequence[RunConfig], names: Sequence[str] = (), train: Train = fit, on_busy: str | None = None
) -> list[RunResult]:
    """Complete runs: skip finished ones, resume unfinished ones, and train missing teachers first.

    Nothing is written before everything that a user can get wrong has been checked.

    Args:
        configs: configs as parsed; several have the same data, data seed, batches, epochs and runtime, and no two
            different teachers (`kdbench.sweep.lockstep` groups them).
        names: name of each run in the lines on the console; none for a single run.
        train: trains the learners.
        on_busy: wait or skip where another process holds a run; None follows each config.

    Returns:
        The result of each run, in order.

    Raises:
        Interrupted: a stop was requested; the same call continues the runs.
    """
    if configs and configs[0].kind != TRAIN:
        return complete_derived(configs, on_busy)
    signals.raise_if_requested()  # while the run before this one was finished
    runs = [Run(config, name, on_busy) for config, name in zip(configs, names or [""] * len(configs), strict=True)]
    for run in runs:
        with run.guard:
            run.resolve()
    pending = [run for run in runs if run.pending]
    if pending:
        try:
            with torch_settings(pending[0].config.runtime):
                for run in pending:
                    with run.guard:
                        check_alike(run, pending[0])
                        run.build()
                resolve_teachers([run for run in pending if run.pending], partial(provide_teacher, train=train))
                with open_runs([run for run in pending if run.pending]) as ready:
                    if ready:
                        start_others(ready)
                        train([run.learner for run in ready], ready[0].batches, ready[0].config.recipe.epochs)
                    for run in ready:
                        if run.pending:
                            with run.guard:
                                run.finish()
        except Exception as error:  # of the group: a lack of memory, or a teacher's forward pass
            signals.raise_if_requested()
            end_others(pending, error)
            for run in pending:
                if run.pending:
                    run.fail(error)
    wait_for_trackers([run.tracking for run in runs])
    return [run.result for run in runs]


def check_alike(run: Run, first: Run) -> None:
    """Check that a run has the runtime of its group: one that another process has started keeps its own."""
    if run.config.runtime != first.config.runtime:
        raise SettingsChangedError(
            f"{run.directory.path}: its unfinished run has other settings than its group; rerun the same command",
            code="settings_changed",
            key="runtime",
        )


@contextmanager
def open_runs(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """Lock runs, open their logs and restore them; yield those that are to be trained, and close them in the end.

    While the block runs, a requested stop is deferred until the loop can leave; every run then writes a checkpoint.
    """
    ready = []
    try:
        for run in runs:
            with run.guard:
                run.open()
            if run.pending:
                ready.append(run)
        distribute_work(ready)
        with signals.deferred(max((run.config.checkpoint.grace_seconds for run in ready), default=0.0)):
            try:
                yield ready
            except signals.Interrupted as interruption:
                for run in ready:
                    if run.pending:
                        with run.guard:
                            run.save_interrupted(interruption)
                        if run.error:
                            log.info("%s: no checkpoint could be written: %s", run.directory.path, run.error)
                raise
    finally:
        for run in runs:
            run.close()
        wait_for_trackers([run.tracking for run in runs])


def distribute_work(runs: Sequence[Run]) -> None:
    """Set each run's share of the group's work, and start to measure the memory that they need."""
    live = sum(run.teacher is not None and not run.teacher.cached for run in runs)
    for run in runs:
        run.lockstep = len(runs)
        run.learner.work = run.work(live)
    if runs and kind_of(runs[0].config.runtime.device) == "cuda":
        torch.cuda.reset_peak_memory_stats(runs[0].config.runtime.device)


def provide_teacher(run: Run, train: Train = fit) -> RunDirectory:
    """Return the directory of a run's teacher: imported if its weights are given, else trained where it is missing.

    Args:
        run: a run with a teacher.
        train: trains the teacher.

    Raises:
        RunError: the teacher could not be trained.
    """
    assert run.config.teacher is not None
    if run.config.teacher.checkpoint:
        return import_teacher(run.config, run.parts.dataset)
    if run.config.teacher.run:
        return found_related(run.config, run.config.teacher.run, "teacher.run").directory
    for _ in range(ATTEMPTS):
        (result,) = run_all([teacher_config(run.config)], ["teacher"], train)
        if not isinstance(result.error, SettingsChangedError):
            break
    if isinstance(result.error, RunError):
        raise RunError(
            f"the teacher could not be trained: {result.error}; the keys of its recipe are teacher.recipe.*",
            code="teacher_failed",
            key="teacher",
        ) from result.error
    if result.error:
        raise result.error
    assert result.directory is not None
    return result.directory
