"""Grouping for lockstep: runs that can share a process, its batches and their teacher.

These are runs with the same data, data seed, batches, epochs and runtime, and with one teacher among them. Each
keeps its own run directory, log and checkpoints, and the failure of one does not end the others.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

from kdbench.config import ModelConfig, RunConfig
from kdbench.config.derived import COMPRESS, MEASURE
from kdbench.config.recipe import BATCH_KEYS
from kdbench.data import spec_of
from kdbench.models import summarize
from kdbench.rundir.files import hash_of
from kdbench.rundir.identity import teacher_key
from kdbench.runner.run import resolve_run
from kdbench.sweep import MAX_LEARNERS
from kdbench.sweep.plan import PlannedRun
from kdbench.system.device import resolve_runtime
from kdbench.teachers.cache import can_answer, pays_off


def group_runs(configs: Sequence[RunConfig], max_learners: int = MAX_LEARNERS) -> list[list[int]]:
    """Return which runs train together.

    Args:
        configs: parsed, and checked to be able to run.
        max_learners: size of the largest group, at least 1.

    Returns:
        Positions in `configs`, each once: first the runs that are complete, then the groups, then repetitions of runs
        that are in a group already. Runs without a teacher join those with one.
    """
    complete: list[int] = []
    first: dict[Path, int] = {}
    repeated: list[list[int]] = []
    derived: dict[str, list[int]] = {}
    """Compressions, each alone, and networks that are measured together."""
    alike: dict[str, dict[str | None, list[int]]] = {}
    for position, config in enumerate(configs):
        config, directory = resolve_run(config)
        if config.kind == MEASURE and config.measure:
            derived.setdefault(hash_of({"together": config.measure.together}), []).append(position)
        elif directory.is_complete() and not config.overwrite:
            complete.append(position)
        elif first.setdefault(directory.path, position) != position:
            repeated.append([position])
        elif config.kind == COMPRESS:
            derived[directory.key] = [position]
        else:
            teacher = teacher_identity(config) if config.teacher else None
            alike.setdefault(shared_settings(config), {}).setdefault(teacher, []).append(position)
    groups = [*([complete] if complete else []), *derived.values()]
    for by_teacher in alike.values():
        without_teacher = by_teacher.pop(None, [])
        with_teacher = [part for positions in by_teacher.values() for part in divide(positions, max_learners)]
        for group in with_teacher:
            room = max_learners - len(group)
            group += without_teacher[:room]
            without_teacher = without_teacher[room:]
        groups += [sorted(group) for group in [*with_teacher, *divide(without_teacher, max_learners)]]
    return groups + repeated


def group_planned(runs: Sequence[PlannedRun], max_learners: int = MAX_LEARNERS) -> list[list[PlannedRun]]:
    """Return planned runs, none of them refused, in the groups of `group_runs`."""
    return [[runs[n] for n in group] for group in group_runs([run.config for run in runs], max_learners)]


def teacher_identity(config: RunConfig) -> str:
    """Return what is the same for runs that one teacher network serves: its run and the names of its stages."""
    assert config.teacher is not None
    return hash_of({"teacher": teacher_key(config), "stages": config.teacher.model.stages})


def shared_settings(config: RunConfig) -> str:
    """Return what is the same for resolved runs that see the same batches and compute in the same way."""
    return hash_of(
        {
            "roots": [config.output_root, *config.shared_roots],  # where teachers and logit caches are looked for
            "data": config.data.node(),
            "data_seed": config.data_seed,
            "batches": {key: getattr(config.recipe, key) for key in BATCH_KEYS},
            "epochs": config.recipe.epochs,
            "runtime": dataclasses.asdict(config.runtime),
        }
    )


def divide(positions: Sequence[int], most: int) -> list[list[int]]:
    """Return the positions in as few parts as possible, of about the same size."""
    count = math.ceil(len(positions) / most)
    return [list(positions[len(positions) * n // count : len(positions) * (n + 1) // count]) for n in range(count)]


def saved_share(configs: Sequence[RunConfig]) -> float:
    """Return the share of a group's multiply-accumulates that one pass of the live teacher for all of them saves."""
    students = sum(3 * macs_of(config.student, config) for config in configs)
    teachers = [
        macs_of(config.teacher.model, config) for config in configs if needs_live_teacher(config) and config.teacher
    ]
    return sum(teachers[1:]) / (students + sum(teachers))


def needs_live_teacher(config: RunConfig) -> bool:
    """Return whether a run passes every batch through its teacher, as far as its config shows."""
    if config.teacher is None or config.teacher.cache == "on":
        return False
    requires = getattr(config.method.target, "requires", None)  # of the class, where it does not depend on stages
    is_cached = requires is not None and can_answer(requires, config.recipe) and pays_off(config.recipe.epochs, config)
    return config.teacher.cache == "off" or not is_cached


def macs_of(model: ModelConfig, config: RunConfig) -> int:
    """Return the multiply-accumulates of one forward pass of a run's student or teacher for an image of its data."""
    return summarize(model, spec_of(config.data, resolve_runtime(config.runtime).device), "student", trained=False).macs
