import dataclasses
import math

import numpy as np
import pytest
import torch

import kdbench
from kdbench.errors import ConfigError
from kdbench.methods import decoupled_kd, refined_logits_kd
from kdbench.methods.rld import RefinedLogitsDistillation
from tests.methods.built import build_method
from tests.methods.conformance import LossTests

LABELS = torch.tensor([5, 0, 5, 2, 3, 1])


def softmax(z):
    return np.exp(z - z.max()) / np.exp(z - z.max()).sum()


def kl(p, q):
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestRefinedLogitsKD(LossTests):
    method = RefinedLogitsDistillation
    settings = (
        {"temperature": 4.0, "alpha": 1.0, "beta": 8.0, "confidence_temperature": 4.0},
        {"temperature": 2.0, "alpha": 1.0, "beta": 0.0, "confidence_temperature": 1.0},
        {"temperature": 1.0, "alpha": 0.0, "beta": 2.0, "confidence_temperature": 3.0},
    )

    def inputs(self, draw):
        self.labels = LABELS
        return [2 * draw(6, 7)], [3 * draw(6, 7)]

    def loss(self, student, teacher, **setting):
        return refined_logits_kd(*student, *teacher, self.labels, **setting)

    def reference(self, student, teacher, temperature, alpha, beta, confidence_temperature):
        total = 0.0
        for z_s, z_t, y in zip(student[0], teacher[0], self.labels.tolist(), strict=True):
            p, q = max(softmax(z_t / confidence_temperature)), softmax(z_s / confidence_temperature)[y]
            total += alpha * confidence_temperature**2 * kl([p, 1 - p], [q, 1 - q])
            below = [c for c in range(len(z_t)) if z_t[c] < z_t[y]]
            if len(below) > 1:
                total += beta * temperature**2 * kl(*(softmax(z[below] / temperature) for z in (z_t, z_s)))
        return total / len(self.labels)

    def reordered(self, side, order):
        self.labels = LABELS[order]
        return super().reordered(side, order)

    def test_the_inputs_hold_every_case(self):
        _, (teacher,) = self.drawn()
        below = (teacher < teacher.gather(1, self.labels[:, None])).sum(1)
        assert below.max() == 6, "a teacher that is right"
        assert any(1 < int(n) < 6 for n in below), "a wrong teacher with classes below the label"


