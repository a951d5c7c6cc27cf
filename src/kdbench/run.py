"""Resolved configs become finished run directories."""

import contextlib
import dataclasses
import gc
import logging
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from kdbench import tables, teachers
from kdbench.asked import Asked, Outcome
from kdbench.config import RunConfig
from kdbench.errors import BusyError, ConfigError, KdbenchError, RunError
from kdbench.job import CHOICES, Job, Lesson, choices_of, remove_checkpoints, share_work
from kdbench.lessons import taught
from kdbench.limits import check_room, is_out_of_memory
from kdbench.logs import about, logged
from kdbench.parts import Parts, check_parts, prepare
from kdbench.runs import RunDirectory, changed_since, check_writable, identity, key_of
from kdbench.runtime import applied, resolve
from kdbench.stopping import Interrupted, deferred, leave_if_asked
from kdbench.train.display import Display
from kdbench.train.graphs import steps_on
from kdbench.train.group import Group
from kdbench.train.loop import fit

log = logging.getLogger(__name__)


def execute(config: RunConfig) -> RunDirectory:
    """Carry out a run: skip it if it is complete, resume it if it was begun, and have its teacher trained if need be.

    Nothing is written before everything that the user could have got wrong has been checked.

    Args:
        config: As parsed; `auto` values are decided here.

    Returns:
        The directory of the complete run.

    Raises:
        ConfigError: the config cannot run here.
        RunError: it was started and could not be finished.
        BusyError: another process has it, and `on_busy` is skip.
        Interrupted: a signal has asked to stop; the run goes on where it was when it is executed again.
    """
    (outcome,) = execute_together([config])
    if outcome.error:
        raise outcome.error
    assert outcome.directory is not None
    return outcome.directory


def execute_together(configs: Sequence[RunConfig], names: Sequence[str] = ()) -> list[Outcome]:
    """Carry out runs in lockstep: one batch and one answer of their teacher for all of them.

    What becomes of each is what would become of it alone, bit for bit in float32 on the CPU. One that fails ends alone;
    one that another process has is carried out after the others. Where memory does not suffice, halves of them are
    trained one after the other.

    Args:
        configs: As parsed, and alike in what `kdbench.lockstep.groups` asks for.
        names: What to call each in lines for the user; nothing if there is one.

    Returns:
        What became of each.

    Raises:
        Interrupted: a signal has asked to stop; all go on where they were when they are executed again.
    """
    leave_if_asked()  # while the run before this one was being finished
    prefixes = [f"{name}: " for name in names] or [""] * len(configs)
    runs = [Asked(config, prefix) for config, prefix in zip(configs, prefixes, strict=True)]
    todo = []
    for run in runs:
        try:
            run.config, run.directory = located(run.as_parsed)
            with about(run.directory.log, run.prefix):
                done = skipped(run.directory, run.config)
            if done:
                run.outcome.directory = run.directory
            else:
                todo.append(run)
        except Exception as error:
            run.outcome.error = error
    # One that was begun by another process meanwhile keeps to that one's threads, and so on.
    alike = [run for run in todo if run.config.runtime == todo[0].config.runtime]
    later = carry_out(alike) if alike else []
    for run in [*later, *(run for run in todo if run not in alike)]:
        (run.outcome,) = execute_together([run.as_parsed], [run.prefix.removesuffix(": ")] if run.prefix else [])
    return [run.outcome for run in runs]


def carry_out(runs: Sequence[Asked]) -> list[Asked]:
    """Train runs that are not complete.

    Returns:
        Those that have to be looked at again alone: another process had them, or began them with other choices.
    """
    later: list[Asked] = []
    with applied(runs[0].config.runtime):
        try:
            train(runs, later)
        except Exception as error:
            left = [run for run in runs if not (run.is_done or run in later)]
            if len(left) == 1 or not is_out_of_memory(error):
                for run in left:
                    run.failed(error)
    # Here, out of the handler, what the group had in memory is gone.
    left = [run for run in runs if not (run.is_done or run in later)]
    if left:
        for run in runs:
            forget_frames(run.outcome.error)
        gc.collect()
        log.info("out of memory with %d runs in lockstep; going on with halves of them, one after the other", len(left))
        half = len(left) // 2
        later += carry_out(left[:half]) + carry_out(left[half:])
    return later


