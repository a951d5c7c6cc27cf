"""What a run is made of before it trains: data, batches, student and method, each from a seed of its own."""

from dataclasses import dataclass

import numpy as np
import torch

from kdbench import teachers
from kdbench.config import RunConfig
from kdbench.data import Batches, Dataset, load
from kdbench.data.dataset import IMAGE_SHAPE, NUM_CLASSES
from kdbench.methods.method import Method
from kdbench.models import Description, Network, build, describe
from kdbench.runtime import placed


@dataclass(frozen=True)
class Parts:
    """Built before anything is written."""

    dataset: Dataset
    batches: Batches
    student: Network
    description: Description
    method: Method


def prepare(config: RunConfig) -> Parts:
    """Load the data and build student and method.

    Raises:
        ConfigError: for whatever of it cannot be.
    """
    dataset, description, method = check_parts(config)
    # Apart from the method's: students with the same seed start from the same weights, whatever they learn by.
    torch.manual_seed(derived_seed(config.init_seed, "student"))
    student = build(config.student, NUM_CLASSES, method.needs.student_stages)
    batches = Batches(
        dataset, config.recipe.batch_size, config.data_seed, config.data.augment, config.runtime.channels_last
    )
    return Parts(dataset, batches, placed(student, config.runtime), description, placed(method, config.runtime))


def check_parts(config: RunConfig) -> tuple[Dataset, Description, Method]:
    """What a run needs, but for its networks, which are described without being built."""
    teachers.check_checkpoint(config)
    dataset = load(config.data, config.runtime.device)
    description = describe(config.student, NUM_CLASSES, IMAGE_SHAPE, "student")
    teacher = config.teacher and describe(config.teacher.model, NUM_CLASSES, IMAGE_SHAPE, "teacher")
    torch.manual_seed(derived_seed(config.init_seed, "method"))
    method = config.method.target(config.method.params, description.shapes, teacher.shapes if teacher else None)
    return dataset, description, method


def derived_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose, independent of those for others."""
    return int(np.random.SeedSequence([seed, *purpose.encode()]).generate_state(1, np.uint32)[0])