def test_case_by_hand():
    # p_t = (1/2, 1/4, 3/16, 1/16), label 1: the teacher's largest is 1/2, below the label are classes 2 and 3 as
    # (3/4, 1/4). p_s = (1/4, 1/4, 1/4, 1/4): 1/4 for the label, (1/2, 1/2) below.
    teacher, student = torch.tensor([[8.0, 4.0, 3.0, 1.0]]).log(), torch.zeros(1, 4)
    confidence = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    below = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    measured = refined_logits_kd(student, teacher, torch.tensor([1]), 1.0, 3.0, 5.0, 1.0)
    assert float(measured) == pytest.approx(3 * confidence + 5 * below, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_where_the_teacher_is_right_it_is_decoupled_kd(temperature):
    student, teacher = 2 * draw(16, 10), 3 * draw(16, 10, seed=1)
    labels = teacher.argmax(1)
    measured = refined_logits_kd(student, teacher, labels, temperature, 1.5, 8.0, temperature)
    expected = decoupled_kd(student, teacher, labels, temperature, 1.5, 8.0)
    assert float(measured) == pytest.approx(float(expected), rel=1e-13)


def test_each_part_has_its_own_temperature_and_its_square():
    student, teacher, labels = draw(8, 10), draw(8, 10, seed=1), draw(8, 10, seed=2).argmax(1)

    def parts(alpha, beta, temperature, confidence_temperature):
        return float(refined_logits_kd(student, teacher, labels, temperature, alpha, beta, confidence_temperature))

    assert parts(1, 0, 2, 4) == parts(1, 0, 7, 4) != parts(1, 0, 7, 2)
    assert parts(0, 1, 4, 2) == parts(0, 1, 4, 7) != parts(0, 1, 2, 7)
    scaled = refined_logits_kd(student * 3, teacher * 3, labels, 12.0, 1.0, 8.0, 6.0)
    assert float(scaled) == pytest.approx(9 * parts(1, 8, 4, 2), rel=1e-12)


@pytest.mark.parametrize("classes_below", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_fewer_than_two_classes_below_the_label_give_zero_and_no_gradient(classes_below, dtype):
    student = draw(3, 5).to(dtype).requires_grad_()
    teacher = draw(3, 5, seed=1).to(dtype)
    labels = teacher.argsort(1)[:, classes_below]
    loss = refined_logits_kd(student, teacher, labels, 2.0, 0.0, 1.0, 2.0)
    loss.backward()
    assert float(loss.detach()) == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_an_image_without_classes_below_adds_nothing_but_counts_in_the_mean():
    student, teacher = draw(2, 5).requires_grad_(), draw(2, 5, seed=1)
    labels = torch.stack([teacher[0].argmin(), teacher[1].argmax()])
    both = refined_logits_kd(student, teacher, labels, 2.0, 0.0, 1.0, 2.0)
    second = refined_logits_kd(student[1:], teacher[1:], labels[1:], 2.0, 0.0, 1.0, 2.0)
    assert float(both.detach()) == pytest.approx(float(second.detach()) / 2, rel=1e-13)
    both.backward()
    assert float(student.grad[0].abs().sum()) == 0
    assert float(student.grad[1].abs().sum()) > 0


def test_the_label_the_classes_above_it_and_ties_with_it_are_left_out():
    teacher = torch.tensor([[5.0, 2.0, 2.0, 1.0, 0.0]], dtype=torch.float64)  # label 1 ties with 2
    student = draw(1, 5).requires_grad_()
    refined_logits_kd(student, teacher, torch.tensor([1]), 1.0, 0.0, 1.0, 1.0).backward()
    assert torch.equal(student.grad[0] != 0, torch.tensor([False, False, False, True, True]))


def test_identical_logits_of_a_wrong_teacher_are_not_zero():
    logits = torch.tensor([[3.0, 0.0, -1.0]], dtype=torch.float64)
    assert float(refined_logits_kd(logits, logits, torch.tensor([0]), 1.0, 1.0, 8.0, 1.0)) == pytest.approx(
        0, abs=1e-15
    )
    assert float(refined_logits_kd(logits, logits, torch.tensor([1]), 1.0, 1.0, 8.0, 1.0)) > 1


def test_the_defaults_are_those_of_the_authors_command():
    built = build_method("rld")
    assert dataclasses.asdict(built.method.config) == {
        "ce_weight": 1.0, "kd_weight": 1.0, "ramp_epochs": 20, "alpha": 1.0, "beta": 8.0, "temperature": 4.0,
        "confidence_temperature": 4.0,
    }  # fmt: skip


def test_the_weight_of_kd_grows_from_a_twentieth_to_one():
    keys = ["method.ce_weight=0.5", "method.kd_weight=3", "method.temperature=2", "method.confidence_temperature=3"]
    built = build_method("rld", "student=resnet14", "teacher=resnet8x4", "method.alpha=0.5", *keys, batch_size=4)
    teacher = built.teacher(built.batch).get_logits()
    for epoch, share in [(0, 1 / 20), (9, 0.5), (30, 1.0)]:
        output = built.step(epoch)
        terms = {name: float(term.detach()) for name, term in output.terms.items()}
        assert set(terms) == {"total", "ce", "kd"}
        expected = refined_logits_kd(output.logits.detach(), teacher, built.batch.labels, 2.0, 0.5, 8.0, 3.0)
        assert terms["kd"] == pytest.approx(float(expected), rel=1e-5)
        assert terms["total"] == pytest.approx(0.5 * terms["ce"] + 3 * share * terms["kd"], rel=1e-5)


def test_the_gradient_reaches_every_parameter_of_the_student():
    built = build_method("rld")
    built.step().terms["total"].backward()
    assert all(float(p.grad.abs().sum()) > 0 for p in built.student.parameters())
    assert all(p.grad is None for p in built.teacher.network.parameters())


def test_no_part_with_a_weight_is_an_error():
    with pytest.raises(ConfigError) as error:
        build_method("rld", "method.alpha=0", "method.beta=0")
    assert (error.value.code, error.value.key) == ("no_loss", "method.alpha")


@pytest.mark.parametrize("setting", ["recipe.label_smoothing=0.1", "recipe.mixup=0.2"])
def test_labels_that_are_probabilities_are_refused(setting):
    with pytest.raises(ConfigError) as error:
        kdbench.compose(["data=shapes", "teacher=resnet20", "method=rld", setting])
    assert error.value.code == "integer_labels"
