"""Resolve each run's teacher: live network or cached logits, for one run or for several that share it."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from kdbench.config import RunConfig
from kdbench.data import Batches
from kdbench.methods.base import Method, Requires
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.identity import teacher_directory
from kdbench.system.guard import Guard
from kdbench.system.memory import is_out_of_memory
from kdbench.teachers import cache
from kdbench.teachers.live import CachedTeacher, LiveTeacher
from kdbench.teachers.store import Teacher, load_verified
from kdbench.train.learner import TeacherSource

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ResolvedTeacher:
    """The teacher of a run, and where its outputs come from."""

    teacher: Teacher
    requires: Requires
    """Outputs of the teacher's network that the methods of the group require."""
    source: TeacherSource
    cached: bool
    description: str
    """Live or cached, and why, for the user."""


class RunWithTeacher(Protocol):
    """A run that may have a teacher."""

    config: RunConfig
    guard: Guard
    teacher: ResolvedTeacher | None

    @property
    def method(self) -> Method: ...

    @property
    def batches(self) -> Batches: ...

    def recorded_cache(self) -> Any: ...


RunT = TypeVar("RunT", bound=RunWithTeacher)


def resolve_teachers(runs: Sequence[RunT], provide: Callable[[RunT], RunDirectory]) -> None:
    """Set the teacher of each run that has one, trained, imported or cached first where that is missing.

    Args:
        runs: runs that share their teacher; some may have none. One whose teacher cannot be resolved fails.
        provide: returns the run directory of a run's teacher, complete.
    """
    choices: dict[RunT, cache.Choice] = {}
    for run in (run for run in runs if run.config.teacher):
        with run.guard:
            directory = teacher_directory(run.config)
            choices[run] = cache.choose(run.config, run.method.requires, directory, run.recorded_cache())
            log.info("teacher: %s", choices[run].reason)
    if not choices:
        return
    first = next(iter(choices))
    requires = Requires.of_teacher(run.method.requires for run in choices)
    try:
        teacher = load_verified(provide(first), first.config, requires, first.batches.dataset)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        for run in choices:
            with run.guard:
                raise error
        return
    live = LiveTeacher(teacher.network, requires, first.config.runtime)
    cached: CachedTeacher | None = None
    for run, choice in choices.items():
        with run.guard:
            run.teacher = ResolvedTeacher(teacher, requires, live, False, choice.reason)
            if choice.use:
                logits = cache.obtain(choice, run.config, teacher, run.batches)
                if isinstance(logits, str):
                    run.teacher = ResolvedTeacher(teacher, requires, live, False, logits)
                    log.info("teacher: %s", logits)
                else:
                    train = run.batches.dataset.train
                    cached = cached or CachedTeacher(logits.to(train.labels.device), train)
                    run.teacher = ResolvedTeacher(teacher, requires, cached, True, choice.reason)
