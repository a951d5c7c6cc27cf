"""A student per arm, trained as the arm says, and what the arms of one configuration share."""

import copy
import dataclasses
import itertools
import time

import torch
from torch import nn

from kdbench.bench.arms import Arm
from kdbench.bench.reference import PilBatches, ReferenceTrainer
from kdbench.bench.training import Training, train_on, whole_batches
from kdbench.config import RunConfig
from kdbench.data import Dataset
from kdbench.data.batches import plain_batches
from kdbench.methods.base import Requires
from kdbench.models import Network, fuse_batch_norm, summarize
from kdbench.runner.build import bind, build_learner, build_parts, check_parts
from kdbench.system.device import autocast_dtype, place, synchronize
from kdbench.teachers.live import CachedTeacher, LiveTeacher
from kdbench.teachers.store import build_teacher
from kdbench.train.learner import TeacherSource, no_teacher


class Bench:
    """Data, loader and teacher that the arms of one configuration share.

    Args:
        config: resolved config.
        workers: processes of the reference's loader.
    """

    def __init__(self, config: RunConfig, workers: int) -> None:
        self.config = config
        self.dataset, self.student, method = check_parts(config)
        self.requires = method.requires
        self.loader = PilBatches(self.dataset, config.recipe.batch_size, config.runtime.device, workers)
        self.teacher = untrained_teacher(config, self.requires, self.dataset) if config.teacher else None

    @property
    def networks(self) -> list[Network]:
        """Networks of the teachers, for `bind`."""
        return [self.teacher] if self.teacher else []

    def close(self) -> None:
        """Stop the processes of the reference's loader."""
        self.loader.close()

    def flops_per_image(self, arm: Arm) -> int:
        """Return the FLOPs of the networks' convolutions and products per image.

        These are the student's forward pass, twice that backward, and the forward pass of a live teacher.
        """
        teacher = self.config.teacher if arm.teacher != "cache" else None
        teacher_macs = summarize(teacher.model, self.dataset.spec, "teacher", trained=False).macs if teacher else 0
        return 6 * self.student.macs + 2 * teacher_macs

    def teacher_for(self, arm: Arm, config: RunConfig) -> TeacherSource:
        """Return the source of the teacher's outputs in an arm.

        Args:
            arm: the arm.
            config: config with the arm's runtime.
        """
        if arm.teacher == "cache":
            return random_cache(self.dataset)
        if self.teacher is None:
            return no_teacher
        network = place(copy.deepcopy(self.teacher), config.runtime)
        if arm.teacher == "fused":
            network = fuse_batch_norm(network, autocast_dtype(config.runtime))
        return LiveTeacher(network, self.requires, config.runtime)


def untrained_teacher(config: RunConfig, requires: Requires, dataset: Dataset) -> Network:
    """Return a teacher without training, but with batch statistics of real images, so that its outputs are finite."""
    torch.manual_seed(0)
    network = build_teacher(config, dataset.spec, requires.teacher_network_stages).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(next(plain_batches(dataset, dataset.train, 32, config.runtime.channels_last)))
    return network.eval()


def random_cache(dataset: Dataset) -> CachedTeacher:
    """Return a logit cache of random values: what is measured is how fast it is read."""
    shape = len(dataset.train), dataset.views.number, dataset.spec.num_classes
    return CachedTeacher(torch.randn(shape, device=dataset.device), dataset.train)


class Trainee:
    """A student in training, as an arm says.

    Args:
        arm: the arm.
        bench: what the arms of the configuration share.
    """

    def __init__(self, arm: Arm, bench: Bench) -> None:
        self.arm = arm
        self.loader = None if arm.views else bench.loader
        config = with_arm(bench.config, arm)
        self.device = config.runtime.device
        parts = build_parts(config)
        self.student = parts.student
        bind(parts, bench.networks)
        teacher = bench.teacher_for(arm, config)
        batches = (
            (parts.batches.batch(plan) for plan in whole_batches(parts.batches))
            if arm.views
            else bench.loader.batches(arm.channels_last)
        )
        if not arm.learner:
            trainer = ReferenceTrainer(parts.student, parts.method, config.recipe, config.runtime)
            self.train_steps = lambda steps: trainer.train(itertools.islice(batches, steps), teacher)
            return
        learner = build_learner(config, parts)
        learner.teacher = teacher
        if arm.views:
            self.train_steps = Training([learner], parts.batches).train
        else:
            learner.begin_epoch()
            self.train_steps = lambda steps: train_on(learner, itertools.islice(batches, steps))

    def train(self, steps: int) -> float:
        """Train a number of steps, and return the seconds until the device had finished them."""
        # The reference takes torch's defaults: on a GPU torch then rounds float32 convolutions to TF32.
        torch.backends.cudnn.allow_tf32 = not self.arm.precision
        started = time.perf_counter()
        self.train_steps(steps)
        synchronize(self.device)
        return time.perf_counter() - started

    def discard_prefetched(self) -> None:
        """Discard batches that were made while other arms were measured."""
        if self.loader:
            self.loader.discard_prefetched()


def with_arm(config: RunConfig, arm: Arm) -> RunConfig:
    """Return a resolved config with the runtime of an arm."""
    precision = config.runtime.precision if arm.precision else "fp32"
    runtime = dataclasses.replace(
        config.runtime, channels_last=arm.channels_last, precision=precision, graphs=arm.graphs
    )
    return dataclasses.replace(config, runtime=runtime)
