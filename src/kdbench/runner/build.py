"""Construction of a run's parts before it trains: data, batches, student and method, each with its own seed."""

import inspect
from dataclasses import dataclass

import numpy as np
import torch

from kdbench.config import RunConfig
from kdbench.data import Batches, Dataset, load
from kdbench.data.dataset import IMAGE_SHAPE, NUM_CLASSES
from kdbench.errors import ConfigError
from kdbench.methods.base import Method, Requires
from kdbench.models import ModelSummary, Network, build, summarize
from kdbench.system.device import place
from kdbench.system.guard import Guard
from kdbench.teachers.store import check_checkpoint
from kdbench.train.learner import Learner


@dataclass(frozen=True)
class Parts:
    """Data, batches, student and method of a run, on its device."""

    dataset: Dataset
    batches: Batches
    student: Network
    model_summary: ModelSummary
    """Summary of the student's architecture."""
    method: Method


def build_parts(config: RunConfig) -> Parts:
    """Load the data and build student and method.

    Args:
        config: resolved config.

    Raises:
        ConfigError: a part cannot be built.
    """
    dataset, model_summary, method = check_parts(config)
    # A seed of its own: students with the same seed start from the same weights, whatever the method draws.
    torch.manual_seed(derived_seed(config.init_seed, "student"))
    student = build(config.student, NUM_CLASSES, method.requires.student_stages)
    batches = Batches(
        dataset, config.recipe.batch_size, config.data_seed, config.data.augment, config.runtime.channels_last
    )
    return Parts(dataset, batches, place(student, config.runtime), model_summary, place(method, config.runtime))


def check_parts(config: RunConfig) -> tuple[Dataset, ModelSummary, Method]:
    """Load the data and build the method; networks are summarized without being built.

    Raises:
        ConfigError: a part cannot be built.
    """
    check_checkpoint(config)
    dataset = load(config.data, config.runtime.device)
    student = summarize(config.student, NUM_CLASSES, IMAGE_SHAPE, "student")
    teacher = summarize(config.teacher.model, NUM_CLASSES, IMAGE_SHAPE, "teacher") if config.teacher else None
    torch.manual_seed(derived_seed(config.init_seed, "method"))
    return dataset, student, build_method(config, student, teacher)


def build_method(config: RunConfig, student: ModelSummary, teacher: ModelSummary | None) -> Method:
    """Return the method of a run.

    Raises:
        ConfigError: a class from elsewhere does not take what methods are given, or does not say what it requires.
    """
    cls, given = config.method.target, (config.method.params, student.shapes, teacher.shapes if teacher else None)
    try:
        inspect.signature(cls).bind(*given)
    except TypeError as error:
        raise ConfigError(
            f"{config.method.path} cannot be built: its __init__ must take (config, student_shapes, teacher_shapes); "
            f"{error}",
            code="no_method",
            key="method._target_",
        ) from None
    method = cls(*given)
    if not isinstance(getattr(method, "requires", None), Requires):
        raise ConfigError(
            f"{config.method.path} does not say what it computes from; give it requires = Requires(...), of "
            "kdbench.methods",
            code="no_method",
            key="method._target_",
        )
    return method


def build_learner(config: RunConfig, parts: Parts, guard: Guard | None = None) -> Learner:
    """Return the learner of a run.

    Args:
        config: resolved config.
        parts: parts of the run.
        guard: context of the learner's code; None raises its exceptions.
    """
    seed = derived_seed(config.data_seed, "training")
    return Learner(parts.student, parts.method, config.recipe, config.runtime, seed, guard, config.title)


def derived_seed(seed: int, purpose: str) -> int:
    """Return a seed for one purpose, independent of those for others."""
    return int(np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1, np.uint32)[0])
