import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdbench.errors import ConfigError
from kdbench.methods import LabelSmoothing, smoothed_cross_entropy
from tests.methods.built import build_method
from tests.methods.conformance import LossTests


class TestSmoothedCrossEntropy(LossTests):
    """The second side are logits whose softmax is the targets."""

    method = LabelSmoothing
    settings = ({"smoothing": 0.1}, {"smoothing": 0.7})

    def inputs(self, draw):
        return [3 * draw(4, 5)], [draw(4, 5)]

    def loss(self, student, teacher, smoothing):
        given = teacher[0] if teacher[0].dtype == torch.float64 else teacher[0].float()
        return smoothed_cross_entropy(student[0], F.softmax(given, dim=1), smoothing)

    def reference(self, student, teacher, smoothing):
        total = 0.0
        for z, raw in zip(student[0], teacher[0], strict=True):
            targets = np.exp(raw) / np.exp(raw).sum()
            log_total = math.log(sum(math.exp(value) for value in z))
            for c in range(len(z)):
                total -= ((1 - smoothing) * targets[c] + smoothing / len(z)) * (z[c] - log_total)
        return total / len(student[0])


def test_case_by_hand():
    # softmax (3/4, 1/4), label 0, smoothing 0.2: targets (0.9, 0.1).
    logits = torch.tensor([[math.log(3.0), 0.0]])
    expected = -0.9 * math.log(0.75) - 0.1 * math.log(0.25)
    assert float(smoothed_cross_entropy(logits, torch.tensor([0]), 0.2)) == pytest.approx(expected, rel=1e-6)


def test_integer_labels_their_one_hot_form_and_torch_agree():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(8, 10, generator=generator), torch.randint(10, (8,), generator=generator)
    expected = float(F.cross_entropy(logits, labels, label_smoothing=0.1))
    assert float(smoothed_cross_entropy(logits, labels, 0.1)) == pytest.approx(expected, rel=1e-6)
    assert float(smoothed_cross_entropy(logits, F.one_hot(labels, 10).float(), 0.1)) == pytest.approx(
        expected, rel=1e-6
    )


def test_yaml_has_the_documented_defaults():
    built = build_method("label_smoothing")
    assert built.config.method.params.smoothing == 0.1
    assert built.config.teacher is None
    assert (built.method.role, built.method.needs_teacher, built.method.soft_labels) == ("control", False, True)


@pytest.mark.parametrize("soft", [False, True])
def test_total_is_smoothed_and_ce_is_not(soft):
    built = build_method("label_smoothing", "method.smoothing=0.3")
    if soft:  # as with a recipe that smooths and mixes
        generator = torch.Generator().manual_seed(0)
        targets = torch.randn(16, 10, generator=generator).softmax(1)
        built.batch = built.batch._replace(soft_targets=targets)
    targets = F.one_hot(built.batch.labels, 10).float() if built.batch.soft_targets is None else targets
    terms, logits = built.step()
    log_p = F.log_softmax(logits.detach(), 1)
    assert float(terms["ce"].detach()) == pytest.approx(float(-(targets * log_p).sum(1).mean()), rel=1e-5)
    expected = float(-((0.7 * targets + 0.03) * log_p).sum(1).mean())
    assert float(terms["total"].detach()) == pytest.approx(expected, rel=1e-5)
    terms["total"].backward()
    assert all(p.grad is not None for p in built.student.parameters())


@pytest.mark.parametrize("smoothing", [0, 1, -0.1, 1.5, "nan"])
def test_smoothing_outside_of_0_to_1_is_an_error(smoothing):
    with pytest.raises(ConfigError) as error:
        build_method("label_smoothing", f"method.smoothing={smoothing}")
    assert (error.value.code, error.value.key) == ("out_of_range", "method.smoothing")
