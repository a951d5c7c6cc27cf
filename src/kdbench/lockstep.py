"""Jobs of a sweep that train in lockstep: which ones can, and how they are carried out.

Runs can share a process, its batches and a teacher's answers where they have the same data, data seed, batch size,
epochs and runtime, and no two different teachers. Each has a run directory, a log, checkpoints and a fate of its own.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdbench import tables, teachers
from kdbench.config import ModelConfig, RunConfig
from kdbench.data.dataset import IMAGE_SHAPE, NUM_CLASSES
from kdbench.errors import printable
from kdbench.models import describe
from kdbench.run import execute_together, located
from kdbench.runs import key_of
from kdbench.sweep import Job, result_of, say_heading

MAX_LEARNERS = 8
"""Of a group, unless somebody says otherwise."""


def groups(configs: Sequence[RunConfig], max_learners: int = MAX_LEARNERS) -> list[list[int]]:
    """Which runs train together.

    Args:
        configs: As parsed; each can run.
        max_learners: Of a group, at least 1.

    Returns:
        Positions in `configs`, each once: first those of runs that are complete, then the groups, then what is the
        same run as one of theirs. Runs without a teacher join those who have one.
    """
    complete: list[int] = []
    first: dict[Path, int] = {}
    again: list[list[int]] = []
    alike: dict[str, dict[str | None, list[int]]] = {}
    for position, config in enumerate(configs):
        config, directory = located(config)
        if directory.is_complete() and not config.overwrite:
            complete.append(position)
        elif first.setdefault(directory.path, position) != position:
            again.append([position])
        else:
            teacher = teacher_of(config) if config.teacher else None
            alike.setdefault(shared(config), {}).setdefault(teacher, []).append(position)
    found = [complete] if complete else []
    for by_teacher in alike.values():
        untaught = by_teacher.pop(None, [])
        own = [chunk for positions in by_teacher.values() for chunk in chunks(positions, max_learners)]
        for group in own:
            room = max_learners - len(group)
            group += untaught[:room]
            untaught = untaught[room:]
        found += [sorted(group) for group in [*own, *chunks(untaught, max_learners)]]
    return found + again


def split(jobs: Sequence[Job], max_learners: int) -> list[list[Job]]:
    """A sweep's jobs, as `launch` takes them."""
    return [[jobs[n] for n in group] for group in groups([j.config for j in jobs if j.config], max_learners)]


def teacher_of(config: RunConfig) -> str:
    """The same for runs that can be taught at once. A teacher's stages are names, and no part of its own key."""
    assert config.teacher is not None
    return key_of({"teacher": teachers.key_of_teacher(config), "stages": config.teacher.model.stages})


def shared(config: RunConfig) -> str:
    """The same for runs, located, that see the same batches and compute in the same way."""
    return key_of(
        {
            "output_root": config.output_root,  # under which teachers and tables are looked for
            "data": dataclasses.asdict(config.data),
            "data_seed": config.data_seed,
            "batch_size": config.recipe.batch_size,
            "epochs": config.recipe.epochs,
            "runtime": dataclasses.asdict(config.runtime),
        }
    )


def is_complete(config: RunConfig) -> bool:
    return located(config)[1].is_complete() and not config.overwrite


def chunks(positions: Sequence[int], most: int) -> list[list[int]]:
    """As few parts as there can be, of about the same size."""
    count = math.ceil(len(positions) / most)
    return [list(positions[len(positions) * n // count : len(positions) * (n + 1) // count]) for n in range(count)]


def launch(configs: Sequence[RunConfig], overrides: Sequence[Sequence[str]], first: int) -> list[dict[str, Any]]:
    """Carry out jobs that `groups` has put together.

    Args:
        configs: As parsed.
        overrides: Of each job, for the user.
        first: The number of the first, counted from 0.

    Returns:
        Per job its status, and its run's directory or what went wrong.
    """
    names = [f"job {first + n + 1}" for n in range(len(configs))]
    if len(configs) == 1:
        title = printable(" ".join(overrides[0]))
        say_heading(f"{names[0]}: {title}")
        (outcome,) = execute_together(configs)
        return [result_of(outcome.ended, title)]
    done = all(is_complete(config) for config in configs)
    teacher = next((config.teacher.model.name for config in configs if config.teacher), None)
    asked = f", teacher: {teacher}" if teacher else ""
    say_heading(
        f"{len(configs)} jobs {'that are complete' if done else f'in lockstep{asked}'}",
        *(f"{name}: {printable(' '.join(own))}" for name, own in zip(names, what_differs(overrides), strict=True)),
    )
    outcomes = execute_together(configs, names)
    return [result_of(outcome.ended, name, f"{name}: ") for outcome, name in zip(outcomes, names, strict=True)]


def what_differs(overrides: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Of each job what not all have; all of it where nothing is left."""
    common = set(overrides[0]).intersection(*overrides)
    return [[override for override in job if override not in common] or job for job in overrides]


def launch_jobs(jobs: Sequence[Job], first: int) -> list[dict[str, Any]]:
    """The same for a sweep's jobs that have their configs."""
    return launch([job.config for job in jobs if job.config], [job.overrides for job in jobs], first)


def saving(configs: Sequence[RunConfig]) -> float:
    """The share of a group's multiply-accumulates that asking a live teacher once saves."""
    students = sum(3 * macs_of(config.student) for config in configs)
    teachers_macs = [macs_of(config.teacher.model) for config in configs if asks_live(config) and config.teacher]
    return sum(teachers_macs[1:]) / (students + sum(teachers_macs))


def asks_live(config: RunConfig) -> bool:
    """Whether a run asks its teacher about every batch, as far as its config says."""
    if config.teacher is None or config.teacher.table == "on":
        return False
    needs = getattr(config.method.target, "needs", None)  # of the class, where they do not depend on stages
    tabulated = needs is not None and tables.can_answer(needs) and tables.repaid(config.recipe.epochs, config)
    return config.teacher.table == "off" or not tabulated


def macs_of(model: ModelConfig) -> int:
    """Of an image's forward pass."""
    return describe(model, NUM_CLASSES, IMAGE_SHAPE, "student").macs
