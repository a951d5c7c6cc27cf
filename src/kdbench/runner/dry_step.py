"""One training step of a user's own method on random images, before the run starts."""

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.config import RunConfig
from kdbench.data.batches import Batch
from kdbench.errors import ConfigError, KdbenchError, RunError, described_at
from kdbench.methods.base import Method, MethodContext, Progress, TeacherOutput
from kdbench.models import build
from kdbench.rundir.identity import model_identity
from kdbench.rundir.student import inference_size
from kdbench.system.memory import is_out_of_memory
from kdbench.system.random import seeded
from kdbench.train.loss_output import check_output

MOST = 64
"""Largest number of images of the step; the batch of the recipe may be smaller."""
CERTAIN = (NameError, AttributeError, TypeError, KeyError, ImportError)
"""Errors of code whatever the device. On a GPU's run, others may come from code that runs on a GPU only."""


class ImagesNeededError(Exception):
    """The method reads the training images while it is bound, so that the step is not taken."""


def check_first_step(config: RunConfig, context: MethodContext) -> None:
    """Take a step of a method from outside of kdbench on the CPU, with random networks; once per process and case.

    Args:
        config: resolved config.
        context: what the run's method is built from.

    Raises:
        ConfigError: its code fails, or returns what the training cannot use.
    """
    cls, teacher = config.method.target, config.teacher.model if config.teacher else None
    if cls.__module__.startswith("kdbench."):
        return
    networks = [model_identity(model) for model in (config.student, teacher) if model]
    recipe = dataclasses.replace(config.recipe, lr=0)
    case = repr((id(cls), config.method.params, networks, recipe, context.data, len(context.labels)))
    if case in _passed:
        return
    context = dataclasses.replace(context, images=no_images_here, generator=torch.Generator().manual_seed(0))
    try:
        with seeded(0), kept_attributes(cls):
            take_step(config, cls(config.method.params, context), context)
    except ImagesNeededError:
        pass
    except RunError as error:
        raise ConfigError(str(error), code=error.code, key=error.key) from None
    except KdbenchError:
        raise
    except Exception as error:
        if is_out_of_memory(error) or (config.runtime.device != "cpu" and not isinstance(error, CERTAIN)):
            return
        raise ConfigError(
            f"method={config.method.name}: a first step of {cls.__name__} fails: "
            f"{described_at(error, cls)}{remedy(error, cls, context)}",
            code="no_method",
            key="method._target_",
        ) from error
    _passed.add(case)


_passed: set[str] = set()
"""Methods with networks of which a step was taken."""


def no_images_here() -> Iterator[Tensor]:
    """Refuse to yield training images.

    Raises:
        ImagesNeededError: always.
    """
    raise ImagesNeededError


@contextmanager
def kept_attributes(cls: type) -> Iterator[None]:
    """Restore what a user's class holds itself, such as counters, in place of its instances."""
    own: list[type] = [
        base for base in cls.__mro__ if not base.__module__.startswith(("kdbench.", "torch.", "builtins"))
    ]
    kinds = (bool, int, float, str, list, dict, set, tuple, Tensor, type(None))
    before: list[tuple[type, str, Any]] = [
        (base, name, copy.deepcopy(value))
        for base in own
        for name, value in vars(base).items()
        if isinstance(value, kinds) and not name.startswith("__")
    ]
    try:
        yield
    finally:
        for base, name, value in before:
            setattr(base, name, value)


def take_step(config: RunConfig, method: Method, context: MethodContext) -> None:
    """Bind a method to random networks, and take a step and a prediction."""
    requires, spec = method.requires, context.data
    student = build(config.student, spec, requires.student_stages)
    teachers = []
    if config.teacher:
        stages = requires.teacher_network_stages
        teachers = [build(config.teacher.model, spec, stages, "teacher", trained=False).eval()]
    method.bind_student(student)
    if teachers:
        method.bind_teachers(teachers)
    batch = random_batch(config, context)
    with torch.no_grad():
        outputs = [TeacherOutput(*network(batch.images)).select(requires) for network in teachers]
    own = student.train()(batch.images)
    returned = method.train()(own, outputs, batch, Progress(torch.zeros(()), context.epochs))
    check_output(returned, method, own.logits.shape).terms["total"].backward()
    method.finish_step(torch.zeros(()))
    if method.predicts():
        inference_size(student.eval(), method.eval(), context.student, spec)


def random_batch(config: RunConfig, context: MethodContext) -> Batch:
    """Return random images with labels and indices from the whole of the training set."""
    recipe, images, classes = config.recipe, len(context.labels), context.data.num_classes
    count = min(MOST, recipe.batch_size, images)
    rows = torch.linspace(0, images - 1, count).long()
    labels = context.labels[rows]
    soft = recipe.label_smoothing or recipe.mixup or recipe.cutmix
    return Batch(
        torch.randn(count, *context.data.input_shape),
        labels,
        context.indices[rows],
        torch.zeros(count, dtype=torch.int64),
        0.9 * F.one_hot(labels, classes).float() + 0.1 / classes if soft else None,
    )


def remedy(error: Exception, cls: type[Method], context: MethodContext) -> str:
    """Return a remedy for an output that a method reads without declaring it, else an empty text."""
    stage = error.args[0] if isinstance(error, KeyError) and error.args else None
    if any(stage in model.shapes for model in (context.student, *context.teachers)):
        return f"; where it reads this stage, declare it in requires = Requires(student_stages=({stage!r},), ...)"
    logits = getattr(getattr(cls, "requires", None), "teacher_logits", True)
    if "NoneType" in str(error) and not logits:
        return "; where it reads the teacher's logits, declare requires = Requires(teacher_logits=True)"
    return ""
