"""Class probabilities from logits, in float64."""

from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]

SMALLEST = float(np.nextafter(0, 1))
"""Smallest number above 0, the probability that stands for 0 where a logarithm is needed."""


def log_softmax(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return log probabilities [N, C] of logits [N, C] at a temperature above 0, by natural logarithm."""
    scaled: NDArray[np.float64] = logits.astype(np.float64)  # a copy, and in place from here on: memory is the cost
    scaled /= temperature
    scaled -= scaled.max(axis=1, keepdims=True)
    scaled -= np.log(np.exp(scaled).sum(axis=1, keepdims=True))
    return scaled


def logits_of(probabilities: Floats) -> NDArray[np.float64]:
    """Return logits [N, C] whose softmax is the given probabilities, for the functions that take logits.

    These are the logarithms; of 0 that of the smallest number above 0, 4.9e-324.

    Args:
        probabilities: [N, C], from 0 to 1, with rows that sum to 1 up to the rounding of their format.

    Raises:
        ValueError: they are no such numbers.
    """
    p = np.asarray(probabilities)
    if p.ndim != 2 or not np.issubdtype(p.dtype, np.floating):
        raise ValueError(f"probabilities are {p.dtype} {list(p.shape)}; they must be floats [N, C]")
    sums = p.sum(axis=1, dtype=np.float64)
    tolerance = 4 * p.shape[1] * float(np.finfo(p.dtype).eps)
    if not (p >= 0).all() or not (np.abs(sums - 1) <= tolerance).all():
        raise ValueError("probabilities must be at least 0, and each row must sum to 1")
    return np.log(np.maximum(p.astype(np.float64), SMALLEST))


class Distribution:
    """Predictions of a model on N images, with what several metrics need, each computed once.

    Args:
        logits: [N, C] float, finite, of any size; two classes or more, one image or more.

    Raises:
        ValueError: they are no such numbers.
    """

    def __init__(self, logits: Floats) -> None:
        logits = np.asarray(logits)
        if logits.ndim != 2 or not np.issubdtype(logits.dtype, np.floating):
            raise ValueError(f"logits are {logits.dtype} {list(logits.shape)}; they must be floats [N, C]")
        if logits.shape[0] < 1 or logits.shape[1] < 2:
            raise ValueError(f"logits are {list(logits.shape)}; they must be of one image and two classes at least")
        if not np.isfinite(logits).all():
            raise ValueError(f"{int((~np.isfinite(logits)).sum())} of {logits.size} logits are not finite")
        self.logits = logits

    @cached_property
    def log_p(self) -> NDArray[np.float64]:
        """Log probabilities [N, C]."""
        return log_softmax(self.logits)

    @cached_property
    def p(self) -> NDArray[np.float64]:
        """Probabilities [N, C]."""
        probabilities: NDArray[np.float64] = np.exp(self.log_p)
        return probabilities

    @cached_property
    def entropy(self) -> NDArray[np.float64]:
        """Terms -p log p of the entropy, [N, C], nats."""
        return entropy_terms(self.p)

    @cached_property
    def predicted(self) -> NDArray[np.intp]:
        """Classes with the largest logit, [N]; of equal logits the one with the smaller number."""
        return self.logits.argmax(axis=1)

    @cached_property
    def order(self) -> NDArray[np.intp]:
        """Classes from the largest logit to the smallest, [N, C]; of equal logits the smaller number comes first.

        Logits and not probabilities are sorted: rounding makes small probabilities equal.
        """
        negative = -self.logits.astype(np.result_type(self.logits.dtype, np.float32))
        return sorted_stably(negative)


def log_probabilities(model: Floats | Distribution, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return log probabilities [N, C] of logits, or those that a distribution keeps; not to be changed."""
    if isinstance(model, Distribution):
        return model.log_p if temperature == 1 else log_softmax(model.logits, temperature)
    return log_softmax(model, temperature)


def entropy_terms(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return -p log p of probabilities [N, C], 0 for 0."""
    terms = np.maximum(p, SMALLEST)
    np.log(terms, out=terms)
    terms *= p
    return np.negative(terms, out=terms)


def sorted_stably(values: Floats) -> NDArray[np.intp]:
    """Return `values.argsort(axis=1, kind="stable")` [N, C]; faster, because only rows with ties need a stable sort."""
    order = values.argsort(axis=1)
    ordered = np.take_along_axis(values, order, axis=1)
    tied = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    if tied.any():
        order[tied] = values[tied].argsort(axis=1, kind="stable")
    return order


def as_distribution(model: Floats | Distribution) -> Distribution:
    """Return predictions with what metrics need; logits are checked."""
    return model if isinstance(model, Distribution) else Distribution(model)


def as_pair(a: Floats | Distribution, b: Floats | Distribution) -> tuple[Distribution, Distribution]:
    """Return the predictions of two models on the same images.

    Raises:
        ValueError: they have different numbers of images or classes.
    """
    first, second = as_distribution(a), as_distribution(b)
    if first.logits.shape != second.logits.shape:
        shapes = f"{list(first.logits.shape)} and {list(second.logits.shape)}"
        raise ValueError(f"logits are {shapes}; both must be of the same images [N] and classes [C]")
    return first, second


def check_labels(labels: Any, images: int, classes: int) -> Ints:
    """Return labels [N] as an array.

    Raises:
        ValueError: they are no integers in [0, C), one for each image.
    """
    array = np.asarray(labels)
    if array.shape != (images,) or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"labels are {array.dtype} {list(array.shape)}; they must be integers [{images}]")
    if images and not (array.min() >= 0 and array.max() < classes):
        raise ValueError(f"labels are from {array.min()} to {array.max()}; they must be from 0 to {classes - 1}")
    return array
