import pytest
import torch
from torch.nn import functional as F

from kdbench.methods import CorrelationCongruence, correlation_congruence
from tests.methods.built import build_method
from tests.methods.conformance import LossTests


class TestCorrelationCongruence(LossTests):
    method = CorrelationCongruence

    def inputs(self, draw):
        return [draw(5, 3)], [2 * draw(5, 3)]

    def loss(self, student, teacher):
        return correlation_congruence(student[0], teacher[0])

    def reference(self, student, teacher):
        (s,), (t,) = student, teacher
        total = 0.0
        for i in range(len(s) - 1):
            for d in range(s.shape[1]):
                total += abs(s[i, d] - t[i, d]) * abs(s[i + 1, d] - t[i + 1, d])
        return total / (len(s) - 1)

    def test_the_gradient_reaches_the_student_and_never_the_teacher(self, setting):
        # The linear embedding of the teacher is trained, so its gradient passes through the loss.
        (student,), (teacher,) = self.drawn()
        student.requires_grad_(), teacher.requires_grad_()
        correlation_congruence(student, teacher).backward()
        assert float(student.grad.abs().sum()) > 0
        assert torch.equal(teacher.grad, -student.grad)


def test_case_by_hand():
    # Differences (1, 2), (3, 0), (1, 1): products 3 + 0 and 3 + 0; the mean of the two consecutive pairs is 3.
    student = torch.tensor([[1.0, -2.0], [-3.0, 0.0], [1.0, 1.0]])
    assert float(correlation_congruence(student, torch.zeros(3, 2))) == 3.0


def test_the_last_image_is_not_paired_with_the_first():
    student = torch.tensor([[1.0], [0.0], [1.0]])
    assert float(correlation_congruence(student, torch.zeros(3, 1))) == 0.0


def test_the_order_of_images_matters():
    student = torch.tensor([[1.0], [0.0], [1.0]])
    assert float(correlation_congruence(student[[0, 2, 1]], torch.zeros(3, 1))) == 0.5


def test_a_batch_of_one_image_gives_0():
    student = torch.ones(1, 3, requires_grad=True)
    loss = correlation_congruence(student, torch.zeros(1, 3))
    loss.backward()
    assert float(loss.detach()) == 0
    assert student.grad.tolist() == [[0, 0, 0]]


def test_large_half_precision_embeddings_do_not_overflow():
    student = torch.full((2, 2), 3e4, dtype=torch.float16)
    assert float(correlation_congruence(student, -student)) == pytest.approx(7.2e9, rel=1e-3)


def test_yaml_has_the_documented_defaults():
    params = build_method("cc").config.method.params
    assert (params.ce_weight, params.kd_weight, params.width, params.pairs) == (1, 0.02, 128, None)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("student=resnet8", "teacher=resnet18"),
        ("student=resnet8", "teacher=vit", "method.pairs={layer3: layer2}"),
        (
            "method.ce_weight=0.5",
            "method.kd_weight=7",
            "method.width=3",
            "method.pairs={layer1: layer2, layer3: layer3}",
        ),
    ],
)
def test_total_is_the_weighted_sum_and_reaches_the_student_and_both_embeddings(overrides):
    built = build_method("cc", *overrides, batch_size=8)
    terms = built.step().terms
    params = built.config.method.params
    assert all(bool(term.isfinite()) for term in terms.values())
    expected = params.ce_weight * terms["ce"] + params.kd_weight * terms["kd"]
    assert float(terms["total"].detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    terms["kd"].backward()
    assert sum(float(p.grad.abs().sum()) for p in built.student.parameters() if p.grad is not None) > 0
    parameters = list(built.method.parameters())
    assert len(parameters) == 4 * len(built.method.pairs.pairs)
    assert all(float(p.grad.abs().sum()) > 0 for p in parameters)


def test_linear_embeddings_of_the_pooled_features_are_compared():
    built = build_method("cc", "teacher=resnet18")
    assert built.method.requires.whole_batch
    own, target = (
        built.student(built.batch.images).features["pooled"].detach(),
        built.teacher(built.batch).features["pooled"],
    )
    (student,), (teacher,) = built.method.student_embeddings, built.method.teacher_embeddings
    assert (student.weight.shape, teacher.weight.shape) == ((128, 64), (128, 512))
    own, target = F.linear(own, student.weight, student.bias), F.linear(target, teacher.weight, teacher.bias)
    assert float(built.step().terms["kd"].detach()) == pytest.approx(
        float(correlation_congruence(own, target).detach()), rel=1e-5
    )


def test_no_gradient_reaches_the_features_of_the_teacher():
    built = build_method("cc")
    output = built.teacher(built.batch)
    features = {stage: values.clone().requires_grad_() for stage, values in output.features.items()}
    student = built.student(built.batch.images)
    built.method(student, [output._replace(features=features)], built.batch, None).terms["total"].backward()
    assert all(values.grad is None for values in features.values())
