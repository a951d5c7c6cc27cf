import dataclasses
import math

import numpy as np
import pytest
import torch

import kdbench
from kdbench.errors import ConfigError
from kdbench.methods import decoupled_kd, logit_kd
from kdbench.methods.decoupled import DecoupledDistillation
from tests.methods.built import build_method
from tests.methods.conformance import LossTests

LABELS = torch.tensor([2, 0, 5, 2, 3, 1])


def softmax(z):
    return np.exp(z - z.max()) / np.exp(z - z.max()).sum()


def kl(p, q):
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))


def draw(*shape, scale=1.0, seed=0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestDecoupledKD(LossTests):
    method = DecoupledDistillation
    settings = (
        {"temperature": 4.0, "alpha": 1.0, "beta": 8.0},
        {"temperature": 1.0, "alpha": 0.5, "beta": 0.0},
        {"temperature": 2.0, "alpha": 0.0, "beta": 2.0},
    )

    def inputs(self, draw):
        self.labels = LABELS
        return [2 * draw(6, 7)], [3 * draw(6, 7)]

    def loss(self, student, teacher, **setting):
        return decoupled_kd(*student, *teacher, self.labels, **setting)

    def reference(self, student, teacher, temperature, alpha, beta):
        total = 0.0
        for z_s, z_t, y in zip(student[0] / temperature, teacher[0] / temperature, self.labels.tolist(), strict=True):
            p_s, p_t = softmax(z_s), softmax(z_t)
            total += alpha * kl([p_t[y], 1 - p_t[y]], [p_s[y], 1 - p_s[y]])
            total += beta * kl(softmax(np.delete(z_t, y)), softmax(np.delete(z_s, y)))
        return temperature**2 * total / len(self.labels)

    def reordered(self, side, order):
        self.labels = LABELS[order]
        return super().reordered(side, order)


def test_case_by_hand():
    # p_t = (1/2, 3/8, 1/8), p_s = (1/4, 3/8, 3/8), label 0. Label against rest: (1/2, 1/2) and (1/4, 3/4):
    # 1/2 ln 2 + 1/2 ln(2/3). Other classes: (3/4, 1/4) and (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2).
    student, teacher = torch.tensor([[2.0, 3.0, 3.0]]).log(), torch.tensor([[4.0, 3.0, 1.0]]).log()
    target = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    others = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    measured = decoupled_kd(student, teacher, torch.tensor([0]), 1.0, alpha=3.0, beta=5.0)
    assert float(measured) == pytest.approx(3 * target + 5 * others, rel=1e-6)


def test_with_the_teachers_own_weight_of_the_other_classes_it_is_logit_kd():
    # KL(p_t, p_s) = TCKD + (1 - p_t[y]) NCKD, for one image
    student, teacher, labels = draw(1, 10), draw(1, 10, seed=1), torch.tensor([4])
    rest = 1 - float(torch.softmax(teacher / 4, 1)[0, 4])
    measured = decoupled_kd(student, teacher, labels, 4.0, alpha=1.0, beta=rest)
    assert float(measured) == pytest.approx(float(logit_kd(student, teacher, 4.0)), rel=1e-12)


def test_the_mean_is_over_images_not_over_classes():
    student, teacher, labels = draw(2, 10), draw(2, 10, seed=1), torch.tensor([4, 0])
    once, thrice = (decoupled_kd(student.repeat(n, 1), teacher.repeat(n, 1), labels.repeat(n), 4, 1, 8) for n in (1, 3))
    assert float(once) == pytest.approx(float(thrice), rel=1e-12)


def test_a_teacher_that_is_sure_of_the_label_still_teaches_the_other_classes():
    student, teacher = draw(4, 10), draw(4, 10, seed=1)
    labels = torch.tensor([1, 2, 3, 4])
    sure = teacher.scatter_add(1, labels[:, None], torch.full((4, 1), 60.0).double())
    plain, of_sure = (decoupled_kd(student, z, labels, 1.0, alpha=0.0, beta=1.0) for z in (teacher, sure))
    assert float(of_sure) == pytest.approx(float(plain), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_extreme_logits_stay_finite_in_half_precision(dtype):
    student = torch.tensor([[60.0, -60.0, 0.0, 1.0]], dtype=dtype, requires_grad=True)
    teacher = torch.tensor([[-60.0, 60.0, 0.0, -1.0]], dtype=dtype)
    for label in range(4):
        loss = decoupled_kd(student, teacher, torch.tensor([label]), 1.0, 1.0, 8.0)
        (gradient,) = torch.autograd.grad(loss, student)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()
    # label 0: all of the teacher is on the rest, whose probability is (e + 1 + e^-60) e^-60 for the student
    loss = decoupled_kd(student.detach(), teacher, torch.tensor([0]), 1.0, 1.0, 0.0)
    assert float(loss) == pytest.approx(60 - math.log(math.e + 1), rel=1e-6)


def test_two_classes_leave_the_part_of_the_label():
    student, teacher, labels = draw(3, 2), draw(3, 2, seed=1), torch.tensor([0, 1, 1])
    measured = decoupled_kd(student, teacher, labels, 2.0, alpha=1.0, beta=8.0)
    assert float(measured) == pytest.approx(float(logit_kd(student, teacher, 2.0)), rel=1e-12)


def test_the_defaults_are_those_of_the_paper():
    built = build_method("dkd")
    assert dataclasses.asdict(built.method.config) == {
        "ce_weight": 1.0, "kd_weight": 1.0, "ramp_epochs": 20, "alpha": 1.0, "beta": 8.0, "temperature": 4.0
    }  # fmt: skip


def test_the_weight_of_kd_grows_from_a_twentieth_to_one():
    keys = ["method.ce_weight=0.5", "method.kd_weight=3"]
    built = build_method("dkd", "student=resnet14", "teacher=resnet8x4", *keys, batch_size=4)
    teacher = built.teacher(built.batch).get_logits()
    for epoch, share in [(0, 1 / 20), (4, 5 / 20), (19, 1.0), (50, 1.0)]:
        output = built.step(epoch)
        terms = {name: float(term.detach()) for name, term in output.terms.items()}
        assert set(terms) == {"total", "ce", "kd"}
        expected = decoupled_kd(output.logits.detach(), teacher, built.batch.labels, 4.0, 1.0, 8.0)
        assert terms["kd"] == pytest.approx(float(expected), rel=1e-5)
        assert terms["total"] == pytest.approx(0.5 * terms["ce"] + 3 * share * terms["kd"], rel=1e-5)


def test_the_gradient_reaches_every_parameter_of_the_student():
    built = build_method("dkd")
    built.step().terms["total"].backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in built.student.parameters())
    assert all(p.grad is None for p in built.teacher.network.parameters())


def test_no_part_with_a_weight_is_an_error():
    with pytest.raises(ConfigError) as error:
        build_method("dkd", "method.alpha=0", "method.beta=0")
    assert (error.value.code, error.value.key) == ("no_loss", "method.alpha")
    build_method("dkd", "method.alpha=0")


def test_labels_that_are_probabilities_are_refused():
    with pytest.raises(ConfigError) as error:
        kdbench.compose(["data=shapes", "teacher=resnet20", "method=dkd", "recipe.label_smoothing=0.1"])
    assert error.value.code == "integer_labels"
