import math

import numpy as np
import pytest
import torch

from kdbench.methods import ProbabilisticTransfer, probabilistic_transfer
from tests.methods.built import build_method
from tests.methods.conformance import LossTests


def probabilities(embeddings):
    images = len(embeddings)
    kernel = np.zeros((images, images))
    for i in range(images):
        for j in range(images):
            a, b = embeddings[i], embeddings[j]
            kernel[i, j] = (a @ b / math.sqrt((a @ a) * (b @ b)) + 1) / 2
        kernel[i] /= kernel[i].sum()
    return kernel


class TestProbabilisticTransfer(LossTests):
    method = ProbabilisticTransfer

    def inputs(self, draw):
        return [draw(5, 4)], [3 * draw(5, 6)]

    def loss(self, student, teacher):
        return probabilistic_transfer(student[0], teacher[0])

    def reference(self, student, teacher):
        p_s, p_t = probabilities(student[0]), probabilities(teacher[0])
        total = 0.0
        for i in range(len(p_s)):
            for j in range(len(p_s)):
                total += p_t[i, j] * math.log((p_t[i, j] + 1e-7) / (p_s[i, j] + 1e-7))
        return total / len(p_s) ** 2


def test_case_by_hand():
    # Teacher at a right angle: kernel rows (1, 1/2), so P_t = (2/3, 1/3). Student equal: P_s = (1/2, 1/2).
    # KL of each row: 2/3 ln(4/3) + 1/3 ln(2/3); two rows over B^2 = 4 entries.
    student, teacher = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    expected = (2 / 3 * math.log(4 / 3) + 1 / 3 * math.log(2 / 3)) / 2
    assert float(probabilistic_transfer(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_the_mean_is_over_all_entries_not_over_the_batch():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(8, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    p_s, p_t = probabilities(student.numpy()), probabilities(teacher.numpy())
    per_row = (p_t * np.log(p_t / p_s)).sum(1).mean()
    assert float(probabilistic_transfer(student, teacher)) == pytest.approx(per_row / 8, rel=1e-4)


def test_opposite_embeddings_have_finite_values():
    # The kernel is 0 for cosine -1, or below it after rounding; the logarithm must have a value there.
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        half = torch.randn(1, 513, generator=generator)
        student = torch.cat([half, -3.3 * half]).requires_grad_()
        loss = probabilistic_transfer(student, torch.cat([half, half]))
        loss.backward()
        assert bool(loss.isfinite())
        assert bool(student.grad.isfinite().all())


def test_an_embedding_of_zeros_has_a_moderate_gradient():
    # F.normalize multiplies its gradient by 1e12.
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 3, generator=generator)
    student[1] = 0
    student.requires_grad_()
    loss = probabilistic_transfer(student, torch.randn(4, 3, generator=generator))
    loss.backward()
    assert bool(loss.isfinite())
    assert float(student.grad.abs().max()) < 1


def test_yaml_has_the_documented_defaults():
    params = build_method("pkt").config.method.params
    assert (params.ce_weight, params.kd_weight, params.pairs) == (1, 30000, None)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("student=resnet8", "teacher=resnet18"),
        ("student=resnet8", "teacher=vit", "method.pairs={layer3: layer2}"),
        ("method.ce_weight=0.5", "method.kd_weight=7", "method.pairs={layer1: layer2, layer3: layer3}"),
    ],
)
def test_total_is_the_weighted_sum_and_reaches_the_student(overrides):
    built = build_method("pkt", *overrides, batch_size=8)
    terms = built.step().terms
    params = built.config.method.params
    assert all(bool(term.isfinite()) for term in terms.values())
    expected = params.ce_weight * terms["ce"] + params.kd_weight * terms["kd"]
    assert float(terms["total"].detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    terms["kd"].backward()
    assert sum(float(p.grad.abs().sum()) for p in built.student.parameters() if p.grad is not None) > 0


def test_embeddings_are_the_pooled_features_by_default():
    built = build_method("pkt")
    assert built.method.requires.whole_batch
    own, target = (
        built.student(built.batch.images).features["pooled"].detach(),
        built.teacher(built.batch).features["pooled"],
    )
    assert float(built.step().terms["kd"].detach()) == pytest.approx(
        float(probabilistic_transfer(own, target)), rel=1e-4
    )
