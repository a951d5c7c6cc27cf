"""Pure numpy functions of logits, probabilities and labels. No torch is imported.

Logits are floats [N, C] of any size, labels integers [N]. `logits_of` turns probabilities into logits for them.
"""

from kdbench.metrics.classification import accuracy, brier, expected_calibration_error, nll, per_class_accuracy
from kdbench.metrics.compare import DISTANCES, Comparison, Quality, compare_logits
from kdbench.metrics.correctness import (
    CorrectnessAgreement,
    agreement_by_correctness,
    headroom_gain,
    shared_mistakes_by_class,
)
from kdbench.metrics.features import linear_cka
from kdbench.metrics.fidelity import (
    activation_distance,
    agreement,
    agreement_matrix,
    chance_agreement,
    js_divergence,
    kl_divergence,
    prediction_disagreement,
    rank_disagreement,
)
from kdbench.metrics.probability import Distribution, logits_of

__all__ = [
    "DISTANCES",
    "Comparison",
    "CorrectnessAgreement",
    "Distribution",
    "Quality",
    "accuracy",
    "activation_distance",
    "agreement",
    "agreement_by_correctness",
    "agreement_matrix",
    "brier",
    "chance_agreement",
    "compare_logits",
    "expected_calibration_error",
    "headroom_gain",
    "js_divergence",
    "kl_divergence",
    "linear_cka",
    "logits_of",
    "nll",
    "per_class_accuracy",
    "prediction_disagreement",
    "rank_disagreement",
    "shared_mistakes_by_class",
]
