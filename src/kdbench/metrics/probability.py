"""Probabilities from logits, in float64."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]


def log_softmax(logits: Floats, temperature: float = 1.0) -> NDArray[np.float64]:
    """Return log probabilities [N, C] of logits [N, C] at a temperature above 0, by natural logarithm."""
    scaled = logits.astype(np.float64) / temperature
    shifted = scaled - scaled.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
