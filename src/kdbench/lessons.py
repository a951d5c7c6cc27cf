"""Whom runs learn from: the live teacher or its table, for one run or for several at once."""

import dataclasses
import logging
from collections.abc import Callable, Mapping

from kdbench import tables, teachers
from kdbench.asked import Asked
from kdbench.config import RunConfig
from kdbench.job import Lesson
from kdbench.limits import is_out_of_memory
from kdbench.methods.method import Needs
from kdbench.parts import Parts
from kdbench.runs import RunDirectory
from kdbench.teaching import LiveTeacher, TabulatedTeacher
from kdbench.train.steps import Answers

log = logging.getLogger(__name__)


def taught(parts: Mapping[Asked, Parts], train_teacher: Callable[[RunConfig], RunDirectory]) -> dict[Asked, Lesson]:
    """For each run with a teacher, choose between it and its table, and have made what is missing of the two.

    Args:
        parts: Of runs that share their teacher, some of which may have none.
        train_teacher: Carries out the teacher's run, or finds it done.

    Returns:
        The lessons of those that have a teacher; one for whom something of it went wrong is told so.
    """
    runs = [run for run in parts if run.config.teacher]
    choices: dict[Asked, tables.Choice] = {}
    for run in runs:
        with run.apart():
            needs, directory = parts[run].method.needs, run.directory
            choices[run] = tables.choose(
                run.config, needs, teachers.directory_of(run.config), directory.recorded_table()
            )
            log.info("teacher: %s", choices[run].reason)
    if not choices:
        return {}
    first = next(iter(choices))
    try:
        union = Needs.of_teacher(parts[run].method.needs for run in choices)
        teacher = teachers.obtain(first.config, union, parts[first].dataset, train_teacher)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        for run in choices:
            run.failed(error)
        return {}
    live = LiveTeacher(teacher.network, union, first.config.runtime)
    lessons = {}
    tabulated: Answers | None = None
    for run, choice in choices.items():
        with run.apart():
            answers: Answers = live
            table, source = "off", choice.reason
            if choice.use:
                logits = tables.obtain(choice, run.config, teacher, parts[run].batches)
                if isinstance(logits, str):
                    source = logits
                    log.info("teacher: %s", source)
                else:
                    train = parts[run].dataset.train
                    views = tables.views_of(run.config)
                    tabulated = tabulated or TabulatedTeacher(logits.to(train.labels.device), train, views)
                    answers, table = tabulated, "on"
            assert run.config.teacher is not None
            config = dataclasses.replace(run.config.teacher, table=table)
            lessons[run] = Lesson(teacher, answers, config, source)
    return lessons
