"""Accuracy and calibration of a classifier."""

import numpy as np

from kdbench.metrics.probability import Floats, Ints, log_softmax


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


def nll(logits: Floats, labels: Ints) -> float:
    """Return the mean negative log-likelihood of the labels, in nats; 0 is perfect."""
    return float(-log_softmax(logits)[np.arange(len(labels)), labels].mean())


def expected_calibration_error(logits: Floats, labels: Ints, bins: int = 15) -> float:
    """Return the mean distance between confidence and accuracy over equal-width bins; 0 is calibrated, at most 1.

    Bins are (i / bins, (i + 1) / bins]; each counts by its share of the images.

    Source: Guo et al. 2017 (arXiv 1706.04599), equation 3.
    """
    log_probabilities = log_softmax(logits)
    confidence = np.exp(log_probabilities.max(axis=1))
    correct = log_probabilities.argmax(axis=1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(index, weights=correct - confidence, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))
