"""Changes of a method's loss terms, between the method and the step that takes them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from kdbench.data.batches import Batch
from kdbench.methods import LossOutput, Progress
from kdbench.train.learner import Learner

Factor = Callable[[Batch, Progress], Tensor | float]
"""Returns what every term of a step is multiplied by."""


def multiply_terms(learner: Learner, factor: Factor, names: tuple[str, ...] = ()) -> None:
    """Multiply a learner's loss terms in each of its steps.

    Args:
        learner: the learner.
        factor: called once per step with its batch and the progress.
        names: terms that are multiplied; all by default.
    """

    def multiply(_: object, given: tuple[Any, ...], returned: LossOutput) -> LossOutput:
        value = factor(given[2], given[3])
        terms = {name: term * value if name in names or not names else term for name, term in returned.terms.items()}
        return LossOutput(terms, returned.logits)

    learner.method.register_forward_hook(multiply)


def nan_at(*steps: int) -> Factor:
    """Return a factor that is not a number in the steps with these numbers, counted from 1 over all epochs."""
    count = 0

    def factor(_: Batch, __: Progress) -> float:
        nonlocal count
        count += 1
        return torch.nan if count in steps else 1.0

    return factor
