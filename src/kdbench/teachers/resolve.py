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
    source: TeacherSource
    cached: bool
    description: str
    """Live or cached, and why, for the user."""


class Student(Protocol):
    """A run that may have a teacher."""

    config: RunConfig
    guard: Guard
    teacher: ResolvedTeacher | None

    @property
    def method(self) -> Method: ...

    @property
    def batches(self) -> Batches: ...

    def recorded_cache(self) -> Any: ...


StudentT = TypeVar("StudentT", bound=Student)


def resolve_teachers(students: Sequence[StudentT], provide: Callable[[StudentT], RunDirectory]) -> None:
    """Set the teacher of each run that has one, trained, imported or cached first where that is missing.

    Args:
        students: runs that share their teacher; some may have none. One whose teacher cannot be resolved fails.
        provide: returns the run directory of a run's teacher, complete.
    """
    choices: dict[StudentT, cache.Choice] = {}
    for student in (student for student in students if student.config.teacher):
        with student.guard:
            directory = teacher_directory(student.config)
            choices[student] = cache.choose(
                student.config, student.method.requires, directory, student.recorded_cache()
            )
            log.info("teacher: %s", choices[student].reason)
    if not choices:
        return
    first = next(iter(choices))
    requires = Requires.of_teacher(student.method.requires for student in choices)
    try:
        teacher = load_verified(provide(first), first.config, requires, first.batches.dataset)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        for student in choices:
            with student.guard:
                raise error
        return
    live = LiveTeacher(teacher.network, requires, first.config.runtime)
    cached: CachedTeacher | None = None
    for student, choice in choices.items():
        with student.guard:
            student.teacher = ResolvedTeacher(teacher, live, False, choice.reason)
            if choice.use:
                logits = cache.obtain(choice, student.config, teacher, student.batches)
                if isinstance(logits, str):
                    student.teacher = ResolvedTeacher(teacher, live, False, logits)
                    log.info("teacher: %s", logits)
                else:
                    train = student.batches.dataset.train
                    views = cache.views_of(student.config)
                    cached = cached or CachedTeacher(logits.to(train.labels.device), train, views)
                    student.teacher = ResolvedTeacher(teacher, cached, True, choice.reason)
