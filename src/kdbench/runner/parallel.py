"""Data-parallel training as the processes do it: rank 0 completes runs and sends the others what to train with it."""

import contextlib
import io
import logging
import pickle
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NoReturn

import torch

from kdbench.config import RunConfig
from kdbench.config.sections import EXACT
from kdbench.data import Batches, Dataset
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
from kdbench.train.parallel import parallelise, stop_and_fail_together

log = logging.getLogger(__name__)

IMAGES_PER_PROCESS = 4
"""Images of a process with which the networks are checked."""


@dataclass(frozen=True)
class TrainingTask:
    """Learners to train, as rank 0 sends them to the other processes."""

    configs: list[RunConfig]
    """Config of each run, with every `auto` resolved."""
    cached: list[bool]
    """True for each run whose teacher's logits are read from the logit cache."""
    teacher: RunDirectory | None
    """Directory of the runs' teacher."""
    requires: Requires
    """Outputs of its network for a batch, the same in every process: also those for runs that have dropped out."""
    states: list[bytes]
    """State of each learner."""


def start_others(runs: Sequence[Run]) -> None:
    """Prepare runs for training by all processes of torchrun, which build the same learners; without it, do nothing.

    Args:
        runs: opened runs, which train in lockstep.

    Raises:
        Interrupted: a process has received a stop request.
        ProcessEndedError: another process has ended.
    """
    others = world()
    if not others.several:
        return
    resolved = next((run.teacher for run in runs if run.teacher), None)
    task = TrainingTask(
        configs=[replace(run.config, trackers=[]) for run in runs],  # those are for rank 0
        cached=[run.teacher is not None and run.teacher.cached for run in runs],
        teacher=resolved.teacher.directory if resolved else None,
        requires=resolved.requires if resolved else Requires(),
        states=[state_of(run.learner) for run in runs],
    )
    # The task by itself: it may name classes of a folder beside --config-dir, which the path leads to.
    others.share((list(sys.path), pickle.dumps(task)))
    stop_and_fail_together([], others)  # waits until every process has built its learners
    parallelise([run.learner for run in runs], others)
    check_exact([run.learner for run in runs], runs[0].parts.dataset)
    log.info("processes: %d, runtime.parallel=%s", others.size, runs[0].config.runtime.parallel)


def end_others(runs: Sequence[Run], error: Exception) -> None:
    """Publish the error that ends a training of several processes; where they do not train, do nothing."""
    if any(run.learner.parallel for run in runs if hasattr(run, "learner")):
        world().publish_end(error)


def execute_tasks() -> NoReturn:
    """Train what rank 0 sends, until it has finished, and end the process."""
    others = world()
    signals.install()
    signals.expect_repeats()
    silence_stdout()  # the lines are those of rank 0
    code = 0
    try:
        with signals.deferred(float(signals.GRACE_SECONDS)):
            while (message := others.share()) is not None:
                path, task = message
                sys.path += [folder for folder in path if folder not in sys.path]
                execute(pickle.loads(task), others)
    except signals.Interrupted:
        pass  # rank 0 says so
    except Exception as error:
        others.publish_end(error)
        print(f"kdbench: process {others.rank}: {printable(str(error))}", file=sys.stderr)
        code = 1
    end_world()
    sys.exit(code)


def execute(task: TrainingTask, others: World) -> None:
    """Build the learners of a task and train them together with rank 0, until the end or a stop request."""
    configs = [on_own_device(config, others) for config in task.configs]
    grace = max(config.checkpoint.grace_seconds for config in configs)
    built = None
    # At a stop rank 0 writes the checkpoint and lets this process end, which waits for that.
    with contextlib.suppress(signals.Interrupted), signals.deferred(grace), torch_settings(configs[0].runtime):
        with contextlib.suppress(signals.Interrupted):  # the other processes leave below, too
            built = build_learners(task, configs)
        stop_and_fail_together([], others)
        assert built
        learners, batches = built
        parallelise(learners, others)
        check_exact(learners, batches.dataset)
        fit(learners, batches, configs[0].recipe.epochs)


def build_learners(task: TrainingTask, configs: Sequence[RunConfig]) -> tuple[list[Learner], Batches]:
    """Return the learners of a task and their batches.

    Args:
        task: the task.
        configs: its configs, with the device of this process.

    Raises:
        Interrupted: a stop was requested meanwhile.
    """
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
    return learners, parts[0].batches


def report_bug(error: Exception) -> None:
    """Print an error of code that only this process meets, with its traceback; rank 0 prints all others."""
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
    teacher = load_verified(task.teacher, first, task.requires, parts[taught[0]].dataset)
    live = LiveTeacher(teacher.network, task.requires, first.runtime)
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


def check_exact(learners: Sequence[Learner], dataset: Dataset) -> None:
    """Check that every student computes in parts what it computes at once; one that does not fails."""
    others = world()
    if learners[0].runtime.parallel == EXACT:
        count = min(len(dataset.train), IMAGES_PER_PROCESS * others.size)
        images_NHWC = dataset.train.images[:count].to(dataset.device)
        images = dataset.normalise(images_NHWC.permute(0, 3, 1, 2))
        for learner in learners:
            assert learner.parallel
            with learner.guard, others.collective():
                learner.parallel.check_exact(images)
    stop_and_fail_together(learners, others)