def forget_frames(error: BaseException | None) -> None:
    """An error that is kept would keep the networks of the functions that it passed through."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def train(runs: Sequence[Asked], later: list[Asked]) -> None:
    """Train runs in lockstep, resuming those that were begun, and write their directories.

    Args:
        runs: Not complete when they were last looked at.
        later: Is given those that are not for this process, or not now.
    """
    parts: dict[Asked, Parts] = {}
    for run in runs:
        with run.apart():
            parts[run] = prepare(run.config)
    lessons = taught(parts, train_teacher)
    with ExitStack() as held:
        jobs: dict[Asked, Job] = {}
        measure_memory_from_here(runs[0].config.runtime.device)
        for run in (run for run in parts if not run.is_done):
            with run.apart():
                try:
                    job = begun(run, parts[run], lessons.get(run), held, alone=len(runs) == 1)
                except BusyError:
                    if len(runs) == 1:
                        raise
                    job = None
                if job:
                    jobs[run] = job
                elif not run.is_done:
                    later.append(run)
        try:
            if jobs:
                train_jobs(list(jobs.values()))
        finally:
            for run, job in jobs.items():
                if job.error:
                    run.outcome.error = job.error
                elif job.directory.is_complete():
                    run.outcome.directory = job.directory


def begun(run: Asked, parts: Parts, lesson: Lesson | None, held: ExitStack, alone: bool) -> Job | None:
    """Lock a run and bring it to where it stands; None if there is nothing to do, or not now.

    Args:
        run: Is told if it is complete meanwhile.
        parts: Of it.
        lesson: Of it.
        held: Releases it when the training of all ends; one that fails is released then.
        alone: Then a run that another process has may be waited for, as it says; nobody waits for it meanwhile.

    Raises:
        BusyError: another process has it.
    """
    config, key = run.config, run.directory.key
    with ExitStack() as own:
        purpose = f"this run of {config.student.name}"
        lock = own.enter_context(run.directory.locked(purpose, config.on_busy if alone else "skip"))
        run.directory = directory = RunDirectory.of(config, key)  # another process may have named it meanwhile
        if directory.is_complete() and not config.overwrite:
            log.info("complete already, skipped: %s", directory.path)
            run.outcome.directory = directory
            return None
        if directory.is_complete():
            directory.clear()
        if not agrees(directory, config, lesson):
            return None
        check_room(directory, [parts.student, parts.method], len(parts.dataset.val) + len(parts.dataset.test))
        directory.create()
        with about(directory.log, run.prefix):
            own.enter_context(logged(directory.log))
            job = Job(config, directory, parts, lesson, lock, own, run.prefix)
            job.begin()
        job.own = own.pop_all()
    held.callback(job.own.close)
    return job


def train_jobs(jobs: list[Job]) -> None:
    """Carry out the training of runs that stand ready, and what follows it."""
    share_work(jobs)
    first = jobs[0]
    group, batches, epochs = Group(jobs), first.parts.batches, first.config.recipe.epochs
    steps = steps_on(first.config.runtime, batches, {job.learner: job.answers for job in jobs})
    title = first.title if len(jobs) == 1 else f"{len(jobs)} runs in lockstep"
    done = group.position[0] + group.position[1] / len(batches)
    display = Display(title, epochs, len(batches.dataset.train), done, runs=len(jobs))
    with deferred(max(job.config.checkpoint.grace_seconds for job in jobs)):
        try:
            fit(group, steps, batches.dataset, epochs, display)
        except Interrupted as interruption:
            for job in jobs:
                if not job.error:
                    with group.apart(job):
                        job.checkpointer.keep(interruption)
            raise
        finally:
            display.close()
        for job in jobs:
            if not job.error:
                with group.apart(job):
                    job.finish()


def agrees(directory: RunDirectory, config: RunConfig, lesson: Lesson | None) -> bool:
    """Whether we do as the run began, if it was begun."""
    choices, table = directory.recorded_choices(), directory.recorded_table()
    known = {name: value for name, value in choices.items() if name in CHOICES}
    # What an earlier version recorded may be less; the checkpoint's own check has the last word.
    return known.items() <= choices_of(config.runtime).items() and (not lesson or table in (None, lesson.config.table))


def check(config: RunConfig) -> Path | None:
    """Everything that can be known to be wrong with a run before it starts. Writes nothing.

    Returns:
        The table that the run would read if there were one, for a sweep to count.

    Raises:
        ConfigError: the config cannot run here.
    """
    config, directory = located(config)
    if directory.is_complete() and not config.overwrite:
        return None
    _, _, method = check_parts(config)
    if config.teacher and config.teacher.table == "auto" and not directory.recorded_table():
        return tables.table_file(teachers.directory_of(config), config) if tables.can_answer(method.needs) else None
    return None


def located(config: RunConfig) -> tuple[RunConfig, RunDirectory]:
    """The config with every `auto` decided, and where its run is or will be.

    A run that was begun keeps to what was decided then: sums are rounded in the order of threads and memory.
    """
    config = dataclasses.replace(config, runtime=resolve(config.runtime))
    check_writable(Path(config.output_root).expanduser())
    teacher_key = teachers.key_of_teacher(config) if config.teacher else None
    directory = RunDirectory.of(config, key_of(identity(config, teacher_key)))
    if not directory.is_complete():
        choices = {name: value for name, value in directory.recorded_choices().items() if name in CHOICES}
        config.runtime = dataclasses.replace(config.runtime, **choices)
    return config, directory


def skipped(directory: RunDirectory, config: RunConfig) -> bool:
    if not directory.is_complete() or config.overwrite:
        return False
    summary = directory.read_summary()  # its presence means complete; weights may have been removed since
    if changed := changed_since(directory.path, summary):
        raise ConfigError(
            f"{directory.path / changed} was changed since the run was finished; put it back, or delete "
            f"{directory.path} to repeat the run (kdbench-verify says what else does not hold)"
        )
    if any(file.is_file() for file in directory.checkpoints()):  # its process was killed after its last word
        with contextlib.suppress(KdbenchError, OSError), directory.locked("this run", "skip"):
            remove_checkpoints(config, directory)
    log.info("complete already, skipped: %s", directory.path)
    return True


def train_teacher(config: RunConfig) -> RunDirectory:
    """Carry out a teacher's run, which is found complete by all but the first that need it."""
    (outcome,) = execute_together([config], ["teacher"])
    if isinstance(outcome.error, RunError):
        told = f"the teacher could not be trained: {outcome.error}; its own keys are teacher.recipe.*"
        raise RunError(told) from outcome.error
    if outcome.error:
        raise outcome.error
    assert outcome.directory is not None
    return outcome.directory


def measure_memory_from_here(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
