import dataclasses
import math

import numpy as np
import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods import dist_kd
from kdbench.methods.dist import StrongerTeacherDistillation
from tests.methods.built import build_method
from tests.methods.conformance import LossTests


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestDistKD(LossTests):
    method = StrongerTeacherDistillation
    settings = (
        {"temperature": 4.0, "beta": 2.0, "gamma": 2.0},
        {"temperature": 1.0, "beta": 3.0, "gamma": 0.0},
        {"temperature": 2.0, "beta": 0.0, "gamma": 0.5},
    )

    def inputs(self, draw):
        return [2 * draw(6, 5)], [3 * draw(6, 5)]

    def loss(self, student, teacher, **setting):
        return dist_kd(*student, *teacher, **setting)

    def reference(self, student, teacher, temperature, beta, gamma):
        def probabilities(logits):
            return np.stack([np.exp(z / temperature) / sum(np.exp(z / temperature)) for z in logits])

        def distance(a, b):
            covariance = np.sum((a - a.mean()) * (b - b.mean()))
            return 1 - covariance / (np.sqrt(np.sum((a - a.mean()) ** 2) * np.sum((b - b.mean()) ** 2)) + 1e-8)

        p_s, p_t = probabilities(student[0]), probabilities(teacher[0])
        rows = np.mean([distance(p_s[i], p_t[i]) for i in range(len(p_s))])
        columns = np.mean([distance(p_s[:, c], p_t[:, c]) for c in range(p_s.shape[1])])
        return temperature**2 * (beta * rows + gamma * columns)


def test_case_by_hand():
    # p_t = (4, 1, 1) / 6 and (1, 4, 1) / 6; p_s = (1, 4, 1) / 6 and (1, 4, 1) / 6. Rows: centred, times 6, (2, -1, -1)
    # and (-1, 2, -1): r = -3/6; the second 1. Columns of the student are constant: r = 0.
    teacher = torch.tensor([[4.0, 1.0, 1.0], [1.0, 4.0, 1.0]]).log()
    student = torch.tensor([[1.0, 4.0, 1.0], [1.0, 4.0, 1.0]]).log()
    expected = 3.0 * (1 - (-0.5 + 1) / 2) + 5.0 * 1
    assert float(dist_kd(student, teacher, 1.0, beta=3.0, gamma=5.0)) == pytest.approx(expected, rel=1e-5)


def test_columns_are_the_rows_of_the_transposed_probabilities():
    # Probabilities of two images and two classes that are symmetric: rows and columns correlate alike
    student, teacher = (torch.tensor([[a, 0.0], [0.0, a]], dtype=torch.float64) for a in (1.0, -2.0))
    rows, columns = dist_kd(student, teacher, 1.0, 1.0, 0.0), dist_kd(student, teacher, 1.0, 0.0, 1.0)
    assert float(rows) == pytest.approx(float(columns), rel=1e-12)
    assert float(rows) == pytest.approx(2, rel=1e-6)


def test_identical_logits_give_zero_up_to_the_constant_of_the_norm():
    logits = 3 * draw(8, 10)
    assert float(dist_kd(logits, logits, 1.0, 1.0, 1.0)) == pytest.approx(0, abs=1e-5)


def test_the_constant_is_added_to_the_product_of_the_norms():
    # Two classes with p = 1/2 -+ d, d = tanh(z / 2) / 2: both norms are sqrt(2) d and r is 2 d^2 / (2 d^2 + 1e-8)
    logits = torch.tensor([[1e-4, -1e-4]], dtype=torch.float64)
    squared = 2 * (math.tanh(1e-4) / 2) ** 2
    expected = 1 - squared / (squared + 1e-8)
    assert expected > 0.1
    assert float(dist_kd(logits, logits, 1.0, 1.0, 0.0)) == pytest.approx(expected, rel=1e-6)


def test_the_student_may_be_sharper_than_the_teacher():
    # Correlation ignores scale and shift of probabilities: (1/2, 1/4, 1/4) and (0.9, 0.05, 0.05) agree
    teacher, student = torch.tensor([[2.0, 1.0, 1.0]]).log(), torch.tensor([[18.0, 1.0, 1.0]]).log()
    assert float(dist_kd(student, teacher, 1.0, 1.0, 0.0)) == pytest.approx(0, abs=1e-6)


def test_a_batch_of_one_image_has_a_constant_for_its_columns():
    student, teacher = draw(1, 5).requires_grad_(), draw(1, 5, seed=1)
    loss = dist_kd(student, teacher, 4.0, beta=0.0, gamma=2.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(32)
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_constant_logits_are_finite():
    student = torch.zeros(4, 5, requires_grad=True)
    loss = dist_kd(student, draw(4, 5).float(), 4.0, 2.0, 2.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(64, rel=1e-3)
    assert torch.isfinite(student.grad).all()


def test_the_defaults_are_those_of_the_authors():
    built = build_method("dist")
    assert dataclasses.asdict(built.method.config) == {
        "ce_weight": 1.0, "kd_weight": 1.0, "beta": 2.0, "gamma": 2.0, "temperature": 4.0
    }  # fmt: skip


def test_the_total_is_the_weighted_sum_of_its_terms():
    keys = ["method.ce_weight=0.5", "method.kd_weight=3", "method.beta=1", "method.temperature=2"]
    built = build_method("dist", "student=resnet14", "teacher=resnet8x4", *keys, batch_size=4)
    output = built.step()
    terms = {name: float(term.detach()) for name, term in output.terms.items()}
    assert set(terms) == {"total", "ce", "kd"}
    expected = dist_kd(output.logits.detach(), built.teacher(built.batch).get_logits(), 2.0, 1.0, 2.0)
    assert terms["kd"] == pytest.approx(float(expected), rel=1e-6)
    assert terms["total"] == pytest.approx(0.5 * terms["ce"] + 3 * terms["kd"], rel=1e-6)


def test_the_gradient_reaches_every_parameter_of_the_student():
    built = build_method("dist")
    built.step().terms["total"].backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in built.student.parameters())
    assert all(p.grad is None for p in built.teacher.network.parameters())


def test_only_the_part_of_the_columns_needs_the_whole_batch():
    assert build_method("dist").method.requires.whole_batch
    assert not build_method("dist", "method.gamma=0").method.requires.whole_batch


def test_no_part_with_a_weight_is_an_error():
    with pytest.raises(ConfigError) as error:
        build_method("dist", "method.beta=0", "method.gamma=0")
    assert (error.value.code, error.value.key) == ("no_loss", "method.beta")
