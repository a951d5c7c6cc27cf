"""What is measured: the reference trainer, each of kdbench's features alone in it, and all of them together."""

import copy
import dataclasses
import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.bench.reference import PilBatches, ReferenceTrainer
from kdbench.config import RunConfig
from kdbench.data import Batches, Dataset
from kdbench.data.batches import Batch, plain_batches
from kdbench.data.dataset import IMAGE_SHAPE, NUM_CLASSES
from kdbench.methods.method import Needs
from kdbench.models import Network, build, describe, folded
from kdbench.parts import check_parts
from kdbench.runtime import narrow, placed
from kdbench.tables import can_answer, views_of
from kdbench.teaching import LiveTeacher, TabulatedTeacher, no_teacher
from kdbench.train.graphs import steps_on
from kdbench.train.group import Group, Pupil
from kdbench.train.learner import Learner
from kdbench.train.loop import train_epoch
from kdbench.train.steps import Answers, Steps


@dataclass(frozen=True)
class Arm:
    """One way to train. Every field that is off is the reference's."""

    name: str
    what: str
    views: bool = False
    """Batches gathered from uint8 tensors on the device; else PIL transforms in worker processes."""
    channels_last: bool = False
    """Images and weights as N, H, W, C in memory."""
    precision: bool = False
    """The run's precision; else float32."""
    learner: bool = False
    """kdbench's own step: fused optimiser, sums on the device; else one `.item()` per term."""
    teacher: str = "whole"
    """whole, folded (batch norm in the convolutions) or table."""
    graphs: bool = False
    """On a GPU, steps recorded and replayed; else launched kernel by kernel."""


REFERENCE = Arm(
    "reference", "PIL transforms in workers, fp32 (GPU: TF32, torch's default), NCHW, eager, .item() per term"
)
ALONE = (
    dataclasses.replace(REFERENCE, name="views", what="batches gathered on the device", views=True),
    dataclasses.replace(REFERENCE, name="channels-last", what="images and weights as NHWC", channels_last=True),
    dataclasses.replace(REFERENCE, name="precision", what="the run's precision", precision=True),
    dataclasses.replace(REFERENCE, name="step", what="fused optimiser, sums on the device", learner=True),
    dataclasses.replace(REFERENCE, name="folded", what="teacher: batch norm folded", teacher="folded"),
    dataclasses.replace(REFERENCE, name="table", what="teacher: table", teacher="table"),
)
KDBENCH = Arm("kdbench", "all of them", True, True, True, True, "folded", graphs=True)
KDBENCH_EAGER = dataclasses.replace(KDBENCH, name="kdbench-eager", what="all of them, no CUDA graphs", graphs=False)
KDBENCH_TABLE = dataclasses.replace(KDBENCH, name="kdbench-table", what="all of them, teacher: table", teacher="table")
ARMS = (REFERENCE, *ALONE, KDBENCH_EAGER, KDBENCH, KDBENCH_TABLE)


def arms_of(config: RunConfig, needs: Needs) -> list[Arm]:
    """Those that differ here: no teacher's without a teacher, no precision's in float32, no table of maps."""

    def differs(arm: Arm) -> bool:
        if arm.name == "precision":
            return narrow(config.runtime) is not None
        if arm == KDBENCH_EAGER:
            return config.runtime.device != "cpu"
        if arm.teacher == "table":
            return can_answer(needs)
        return arm.name != "folded" or config.teacher is not None

    return [arm for arm in ARMS if differs(arm)]


class Bench:
    """What the arms of one configuration share.

    Args:
        config: Resolved.
        workers: Processes of the reference's loader.
    """

    def __init__(self, config: RunConfig, workers: int) -> None:
        self.config = config
        self.dataset, self.student, self.method = check_parts(config)
        self.loader = PilBatches(
            self.dataset, config.recipe.batch_size, config.data.augment, config.runtime.device, workers
        )
        self.teacher = teacher_for_speed(config, self.method.needs, self.dataset) if config.teacher else None

    def flops_per_image(self, arm: Arm) -> int:
        """Of the networks' convolutions and products: forward and twice that backward, and the teacher's forward."""
        teacher = self.config.teacher
        live = teacher is not None and arm.teacher != "table"
        of_teacher = describe(teacher.model, NUM_CLASSES, IMAGE_SHAPE, "teacher").macs if live and teacher else 0
        return 6 * self.student.macs + 2 * of_teacher


