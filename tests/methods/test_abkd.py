import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods import alpha_beta_kd, alpha_beta_kd_of_authors, logit_kd
from kdbench.methods.abkd import AlphaBetaDistillation
from tests.methods.built import build_method
from tests.methods.conformance import LossTests


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exponents(*pairs):
    return [{"alpha": a, "beta": b} for a, b in pairs]


class TestAlphaBetaKD(LossTests):
    method = AlphaBetaDistillation
    settings = exponents(
        (0.8, 0.3), (1.0, 1.0), (-0.5, 1.2), (0.7, -1.5), (-1.0, -0.5),
        (1.0, 0.0), (0.5, 0.0), (-2.0, 0.0), (0.0, 1.0), (0.0, 0.5), (0.5, -0.5), (-2.0, 2.0), (0.0, 0.0),
    )  # fmt: skip

    def inputs(self, draw):
        return [2 * draw(6, 7)], [3 * draw(6, 7)]

    def loss(self, student, teacher, alpha, beta):
        return alpha_beta_kd(*student, *teacher, 2.0, alpha, beta)

    def reference(self, student, teacher, alpha, beta):
        total = 0.0
        for z_s, z_t in zip(student[0] / 2, teacher[0] / 2, strict=True):
            q, p = (np.exp(z) / np.exp(z).sum() for z in (z_s, z_t))
            if alpha == beta == 0:
                total += sum((np.log(p) - np.log(q)) ** 2) / 2
            elif beta == 0:
                total += sum(p**alpha * np.log(p**alpha / q**alpha) - p**alpha + q**alpha) / alpha**2
            elif alpha == 0:
                total += sum(q**beta * np.log(q**beta / p**beta) - q**beta + p**beta) / beta**2
            elif alpha == -beta:
                total += sum(np.log(q**alpha / p**alpha) + (p / q) ** alpha - 1) / alpha**2
            else:
                both = alpha + beta
                inner = p**alpha * q**beta - alpha / both * p**both - beta / both * q**both
                total += -sum(inner) / (alpha * beta)
        return total / len(student[0])


