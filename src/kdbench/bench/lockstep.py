"""Learners that share a teacher: in lockstep, and one after the other, each with a live teacher of its own."""

import time
from collections.abc import Sequence
from typing import Any

from kdbench.bench.measure import CAPTURE_STEPS, spread
from kdbench.bench.trainee import untrained_teacher
from kdbench.bench.training import Training
from kdbench.config import RunConfig
from kdbench.errors import ConfigError
from kdbench.methods.base import Requires
from kdbench.models import fuse_batch_norm
from kdbench.runner.build import bind, build_learner, build_parts
from kdbench.sweep.lockstep import group_runs, saved_share
from kdbench.system.device import autocast_dtype
from kdbench.teachers.live import LiveTeacher

SEQUENTIAL, LOCKSTEP = "one after the other", "lockstep"


def check_group(configs: Sequence[RunConfig]) -> None:
    """Check that runs can train in lockstep.

    Raises:
        ConfigError: they cannot.
    """
    groups = group_runs(configs, max_learners=max(1, len(configs)))
    if len(configs) < 2 or len(groups) > 1:
        raise ConfigError(
            f"--lockstep measures one group of at least two learners; these are {len(configs)} in "
            f"{len(groups)} group{'s' * (len(groups) > 1)}; "
            "give several values for student or method, and one for data, seed, batch size and teacher",
            code="mismatch",
            key="--lockstep",
        )


def build_group(configs: Sequence[RunConfig]) -> Training:
    """Return learners with fresh weights, and one untrained teacher for those that have one."""
    parts = [build_parts(config) for config in configs]
    with_teacher = [n for n, config in enumerate(configs) if config.teacher]
    live: LiveTeacher | None = None
    if with_teacher:
        config = configs[with_teacher[0]]
        requires = Requires.of_teacher(parts[n].method.requires for n in with_teacher)
        network = untrained_teacher(config, requires, parts[0].dataset)
        fused = fuse_batch_norm(network, autocast_dtype(config.runtime))
        live = LiveTeacher(fused, requires, config.runtime)
    learners = []
    for config, own in zip(configs, parts, strict=True):
        teacher = live if config.teacher else None
        bind(own, [teacher.network] if teacher else [])
        learners.append(build_learner(config, own))
        if teacher:
            learners[-1].teacher = teacher
    return Training(learners, parts[0].batches)


def compare(configs: Sequence[RunConfig], rounds: int, seconds: float) -> dict[str, Any]:
    """Train in both ways in turn.

    Args:
        configs: resolved configs of one group.
        rounds: number of rounds, at least 1.
        seconds: duration of a visit; at least one step of every learner.

    Returns:
        Per arm `images_per_second` (of all learners together) and `step_seconds` (a step of every learner), the `ratio`
        of lockstep's speed to the other's per round, and `saved`, the share of the multiply-accumulates.
    """
    arms = {SEQUENTIAL: [build_group([config]) for config in configs], LOCKSTEP: [build_group(configs)]}

    def visit(name: str, steps: int) -> float:
        started = time.perf_counter()
        for training in arms[name]:
            training.train(steps)
        return (time.perf_counter() - started) / steps

    for name in arms:
        visit(name, 1 if configs[0].runtime.device == "cpu" else CAPTURE_STEPS)  # libraries choose their kernels here
    steps = max(1, round(seconds / visit(SEQUENTIAL, 1)))
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
        "ratio": spread([a / b for a, b in zip(timings[SEQUENTIAL], timings[LOCKSTEP], strict=True)]),
        "saved": saved_share(configs),
    }
