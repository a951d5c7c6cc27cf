"""A program for torchrun: train runs alone and in several processes side by side, and compare losses and weights.

    torchrun --nproc-per-node 2 -m tests.train.compare_processes [--other-format] CONFIG_DIR OUT STEPS OVERRIDES...

OVERRIDES of several runs are divided by `--`. Rank 0 writes the largest relative differences of each run to OUT (JSON).
With --other-format, one process in the other memory format takes the place of several, for the effect of rounding.
"""

import dataclasses
import itertools
import json
import sys
from pathlib import Path

import torch

from kdbench.config import compose
from kdbench.methods.base import Requires
from kdbench.models import build
from kdbench.runner.build import bind, build_learner, build_parts
from kdbench.runner.parallel import on_own_device
from kdbench.runner.run import resolve_run
from kdbench.system.device import place
from kdbench.system.random import seeded
from kdbench.system.world import start_world
from kdbench.teachers.live import LiveTeacher
from kdbench.train.learner import Learner
from kdbench.train.parallel import ParallelSteps, parallelise
from kdbench.train.steps import EagerSteps


def arm(config, world):
    """Return a learner with its steps: alone without a world."""
    parts = build_parts(config)
    teacher = None
    if config.teacher:
        requires = parts.method.requires
        with seeded(5):
            network = build(config.teacher.model, parts.dataset.spec, requires.teacher_network_stages, "teacher")
        teacher = place(network, config.runtime).eval()
    bind(parts, [teacher] if teacher else [])
    learner = build_learner(config, parts)
    if teacher:
        learner.teacher = LiveTeacher(teacher, Requires.of_teacher([parts.method.requires]), config.runtime)
    if world:
        parallelise([learner], world)
    return learner, ParallelSteps(parts.batches, world, [learner]) if world else EagerSteps(parts.batches), parts


def weights(learner: Learner) -> torch.Tensor:
    modules = (learner.student, learner.method)
    tensors = [t for module in modules for t in (*module.parameters(), *module.buffers())]
    return torch.cat([t.detach().double().reshape(-1) for t in tensors if t.is_floating_point()])


def compare(config, world, steps: int, other_format: bool) -> dict[str, float]:
    """Return the largest relative differences over some steps; in rank 0, which also trains the run alone."""
    arms = [arm(with_other_format(config), None) if other_format else arm(config, world)]
    if world.rank == 0:
        arms.append(arm(config, None))
    start = weights(arms[0][0])
    before, largest = [0.0, 0.0], 0.0
    plans = itertools.chain.from_iterable(arms[0][2].batches.plan(epoch) for epoch in itertools.count())
    for learner, _, _ in arms:
        learner.begin_epoch()
    for plan in itertools.islice(plans, steps):
        losses = []
        for n, (learner, way, _) in enumerate(arms):
            batch, outputs = way.prepare_batch(plan, [learner])
            way.train_step(learner, batch, outputs)
            total = float(learner.sums.totals[0])
            losses.append(total - before[n])
            before[n] = total
        largest = max(largest, abs(losses[0] - losses[-1]) / abs(losses[-1]))
    found, alone = weights(arms[0][0]), weights(arms[-1][0])
    shared = world.gather(found[None], world.size)
    return {
        "loss": largest,
        "weights": float((found - alone).norm() / alone.norm()),
        "moved": float((alone - start).norm() / alone.norm()),
        "between processes": float((shared - found).abs().max()),
    }


def with_other_format(config):
    runtime = dataclasses.replace(config.runtime, channels_last=not config.runtime.channels_last)
    return dataclasses.replace(config, runtime=runtime)


def main() -> None:
    other_format = sys.argv[1] == "--other-format"
    config_dir, out, steps, *rest = sys.argv[1 + other_format :]
    world = start_world()
    torch.set_num_threads(1)
    given = [list(words) for differs, words in itertools.groupby(rest, lambda text: text != "--") if differs]
    found = {}
    for words in given:
        config = None if world.rank else resolve_run(compose(words, Path(config_dir)))[0]
        found[" ".join(words)] = compare(on_own_device(world.share(config), world), world, int(steps), other_format)
    if world.rank == 0:
        Path(out).write_text(json.dumps(found))
    world.disconnect()


if __name__ == "__main__":
    main()
