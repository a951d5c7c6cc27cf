"""Pure numpy functions of logits, probabilities and labels. No torch is imported."""

from kdbench.metrics.classification import accuracy, expected_calibration_error, nll, per_class_accuracy
from kdbench.metrics.fidelity import agreement, kl_divergence

__all__ = ["accuracy", "agreement", "expected_calibration_error", "kl_divergence", "nll", "per_class_accuracy"]
