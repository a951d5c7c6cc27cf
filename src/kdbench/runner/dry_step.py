"""A first step of a method of one's own on a few random images, so that its mistakes show before anything trains."""

import dataclasses
import inspect
from collections.abc import Iterator

import torch
from torch import Tensor

from kdbench.config import RunConfig
from kdbench.data.batches import Batch
from kdbench.errors import ConfigError, KdbenchError, RunError, described_at
from kdbench.methods.base import Method, MethodContext, Progress, TeacherOutput
from kdbench.models import build
from kdbench.rundir.identity import model_identity
from kdbench.system.memory import is_out_of_memory
from kdbench.system.random import host_seeded, seeded
from kdbench.train.learner import check_output

IMAGES = 4
"""Images of the step: the losses of a batch need several."""


class ImagesNeededError(Exception):
    """The method reads the training images while it is bound, which is left to the run itself."""


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
    case = repr((inspect.getmodule(cls), cls, config.method.params, networks, context.data, len(context.labels)))
    if case in _passed:
        return
    context = dataclasses.replace(context, images=no_images_here, generator=torch.Generator().manual_seed(0))
    try:
        with seeded(0), host_seeded(0):
            take_step(config, cls(config.method.params, context), context)
    except ImagesNeededError:
        pass
    except RunError as error:
        raise ConfigError(str(error), code=error.code, key=error.key) from None
    except KdbenchError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            return
        raise ConfigError(
            f"method={config.method.name}: a first step of {cls.__name__} on {IMAGES} images fails: "
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
    rows = torch.arange(IMAGES) % len(context.labels)
    images = torch.randn(IMAGES, *spec.input_shape)
    batch = Batch(images, context.labels[rows], context.indices[rows], torch.zeros(IMAGES, dtype=torch.int64))
    with torch.no_grad():
        outputs = [TeacherOutput(*network(images)).select(requires) for network in teachers]
    own = student.train()(images)
    returned = method.train()(own, outputs, batch, Progress(torch.zeros(()), context.epochs))
    check_output(returned, method, own.logits.shape).terms["total"].backward()
    method.finish_step(torch.zeros(()))
    with torch.no_grad():
        method.eval().predict(student.eval()(images))


def remedy(error: Exception, cls: type[Method], context: MethodContext) -> str:
    """Return a remedy for an output that a method reads without declaring it, else an empty text."""
    stage = error.args[0] if isinstance(error, KeyError) and error.args else None
    if any(stage in model.shapes for model in (context.student, *context.teachers)):
        return f"; where it reads this stage, declare it in requires = Requires(student_stages=({stage!r},), ...)"
    logits = getattr(getattr(cls, "requires", None), "teacher_logits", True)
    if "NoneType" in str(error) and not logits:
        return "; where it reads the teacher's logits, declare requires = Requires(teacher_logits=True)"
    return ""