def test_case_by_hand():
    # p = (1/2, 1/2), q = (1/5, 4/5). (1, 1): half the squared distance: (0.09 + 0.09) / 2.
    # (2, 1): -1/2 (sum p^2 q - 2/3 sum p^3 - 1/3 sum q^3) = -1/2 (0.25 - 2/3 0.25 - 1/3 0.52)
    student, teacher = torch.tensor([[0.0, math.log(4.0)]]), torch.zeros(1, 2)
    assert float(alpha_beta_kd(student, teacher, 1.0, 1.0, 1.0)) == pytest.approx(0.09, rel=1e-6)
    assert float(alpha_beta_kd(student, teacher, 1.0, 2.0, 1.0)) == pytest.approx(0.045, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_its_special_cases(temperature):
    student, teacher = 2 * draw(8, 10), 3 * draw(8, 10, seed=1)
    p, q = (torch.softmax(z / temperature, 1) for z in (teacher, student))

    def measured(alpha, beta):
        return float(alpha_beta_kd(student, teacher, temperature, alpha, beta))

    squared = temperature**2
    assert squared * measured(1, 0) == pytest.approx(float(logit_kd(student, teacher, temperature)), rel=1e-12)
    assert squared * measured(0, 1) == pytest.approx(float(logit_kd(teacher, student, temperature)), rel=1e-12)
    assert measured(0.5, 0.5) == pytest.approx(2 * float((p.sqrt() - q.sqrt()).square().sum(1).mean()), rel=1e-12)
    assert measured(1, 1) == pytest.approx(float((p - q).square().sum(1).mean()) / 2, rel=1e-12)
    assert measured(0, 0) == pytest.approx(float((p.log() - q.log()).square().sum(1).mean()) / 2, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("step", [1e-4, 1e-5, 1.1e-6, 9e-7, 1.1e-7, 9e-8, 1e-9, 1e-12, 1e-200])
@pytest.mark.parametrize("limit", [(0.8, 0.0), (-1.5, 0.0), (0.0, 0.6), (0.0, -2.0), (0.7, -0.7), (-2.0, 2.0)])
def test_values_and_gradients_near_a_limit_are_close_to_it(limit, step, dtype):
    student, teacher = (3 * draw(8, 100)).to(dtype).requires_grad_(), (3 * draw(8, 100, seed=1)).to(dtype)
    alpha, beta = limit
    moved = (alpha + step, beta) if alpha == 0 else (alpha, beta + step)
    losses = [alpha_beta_kd(student, teacher, 2.0, *pair) for pair in (limit, moved)]
    at_limit, near = (torch.autograd.grad(loss, student)[0] for loss in losses)
    tolerance = 20 * step + 1e-6
    values = [float(loss.detach()) for loss in losses]
    assert values[1] == pytest.approx(values[0], rel=tolerance)
    assert torch.allclose(near, at_limit, rtol=0, atol=tolerance * float(at_limit.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [1e-3, 1e-4, 1.1e-5, 9e-6, 1e-7, 1e-12])
def test_small_exponents_are_close_to_both_zero(size, dtype):
    student, teacher = (draw(8, 100)).to(dtype), (draw(8, 100, seed=1)).to(dtype)
    expected = float(alpha_beta_kd(student, teacher, 2.0, 0.0, 0.0))
    for a, b in itertools.product([-size, 0.0, 0.7 * size, size], repeat=2):
        assert float(alpha_beta_kd(student, teacher, 2.0, a, b)) == pytest.approx(expected, rel=20 * size + 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("alpha", "beta"), [(0.8, 0.3), (3.0, 2.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)])
def test_extreme_logits_stay_finite(alpha, beta, dtype):
    # p = (e^-120, 1), q = (1, e^-120), and nothing is left of p^3 in float32
    student = torch.tensor([[60.0, -60.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-60.0, 60.0]], dtype=dtype)
    loss = alpha_beta_kd(student, teacher, 1.0, alpha, beta)
    loss.backward()
    assert torch.isfinite(student.grad).all()
    if alpha and beta:
        expected = 1 / (alpha * beta)  # the products vanish, and p^(a + b) and q^(a + b) are 1 once
    else:
        expected = 120.0 if alpha or beta else 120.0**2
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("alpha", "beta", "factor"),
    [
        (0.5, 0.0, 0.5), (2.0, 0.0, 2.0), (1.0, 0.0, 1.0), (0.0, 0.5, 0.5), (0.0, 2.0, 2.0), (-0.5, 0.5, -0.5),
        (0.5, -0.5, 0.5), (0.8, 0.3, 1.0), (0.0, 0.0, 1.0),
    ],
)  # fmt: skip
def test_the_authors_variant_divides_once_at_three_limits(alpha, beta, factor):
    student, teacher = draw(8, 10), 3 * draw(8, 10, seed=1)
    paper, authors = (form(student, teacher, 4.0, alpha, beta) for form in (alpha_beta_kd, alpha_beta_kd_of_authors))
    assert float(authors) == pytest.approx(factor * float(paper), rel=1e-12)


def test_it_is_the_mean_over_images_without_the_squared_temperature():
    student, teacher = draw(2, 10), draw(2, 10, seed=1)
    once, thrice = (alpha_beta_kd(student.repeat(n, 1), teacher.repeat(n, 1), 4.0, 0.8, 0.3) for n in (1, 3))
    assert float(once) == pytest.approx(float(thrice), rel=1e-12)
    scaled = alpha_beta_kd(2 * student, 2 * teacher, 8.0, 0.8, 0.3)
    assert float(scaled) == pytest.approx(float(once), rel=1e-12)


def test_the_defaults_are_those_of_the_authors():
    built = build_method("abkd")
    assert dataclasses.asdict(built.method.config) == {
        "ce_weight": 1.0, "kd_weight": 32.0, "alpha": 0.8, "beta": 0.3, "temperature": 4.0, "variant": "paper"
    }  # fmt: skip


@pytest.mark.parametrize("variant", ["paper", "authors"])
def test_the_total_is_the_weighted_sum_of_its_terms(variant):
    keys = ["method.ce_weight=0.5", "method.kd_weight=3", "method.alpha=-0.5", "method.beta=0", "method.temperature=2"]
    built = build_method(
        "abkd", "student=resnet14", "teacher=resnet8x4", f"method.variant={variant}", *keys, batch_size=4
    )
    output = built.step()
    terms = {name: float(term.detach()) for name, term in output.terms.items()}
    assert set(terms) == {"total", "ce", "kd"}
    form = alpha_beta_kd if variant == "paper" else alpha_beta_kd_of_authors
    expected = form(output.logits.detach(), built.teacher(built.batch).get_logits(), 2.0, -0.5, 0.0)
    assert terms["kd"] == pytest.approx(float(expected), rel=1e-6)
    assert terms["total"] == pytest.approx(0.5 * terms["ce"] + 3 * terms["kd"], rel=1e-6)


def test_the_gradient_reaches_every_parameter_of_the_student():
    built = build_method("abkd")
    built.step().terms["total"].backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in built.student.parameters())
    assert all(p.grad is None for p in built.teacher.network.parameters())


@pytest.mark.parametrize("setting", ["method.alpha=inf", "method.beta=nan", "method.variant=code"])
def test_values_out_of_range_are_errors(setting):
    with pytest.raises(ConfigError) as error:
        build_method("abkd", setting)
    assert (error.value.code, error.value.key) == ("out_of_range", setting.partition("=")[0])
