"""Similarity of two classifiers' predictions, independent of the labels."""

import numpy as np

from kdbench.metrics.probability import Floats, log_softmax


def agreement(a: Floats, b: Floats) -> float:
    """Return the fraction of images in [0, 1] on which logits a and b, both [N, C], have the same largest entry."""
    return float((a.argmax(axis=1) == b.argmax(axis=1)).mean())


def kl_divergence(teacher: Floats, student: Floats, temperature: float = 1.0) -> float:
    """Return the mean KL(teacher || student) over images, in nats, of logits [N, C]; 0 means equal probabilities.

    The temperature softens both; the result is not multiplied by its square.
    """
    log_p, log_q = log_softmax(teacher, temperature), log_softmax(student, temperature)
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())
