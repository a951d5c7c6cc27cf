import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdbench.errors import ConfigError
from kdbench.methods import logit_kd, transformed_teacher_matching
from kdbench.methods.ttm import TransformedTeacherMatching, WeightedTransformedTeacherMatching
from tests.methods.built import build_method
from tests.methods.conformance import LossTests


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestTransformedTeacherMatching(LossTests):
    method = TransformedTeacherMatching
    weighted = False
    settings = ({"exponent": 0.1}, {"exponent": 0.2}, {"exponent": 1.0}, {"exponent": 3.0})

    def inputs(self, draw):
        return [2 * draw(6, 7)], [3 * draw(6, 7)]

    def loss(self, student, teacher, exponent):
        return transformed_teacher_matching(*student, *teacher, exponent, self.weighted)

    def reference(self, student, teacher, exponent):
        total = 0.0
        for z_s, z_t in zip(student[0], teacher[0], strict=True):
            p_s, p_t = np.exp(z_s) / np.exp(z_s).sum(), np.exp(z_t) / np.exp(z_t).sum()
            powers = [p**exponent for p in p_t]
            q = [power / sum(powers) for power in powers]
            divergence = sum(a * (math.log(a) - math.log(b)) for a, b in zip(q, p_s, strict=True))
            total += sum(powers) * divergence if self.weighted else divergence
        return total / len(student[0])


class TestWeightedTransformedTeacherMatching(TestTransformedTeacherMatching):
    method = WeightedTransformedTeacherMatching
    weighted = True


def test_case_by_hand():
    # p_t = (9/10, 1/10), g = 1/2: powers 3 / sqrt(10) and 1 / sqrt(10), Z = 4 / sqrt(10), q = (3/4, 1/4).
    # p_s = (1/2, 1/2): KL = 3/4 ln(3/2) + 1/4 ln(1/2).
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(9.0), 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(transformed_teacher_matching(student, teacher, 0.5)) == pytest.approx(expected, rel=1e-6)
    weighted = transformed_teacher_matching(student, teacher, 0.5, weighted=True)
    assert float(weighted) == pytest.approx(4 / math.sqrt(10) * expected, rel=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
def test_at_exponent_one_it_is_logit_kd_at_temperature_one(weighted):
    student, teacher = draw(8, 10), 3 * draw(8, 10, seed=1)
    measured = transformed_teacher_matching(student, teacher, 1.0, weighted)
    assert float(measured) == pytest.approx(float(logit_kd(student, teacher, 1.0)), rel=1e-12)


def test_the_teacher_has_a_temperature_and_the_student_none():
    student, teacher = draw(8, 10), 3 * draw(8, 10, seed=1)
    measured = transformed_teacher_matching(student, teacher, 0.25)
    assert float(measured) == pytest.approx(float(logit_kd(student, teacher / 4, 1.0)), rel=1e-12)
    assert float(transformed_teacher_matching(teacher / 4, teacher, 0.25)) == pytest.approx(0, abs=1e-13)


def test_weights_are_those_of_each_image():
    student, teacher = draw(4, 10), draw(4, 10, seed=1) * torch.tensor([[0.1], [1.0], [4.0], [9.0]])
    each = [float(transformed_teacher_matching(student[i : i + 1], teacher[i : i + 1], 0.2)) for i in range(4)]
    z = (torch.softmax(teacher, 1) ** 0.2).sum(1).tolist()
    assert z == sorted(z, reverse=True), "the surer the teacher, the smaller its weight"
    measured = transformed_teacher_matching(student, teacher, 0.2, weighted=True)
    assert float(measured) == pytest.approx(sum(a * b for a, b in zip(z, each, strict=True)) / 4, rel=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_extreme_logits_stay_finite_in_half_precision(dtype, weighted):
    # The teacher's probability of class 1 is e^-120; q = (1, e^-12, e^-6) / Z, and the student's is (e^-120, 1, e^-60)
    student, teacher = torch.tensor([[-60.0, 60.0, 0.0]], dtype=dtype), torch.tensor([[60.0, -60.0, 0.0]], dtype=dtype)
    measured = transformed_teacher_matching(student, teacher, 0.1, weighted)
    q = np.array([1, math.exp(-12), math.exp(-6)])
    expected = sum(q / q.sum() * (np.log(q / q.sum()) - [-120, 0, -60])) * (q.sum() if weighted else 1)
    assert float(measured) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("name", "kd_weight", "exponent"), [("ttm", 45.0, 0.1), ("wttm", 4.0, 0.2)])
def test_the_defaults_are_those_of_the_paper(name, kd_weight, exponent):
    built = build_method(name)
    assert dataclasses.asdict(built.method.config) == {"ce_weight": 1.0, "kd_weight": kd_weight, "exponent": exponent}


@pytest.mark.parametrize(("name", "weighted"), [("ttm", False), ("wttm", True)])
def test_the_total_is_the_weighted_sum_of_its_terms(name, weighted):
    keys = ["method.ce_weight=0.5", "method.kd_weight=3", "method.exponent=0.3"]
    built = build_method(name, "student=resnet14", "teacher=resnet8x4", *keys, batch_size=4)
    output = built.step()
    terms = {name: float(term.detach()) for name, term in output.terms.items()}
    assert set(terms) == {"total", "ce", "kd"}
    expected = transformed_teacher_matching(
        output.logits.detach(), built.teacher(built.batch).get_logits(), 0.3, weighted
    )
    assert terms["kd"] == pytest.approx(float(expected), rel=1e-6)
    assert terms["ce"] == pytest.approx(float(F.cross_entropy(output.logits.detach(), built.batch.labels)), rel=1e-6)
    assert terms["total"] == pytest.approx(0.5 * terms["ce"] + 3 * terms["kd"], rel=1e-6)


@pytest.mark.parametrize("name", ["ttm", "wttm"])
def test_the_gradient_reaches_every_parameter_of_the_student(name):
    built = build_method(name)
    built.step().terms["total"].backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in built.student.parameters())
    assert all(p.grad is None for p in built.teacher.network.parameters())


def test_an_exponent_of_zero_is_out_of_range():
    with pytest.raises(ConfigError) as error:
        build_method("ttm", "method.exponent=0")
    assert (error.value.code, error.value.key) == ("out_of_range", "method.exponent")
