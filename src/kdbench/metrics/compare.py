"""All metrics between the predictions of two models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from kdbench.metrics.classification import accuracy, brier, expected_calibration_error, nll
from kdbench.metrics.correctness import CorrectnessAgreement, agreement_by_correctness
from kdbench.metrics.features import linear_cka
from kdbench.metrics.fidelity import (
    Model,
    activation_distance,
    chance_agreement,
    js_divergence,
    kl_divergence,
    prediction_disagreement,
    rank_disagreement,
)
from kdbench.metrics.probability import Distribution, Ints, as_pair, check_labels

DISTANCES: Mapping[str, Callable[[Model, Model], float]] = {
    "activation_distance": activation_distance,
    "rank_disagreement": rank_disagreement,
    "prediction_disagreement": prediction_disagreement,
    "js_divergence": js_divergence,
}
"""Metrics of the reference study (arXiv 2510.12615): 0 for identical models, larger for less similar ones."""


@dataclass(frozen=True)
class Quality:
    """Accuracy and calibration of one model."""

    accuracy: float
    nll: float
    ece: float
    brier: float


@dataclass(frozen=True)
class Comparison:
    """All metrics between two models a and b on the same images."""

    activation_distance: float
    rank_disagreement: float
    prediction_disagreement: float
    js_divergence: float
    kl_a_b: float
    """KL(a || b), nats."""
    kl_b_a: float
    """KL(b || a), nats."""
    agreement: float
    chance_agreement: float
    """Agreement of independent predictions that are as frequent."""
    logits_cka: float | None
    """Linear CKA of the logits; None where those of one model do not vary over images."""
    by_correctness: CorrectnessAgreement
    """Agreement of b with a, where a is right and where it is wrong."""
    a: Quality
    b: Quality


def compare_logits(logits_a: Model, logits_b: Model, labels: Ints) -> Comparison:
    """Return all metrics between two models.

    Args:
        logits_a: [N, C]; of a student and its teacher, those of the teacher.
        logits_b: [N, C], for the same images in the same order.
        labels: true classes [N], in [0, C).

    Raises:
        ValueError: logits are not finite floats [N, C] or of different shapes, or labels are no classes [N].
    """
    a, b = as_pair(logits_a, logits_b)
    labels = check_labels(labels, *a.logits.shape)
    disagreement = prediction_disagreement(a, b)
    return Comparison(
        **{name: distance(a, b) for name, distance in DISTANCES.items()},
        kl_a_b=kl_divergence(a, b),
        kl_b_a=kl_divergence(b, a),
        agreement=1 - disagreement,
        chance_agreement=chance_agreement(a, b),
        logits_cka=cka_or_none(a, b),
        by_correctness=agreement_by_correctness(b, a, labels),
        a=quality_of(a, labels),
        b=quality_of(b, labels),
    )


def quality_of(model: Distribution, labels: Ints) -> Quality:
    """Return accuracy and calibration of a model."""
    return Quality(
        accuracy=accuracy(model.logits, labels),
        nll=nll(model, labels),
        ece=expected_calibration_error(model, labels),
        brier=brier(model, labels),
    )


def cka_or_none(a: Distribution, b: Distribution) -> float | None:
    """Return the linear CKA of the logits, or None where it is not defined."""
    try:
        return linear_cka(a.logits, b.logits)
    except ValueError:
        return None
