"""Data-parallel training as the processes do it: rank 0 completes runs, the others train along when it does."""

import contextlib
import io
import logging
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import torch

from kdbench.config import RunConfig
from kdbench.data import Dataset
from kdbench.errors import KdbenchError, printable
from kdbench.methods.base import Requires
from kdbench.models import Network
from kdbench.rundir.directory import RunDirectory
from kdbench.runner.build import Parts, bind, build_learner, build_parts
from kdbench.runner.run import Run
from kdbench.system import signals
from kdbench.system.device import resolve_device, torch_settings
from kdbench.system.guard import Guard
from kdbench.system.logs import silence_stdout
from kdbench.system.world import World, end_world, world
from kdbench.teachers.cache import LogitCache
from kdbench.teachers.live import CachedTeacher, LiveTeacher
from kdbench.teachers.store import load_verified
from kdbench.train.learner import Learner, TeacherSource
from kdbench.train.loop import fit
from kdbench.train.parallel import ParallelStudent, agree, parallelise

log = logging.getLogger(__name__)

IMAGES_PER_PROCESS = 4
"""Images of a process with which the networks are checked."""


@dataclass(frozen=True)
class TrainingTask:
    """The training that the other processes take part in, as rank 0 hands it to them."""

    configs: list[RunConfig]
    """Config of each run, with every `auto` resolved."""
    cached: list[bool]
    """True for each run whose teacher's logits are read from the logit cache."""
    teacher: RunDirectory | None
    """Directory of the runs' teacher."""
    states: list[bytes]
    """State of each learner."""
    path: list[str]
    """Folders in which modules are looked for."""


def start_others(runs: Sequence[Run]) -> None:
    """Have the other processes of torchrun train some runs along, which this one trains next; alone, do nothing.

    Args:
        runs: opened runs, which train in lockstep.
    """
    others = world()
    if not others.several:
        return
    teachers = [run.teacher for run in runs]
    directory = next((resolved.teacher.directory for resolved in teachers if resolved), None)
    states = [state_of(run.learner) for run in runs]
    cached = [resolved is not None and resolved.cached for resolved in teachers]
    others.share(TrainingTask([run.config for run in runs], cached, directory, states, sys.path))
    others.largest([0])  # every process has built its learners
    parallelise([run.learner for run in runs], others)
    check_exact([run.learner for run in runs], runs[0].parts.dataset, runs[0].config)
    log.info("processes: %d, runtime.parallel=%s", others.size, runs[0].config.runtime.parallel)


def end_others(runs: Sequence[Run], error: Exception) -> None:
    """Publish the error that ends a training of several processes; where they do not train, do nothing."""
    if any(run.learner.parallel for run in runs if hasattr(run, "learner")):
        world().announce_end(error)


def train_along_until_end() -> NoReturn:
    """Train along with rank 0 until it has finished, and end the process."""
    others = world()
    signals.install()
    signals.expect_repeats()
    silence_stdout()  # the lines are those of rank 0
    code = 0
    try:
        with signals.deferred(float(signals.GRACE_SECONDS)):
            while (task := others.share()) is not None:
                train_along(task, others)
    except signals.Interrupted:
        pass  # rank 0 says so
    except Exception as error:
        others.announce_end(error)
        print(f"kdbench: process {others.rank}: {printable(str(error))}", file=sys.stderr)
        code = 1
    end_world()
    sys.exit(code)


def train_along(task: TrainingTask, others: World) -> None:
    """Build the learners of a task and train them together with rank 0."""
    sys.path += [folder for folder in task.path if folder not in sys.path]
    configs = [on_own_device(config, others) for config in task.configs]
    grace = max(config.checkpoint.grace_seconds for config in configs)
    # At a stop rank 0 writes the checkpoint and lets this process end, which waits for that.
    with contextlib.suppress(signals.Interrupted), signals.deferred(grace), torch_settings(configs[0].runtime):
        parts = [build_parts(config) for config in configs]
        sources, network = build_teacher(task, configs, parts)
        learners = []
        for config, own, source, state in zip(configs, parts, sources, task.states, strict=True):
            bind(own, [network] if network is not None and config.teacher else [])
            learner = build_learner(config, own, Guard(on_failure=report_bug))
            learner.load_state_dict(torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)["learner"])
            if source:
                learner.teacher = source
            learners.append(learner)
        others.largest([0])
        parallelise(learners, others)
        check_exact(learners, parts[0].dataset, configs[0])
        fit(learners, parts[0].batches, configs[0].recipe.epochs)


def report_bug(error: Exception) -> None:
    """Print an error of code that this process alone meets, with its traceback; rank 0 prints all others."""
    if not isinstance(error, KdbenchError) and world().problem:
        traceback.print_exception(error)


def build_teacher(
    task: TrainingTask, configs: Sequence[RunConfig], parts: Sequence[Parts]
) -> tuple[list[TeacherSource | None], Network | None]:
    """Return the source of each run's teacher outputs, and the teacher's network."""
    if task.teacher is None:
        return [None] * len(configs), None
    taught = [n for n, config in enumerate(configs) if config.teacher]
    first = configs[taught[0]]
    requires = Requires.of_teacher(parts[n].method.requires for n in taught)
    teacher = load_verified(task.teacher, first, requires, parts[taught[0]].dataset)
    live = LiveTeacher(teacher.network, requires, first.runtime)
    sources: list[TeacherSource | None] = [None] * len(configs)
    cached: CachedTeacher | None = None
    for n in taught:
        sources[n] = live
        if task.cached[n]:
            train = parts[n].dataset.train
            if cached is None:
                logits = LogitCache(configs[n], teacher, parts[n].batches).read()
                cached = CachedTeacher(logits.to(train.labels.device), train)
            sources[n] = cached
    return sources, teacher.network


def on_own_device(config: RunConfig, others: World) -> RunConfig:
    """Return a config of rank 0 with the device of this process."""
    kind = config.runtime.device.partition(":")[0]
    device = resolve_device("auto" if kind == "cuda" else kind)
    return replace(config, runtime=replace(config.runtime, device=device))


def state_of(learner: Learner) -> bytes:
    """Return the state of a learner as bytes."""
    content = io.BytesIO()
    torch.save({"learner": learner.state_dict()}, content)
    return content.getvalue()


def check_exact(learners: Sequence[Learner], dataset: Dataset, config: RunConfig) -> None:
    """Check that every student computes in parts what it computes at once; one that does not fails."""
    for learner in learners:
        if config.runtime.parallel == "exact" and isinstance(learner.parallel, ParallelStudent):
            count = min(len(dataset.train), IMAGES_PER_PROCESS * learner.parallel.world.size)
            images_NHWC = dataset.train.images[:count].to(dataset.device)
            images = dataset.normalise(images_NHWC.permute(0, 3, 1, 2))
            with learner.guard:
                learner.parallel.check_exact(images)
    agree(learners, world())
