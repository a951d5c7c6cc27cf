"""How alike two classifiers are, whatever the labels say."""

import numpy as np

from kdbench.metrics.probability import Floats, log_softmax


def agreement(a: Floats, b: Floats) -> float:
    """Fraction of images in [0, 1] on which logits a and b, both [N, C], have the same largest entry; symmetric."""
    return float((a.argmax(axis=1) == b.argmax(axis=1)).mean())


def kl_divergence(teacher: Floats, student: Floats, temperature: float = 1.0) -> float:
    """Mean over images of KL(teacher || student) in nats, both [N, C] logits; 0 means the same probabilities.

    The temperature softens both; the result is not multiplied by its square.
    """
    log_p, log_q = log_softmax(teacher, temperature), log_softmax(student, temperature)
    return float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean())
