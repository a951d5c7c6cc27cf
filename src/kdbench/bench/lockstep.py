"""Learners of one teacher: in lockstep, and one after the other, each with its own live teacher."""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from kdbench.bench.arms import full_plans, teacher_for_speed
from kdbench.bench.measure import RECORDED, spread
from kdbench.config import RunConfig
from kdbench.data import Batches
from kdbench.data.dataset import NUM_CLASSES
from kdbench.errors import ConfigError
from kdbench.lockstep import groups, saving
from kdbench.methods.method import Needs
from kdbench.models import build, folded
from kdbench.parts import check_parts
from kdbench.runtime import narrow, placed
from kdbench.teaching import LiveTeacher, no_teacher
from kdbench.train.graphs import steps_on
from kdbench.train.group import Group, Pupil
from kdbench.train.learner import Learner
from kdbench.train.loop import train_epoch
from kdbench.train.steps import Answers, Steps

ALONE, LOCKSTEP = "one after the other", "lockstep"


@dataclass
class Training:
    """Learners that train together, one or several."""

    group: Group
    steps: Steps
    plan: Iterator[tuple[Tensor, Tensor]]

    def train(self, steps: int) -> None:
        train_epoch(self.group, self.steps, self.group.position, itertools.islice(self.plan, steps))


def check_group(configs: Sequence[RunConfig]) -> None:
    """That they can train in lockstep.

    Raises:
        ConfigError: they cannot.
    """
    apart = groups(configs, max_learners=max(1, len(configs)))
    if len(configs) < 2 or len(apart) > 1:
        parts = f"{len(apart)} group{'s' * (len(apart) > 1)}"
        raise ConfigError(
            f"--lockstep measures one group of at least two learners, and here are {len(configs)} in {parts}; "
            "give several values for student or method, and one for data, seed, batch size and teacher"
        )


def training_of(configs: Sequence[RunConfig]) -> Training:
    """Learners with fresh weights and one teacher, which has not been trained."""
    parts = [check_parts(config) for config in configs]
    dataset, first = parts[0][0], configs[0]
    batches = Batches(
        dataset, first.recipe.batch_size, first.data_seed, first.data.augment, first.runtime.channels_last
    )
    needs = Needs.of_teacher(method.needs for _, _, method in parts)
    answers: Answers = no_teacher
    taught = next((config for config in configs if config.teacher), None)
    if taught:
        network = folded(teacher_for_speed(taught, needs, dataset), narrow(first.runtime))
        answers = LiveTeacher(network, needs, first.runtime)
    teachers: dict[Learner, Answers] = {}
    for config, (_, _, method) in zip(configs, parts, strict=True):
        torch.manual_seed(0)
        student = placed(build(config.student, NUM_CLASSES, method.needs.student_stages), config.runtime)
        learner = Learner(student, placed(method, config.runtime), config.recipe, config.runtime)
        learner.begin_epoch()
        teachers[learner] = answers if config.teacher else no_teacher
    steps = steps_on(first.runtime, batches, teachers)
    return Training(Group([Pupil(learner) for learner in teachers]), steps, full_plans(batches))


def compared(configs: Sequence[RunConfig], rounds: int, seconds: float) -> dict[str, Any]:
    """Train with both arms in turn.

    Args:
        configs: Resolved, of one group.
        rounds: At least 1.
        seconds: How long a visit should take; one step of every learner is the least.

    Returns:
        Per arm `images_per_second` (all learners' together) and `step_seconds` (a step of every learner), the `ratio`
        of lockstep's speed to the other's per round, and `saved`, the share of the multiply-accumulates.
    """
    arms = {ALONE: [training_of([config]) for config in configs], LOCKSTEP: [training_of(configs)]}

    def visit(name: str, steps: int) -> float:
        started = time.perf_counter()
        for training in arms[name]:
            training.train(steps)
        return (time.perf_counter() - started) / steps

    for name in arms:
        visit(name, 1 if configs[0].runtime.device == "cpu" else RECORDED)  # libraries choose their kernels here
    steps = max(1, round(seconds / visit(ALONE, 1)))
    timings: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name in arms:
            timings[name].append(visit(name, steps))
    images = configs[0].recipe.batch_size * len(configs)
    return {
        "learners": [f"{config.student.name} {config.method.name}" for config in configs],
        "arms": {
            name: {"images_per_second": spread([images / s for s in times]), "step_seconds": times}
            for name, times in timings.items()
        },
        "steps_per_round": steps,
        "ratio": spread([a / b for a, b in zip(timings[ALONE], timings[LOCKSTEP], strict=True)]),
        "saved": saving(configs),
    }
