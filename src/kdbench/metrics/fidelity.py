"""Similarity of two classifiers' predictions on the same images, independent of the labels.

Every function takes the logits [N, C] of two models, of any float precision and size, or `Distribution`s of them,
which keep what several metrics share. The reference study (arXiv 2510.12615) names the first four.
"""

import numpy as np
from numpy.typing import NDArray

from kdbench.metrics.probability import Distribution, Floats, Ints, as_pair, entropy_terms, log_probabilities

Model = Floats | Distribution


def activation_distance(a: Model, b: Model) -> float:
    """Return the mean Euclidean distance between the probabilities of two models.

        mean_N sqrt(sum_C (p_a - p_b)^2),    p = softmax(logits)

    Args:
        a: logits [N, C].
        b: logits [N, C] of another model for the same images; the order of the two does not matter.

    Returns:
        From 0, equal probabilities, to sqrt(2), certain of different classes.

    Raises:
        ValueError: logits are not finite floats [N, C], or of different shapes.

    Source: arXiv 2510.12615.
    """
    first, second = as_pair(a, b)
    squares = first.p - second.p
    np.square(squares, out=squares)
    return float(np.sqrt(squares.sum(axis=1)).mean())


def rank_disagreement(a: Model, b: Model) -> float:
    """Return the mean share of places at which the classes differ when both models order them by probability.

    Classes are ordered by their logits, which have no ties that only the rounding of probabilities makes. Of classes
    with equal logits the one with the smaller number comes first, as in the predicted class.

    Args:
        a: logits [N, C].
        b: logits [N, C] of another model for the same images; the order of the two does not matter.

    Returns:
        From 0, the same order for every image, to 1, no class at the same place.

    Raises:
        ValueError: logits are not finite floats [N, C], or of different shapes.

    Source: arXiv 2510.12615.
    """
    first, second = as_pair(a, b)
    return float((first.order != second.order).mean())


def prediction_disagreement(a: Model, b: Model) -> float:
    """Return the share of images for which two models predict different classes: 1 - `agreement`.

    Args:
        a: logits [N, C]; of equal largest logits the class with the smaller number is predicted.
        b: logits [N, C] of another model for the same images; the order of the two does not matter.

    Returns:
        From 0, the same class for every image, to 1.

    Raises:
        ValueError: logits are not finite floats [N, C], or of different shapes.

    Source: arXiv 2510.12615.
    """
    first, second = as_pair(a, b)
    return float((first.predicted != second.predicted).mean())


def js_divergence(a: Model, b: Model) -> float:
    """Return the mean Jensen-Shannon divergence between the probabilities of two models, in nats.

        mean_N [KL(p_a || m) + KL(p_b || m)] / 2,    m = (p_a + p_b) / 2

    computed as the entropy of m minus the mean entropy of both.

    Args:
        a: logits [N, C].
        b: logits [N, C] of another model for the same images; the order of the two does not matter.

    Returns:
        From 0, equal probabilities, to log 2 = 0.693, certain of different classes.

    Raises:
        ValueError: logits are not finite floats [N, C], or of different shapes.

    Source: Lin 1991, IEEE Transactions on Information Theory 37.
    """
    first, second = as_pair(a, b)
    mixed = first.p + second.p
    mixed /= 2
    terms = entropy_terms(mixed)
    terms -= first.entropy / 2
    terms -= second.entropy / 2
    per_image = np.clip(terms.sum(axis=1), 0.0, np.log(2))  # rounding alone leaves this range
    return float(per_image.mean())


def agreement(a: Model, b: Model) -> float:
    """Return the fraction of images in [0, 1] on which logits a and b, both [N, C], have the same largest entry."""
    first, second = (model.predicted if isinstance(model, Distribution) else model.argmax(axis=1) for model in (a, b))
    return float((first == second).mean())


def kl_divergence(teacher: Model, student: Model, temperature: float = 1.0) -> float:
    """Return the mean KL(teacher || student) over images, in nats, of logits [N, C]; 0 means equal probabilities.

    The temperature softens both; the result is not multiplied by its square.
    """
    log_p, log_q = log_probabilities(teacher, temperature), log_probabilities(student, temperature)
    terms = log_p - log_q
    terms *= np.exp(log_p)
    return float(terms.sum(axis=1).mean())


def chance_agreement(a: Model, b: Model) -> float:
    """Return the agreement that two models would have if their predictions were independent of each other.

        sum_C share_a(c) share_b(c),    share(c) = share of images for which class c is predicted

    Args:
        a: logits [N, C].
        b: logits [N, C] of another model for the same images; the order of the two does not matter.

    Returns:
        In [0, 1]; 1 / C if one of them predicts all classes equally often.

    Raises:
        ValueError: logits are not finite floats [N, C], or of different shapes.

    Source: Cohen 1960, Educational and Psychological Measurement 20.
    """
    first, second = as_pair(a, b)
    images, classes = first.logits.shape
    counts = [np.bincount(model.predicted, minlength=classes) / images for model in (first, second)]
    return float(counts[0] @ counts[1])


def agreement_matrix(predicted: Ints) -> NDArray[np.float64]:
    """Return the agreement of every model with every other.

    Args:
        predicted: predicted classes [M, N] of M models for the same N images.

    Returns:
        Shares of images [M, M], symmetric, with 1 on the diagonal.

    Raises:
        ValueError: the classes are not integers [M, N], or there are no images.
    """
    classes = np.ascontiguousarray(predicted)
    if classes.ndim != 2 or not np.issubdtype(classes.dtype, np.integer) or not classes.shape[1]:
        raise ValueError(f"predicted classes are {classes.dtype} {list(classes.shape)}; they must be integers [M, N]")
    matrix = np.eye(len(classes))
    for row in range(1, len(classes)):
        matrix[row, :row] = matrix[:row, row] = (classes[:row] == classes[row]).mean(axis=1)
    return matrix
