"""Accuracy and calibration of a classifier."""

import numpy as np

from kdbench.metrics.probability import Distribution, Floats, Ints, as_distribution, check_labels, log_probabilities


def accuracy(logits: Floats, labels: Ints) -> float:
    """Return the fraction of images in [0, 1] whose largest logit is the label's; of equal logits the first counts.

    Args:
        logits: [N, C].
        labels: [N] in [0, C).
    """
    return float((logits.argmax(axis=1) == labels).mean())


def per_class_accuracy(logits: Floats, labels: Ints) -> list[float | None]:
    """Return the accuracy on the images of each class, C numbers in [0, 1]; None for a class without images."""
    correct = logits.argmax(axis=1) == labels
    return [float(correct[labels == c].mean()) if (labels == c).any() else None for c in range(logits.shape[1])]


def nll(logits: Floats | Distribution, labels: Ints) -> float:
    """Return the mean negative log-likelihood of the labels, in nats; 0 is perfect."""
    return float(-log_probabilities(logits)[np.arange(len(labels)), labels].mean())


def brier(logits: Floats | Distribution, labels: Ints) -> float:
    """Return the Brier score: the mean squared distance between probabilities and the one-hot label.

        mean_N sum_C (p - y)^2,    p = softmax(logits)

    Args:
        logits: [N, C].
        labels: true classes [N], in [0, C).

    Returns:
        From 0, certain and right, to 2, certain and wrong; 1 - 1 / C for uniform probabilities.

    Raises:
        ValueError: logits are not finite floats [N, C], or labels are no classes [N].

    Source: Brier 1950, Monthly Weather Review 78.
    """
    model = as_distribution(logits)
    own = model.p[np.arange(len(model.p)), check_labels(labels, *model.p.shape)]
    return float((np.square(model.p).sum(axis=1) - 2 * own + 1).mean())


def expected_calibration_error(logits: Floats | Distribution, labels: Ints, bins: int = 15) -> float:
    """Return the mean distance between confidence and accuracy over equal-width bins; 0 is calibrated, at most 1.

    Bins are (i / bins, (i + 1) / bins]; each counts by its share of the images.

    Source: Guo et al. 2017 (arXiv 1706.04599), equation 3.
    """
    log_p = log_probabilities(logits)
    confidence = np.exp(log_p.max(axis=1))
    correct = log_p.argmax(axis=1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))
