import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdbench.methods import logit_kd
from kdbench.methods.logit import LogitDistillation, StandardizedLogitDistillation
from tests.methods.built import build_method
from tests.methods.conformance import LossTests


class TestLogitKD(LossTests):
    """Section 2 of Hinton et al.: T^2 times the mean over the batch of KL(p_t || p_s)."""

    method = LogitDistillation
    settings = ({"temperature": 0.5}, {"temperature": 1.0}, {"temperature": 4.0}, {"temperature": 20.0})
    half_tolerance = 2e-4  # at a high temperature the KL is small beside the rounding of its terms

    def inputs(self, draw):
        return [5 * draw(6, 10)], [5 * draw(6, 10)]

    def loss(self, student, teacher, temperature):
        return logit_kd(*student, *teacher, temperature)

    def reference(self, student, teacher, temperature):
        def softmax(z):
            e = np.exp(z / temperature - (z / temperature).max(1, keepdims=True))
            return e / e.sum(1, keepdims=True)

        p_s, p_t = softmax(student[0]), softmax(teacher[0])
        return temperature**2 * float((p_t * np.log(p_t / p_s)).sum(1).mean())


class TestStandardizedLogitKD(TestLogitKD):
    method = StandardizedLogitDistillation
    settings = ({"temperature": 1.0}, {"temperature": 2.0})

    def loss(self, student, teacher, temperature):
        return logit_kd(*student, *teacher, temperature, standardize=True)

    def reference(self, student, teacher, temperature):
        sides = [[(z - z.mean(1, keepdims=True)) / (1e-7 + z.std(1, ddof=1, keepdims=True)) for z in side]
                 for side in (student, teacher)]  # fmt: skip
        return super().reference(*sides, temperature)


def test_case_by_hand():
    # p_t = (3/4, 1/4), p_s = (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2)
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(logit_kd(student, teacher, temperature=1.0)) == pytest.approx(expected, rel=1e-6)


def test_case_by_hand_of_standardised_logits():
    # Unbiased: (1, 0, -1) stays, with standard deviation 1; (4, 2, 0) becomes the same, (0, 2, 4) its opposite.
    # p = (e, 1, 1 / e) / Z, and KL to the opposite is sum p * (2, 0, -2)
    teacher, same, opposite = (torch.tensor([z]) for z in ([1.0, 0.0, -1.0], [4.0, 2.0, 0.0], [0.0, 2.0, 4.0]))
    expected = 2 * (math.e - 1 / math.e) / (math.e + 1 + 1 / math.e)
    assert float(logit_kd(same, teacher, 1.0, standardize=True)) == pytest.approx(0, abs=1e-6)
    assert float(logit_kd(opposite, teacher, 1.0, standardize=True)) == pytest.approx(expected, rel=1e-5)


def test_the_mean_is_over_the_batch_not_over_classes():
    student, teacher = torch.randn(1, 10), torch.randn(1, 10)
    once, thrice = (logit_kd(student.repeat(n, 1), teacher.repeat(n, 1), 4.0) for n in (1, 3))
    assert float(once) == pytest.approx(float(thrice), rel=1e-5)


def test_it_is_not_negative_and_not_symmetric():
    a, b = torch.randn(32, 10, dtype=torch.float64), torch.randn(32, 10, dtype=torch.float64) * 3
    assert float(logit_kd(a, b, 2.0)) > 0
    assert float(logit_kd(a, b, 2.0)) != pytest.approx(float(logit_kd(b, a, 2.0)), rel=1e-3)


def test_the_gradient_is_temperature_times_difference_of_probabilities():
    student, teacher = torch.randn(4, 10, dtype=torch.float64, requires_grad=True), torch.randn(4, 10).double()
    logit_kd(student, teacher, 4.0).backward()
    expected = 4.0 * (torch.softmax(student.detach() / 4, 1) - torch.softmax(teacher / 4, 1)) / 4
    assert torch.allclose(student.grad, expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_extreme_logits_stay_finite_in_half_precision(dtype):
    student, teacher = torch.tensor([[60.0, -60.0, 0.0]], dtype=dtype), torch.tensor([[-60.0, 60.0, 0.0]], dtype=dtype)
    assert float(logit_kd(student, teacher, 1.0)) == pytest.approx(120.0)


def test_standardised_rows_of_equal_logits_are_finite():
    student = torch.full((2, 5), 3.0, requires_grad=True)
    loss = logit_kd(student, torch.randn(2, 5), 2.0, standardize=True)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_the_defaults_are_those_of_the_papers():
    weights = {"alpha": 0.5, "ce_weight": None, "kd_weight": None}
    assert dataclasses.asdict(build_method("logit").method.config) == {**weights, "temperature": 4.0}
    standardized = dataclasses.asdict(build_method("logit_std").method.config)
    assert standardized == {"ce_weight": 0.1, "kd_weight": 9.0, "temperature": 2.0}


@pytest.mark.parametrize(
    ("name", "keys", "ce_weight", "kd_weight", "standardize"),
    [
        ("logit", ["method.alpha=0.3"], 0.7, 0.3, False),
        ("logit", ["method.alpha=null", "method.ce_weight=0.5", "method.kd_weight=3"], 0.5, 3, False),
        ("logit_std", ["method.ce_weight=0.5", "method.kd_weight=3"], 0.5, 3, True),
    ],
)
def test_the_total_is_the_weighted_sum_of_its_terms(name, keys, ce_weight, kd_weight, standardize):
    networks = ["student=resnet8", "teacher=resnet18", "method.temperature=3"]
    built = build_method(name, *networks, *keys, batch_size=4)
    output = built.step()
    terms = {name: float(term.detach()) for name, term in output.terms.items()}
    logits = output.logits.detach()
    assert set(terms) == {"total", "ce", "kd"}
    expected = logit_kd(logits, built.teacher(built.batch).get_logits(), 3.0, standardize)
    assert terms["kd"] == pytest.approx(float(expected), rel=1e-5)
    assert terms["ce"] == pytest.approx(float(F.cross_entropy(logits, built.batch.labels)), rel=1e-5)
    assert terms["total"] == pytest.approx(ce_weight * terms["ce"] + kd_weight * terms["kd"], rel=1e-5)


@pytest.mark.parametrize("name", ["logit", "logit_std"])
def test_the_gradient_reaches_every_parameter_of_the_student(name):
    built = build_method(name)
    built.step().terms["total"].backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in built.student.parameters())
    assert all(p.grad is None for p in built.teacher.network.parameters())