def teacher_for_speed(config: RunConfig, needs: Needs, dataset: Dataset) -> Network:
    """A teacher that has not been trained, but whose batch norms know what passes through them."""
    assert config.teacher is not None
    torch.manual_seed(0)
    network = placed(build(config.teacher.model, NUM_CLASSES, needs.teacher_stages, "teacher"), config.runtime).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network(next(plain_batches(dataset, dataset.train, 32, config.runtime.channels_last)))
    return network.eval()


class Trainee:
    """A student in training as an arm says."""

    def __init__(self, arm: Arm, bench: Bench) -> None:
        config, needs, dataset = bench.config, bench.method.needs, bench.dataset
        self.arm = arm
        precision = config.runtime.precision if arm.precision else "fp32"
        self.runtime = dataclasses.replace(
            config.runtime, channels_last=arm.channels_last, precision=precision, graphs=arm.graphs
        )
        torch.manual_seed(0)
        self.student = placed(build(config.student, NUM_CLASSES, needs.student_stages), self.runtime)
        method = placed(copy.deepcopy(bench.method), self.runtime)
        self.loader = None if arm.views else bench.loader
        own = self.batches = Batches(
            dataset, config.recipe.batch_size, config.data_seed, config.data.augment, arm.channels_last
        )
        self.work: Iterator[Any] = bench.loader.batches(arm.channels_last) if self.loader else full_plans(own)
        """Batches, or what batches are made of."""
        self.answers: Answers = no_teacher
        if arm.teacher == "table":
            self.answers = synthetic_table(config, dataset)
        elif bench.teacher:
            teacher = placed(copy.deepcopy(bench.teacher), self.runtime)
            network = folded(teacher, narrow(self.runtime)) if arm.teacher == "folded" else teacher
            self.answers = LiveTeacher(network, needs, self.runtime)
        if arm.learner:
            learner = Learner(self.student, method, config.recipe, self.runtime)
            learner.begin_epoch()
            if self.loader:
                self.train_on = partial(given_batches, learner, self.answers)
            else:
                steps = steps_on(self.runtime, own, {learner: self.answers})
                group = Group([Pupil(learner)])
                self.train_on = partial(whole_batches, group, steps)
        else:
            if not self.loader:
                self.work = itertools.starmap(own.batch, self.work)
            trainer = ReferenceTrainer(self.student, method, config.recipe, self.runtime)
            self.train_on = partial(trainer.train, teacher=self.answers)

    def train(self, steps: int) -> float:
        """So many steps; the seconds until the device had done them."""
        # The reference is what one writes without a thought: on a GPU torch then rounds float32 convolutions to TF32.
        torch.backends.cudnn.allow_tf32 = not self.arm.precision
        started = time.perf_counter()
        self.train_on(itertools.islice(self.work, steps))
        if self.runtime.device != "cpu":
            torch.cuda.synchronize(self.runtime.device)
        return time.perf_counter() - started

    def begin_anew(self) -> None:
        """Take nothing from the time when others were measured."""
        if self.loader:
            self.loader.begin_anew()


def given_batches(learner: Learner, teacher: Answers, batches: Iterable[Batch]) -> None:
    """kdbench's step on batches that others have made."""
    for batch in batches:
        learner.step(learner.losses(batch, teacher(batch)))


def whole_batches(group: Group, steps: Steps, plan: Iterable[tuple[Tensor, Tensor]]) -> None:
    """kdbench's steps from where the learner stands."""
    train_epoch(group, steps, group.position, plan)


def full_plans(batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows and views of batches without end, and without the smaller ones at the end of an epoch."""
    for epoch in itertools.count():
        yield from ((rows, views) for rows, views in batches.plan(epoch) if len(rows) == batches.batch_size)


def synthetic_table(config: RunConfig, dataset: Dataset) -> TabulatedTeacher:
    """A table of random values, for the images of this benchmark: what is measured is how fast it is read."""
    views = views_of(config)
    values = torch.randn(len(dataset.train), len(views), NUM_CLASSES, device=dataset.train.labels.device)
    return TabulatedTeacher(values, dataset.train, views)
