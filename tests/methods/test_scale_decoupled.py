import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdbench.methods import logit_kd, scale_decoupled_dkd, scale_decoupled_kd
from kdbench.methods.scale_decoupled import pool_regions
from tests.methods.conformance import LossTests


def softmax(row, temperature=1.0):
    e = np.exp((row - row.max()) / temperature)
    return e / e.sum()


def divergence(p_t, p_s):
    return sum(t * math.log(t / s) for t, s in zip(p_t, p_s, strict=True))


def plain(z_s, z_t, label, temperature):
    return divergence(softmax(z_t, temperature), softmax(z_s, temperature))


def decoupled(z_s, z_t, label, temperature, alpha, beta):
    p_s, p_t = softmax(z_s, temperature), softmax(z_t, temperature)
    binary = divergence((p_t[label], 1 - p_t[label]), (p_s[label], 1 - p_s[label]))
    s, t = (softmax(np.delete(z, label), temperature) for z in (z_s, z_t))
    return alpha * binary + beta * divergence(t, s)


class RegionTests(LossTests):
    """The teacher's second tensor gives the labels, its largest column: of most images the class that the teacher
    predicts for the whole map."""

    method = SimpleNamespace(invariants=("zero_for_identical", "batch_order", "logit_shift"))

    def inputs(self, draw):
        teacher = 3 * draw(6, 5, 4)
        return [3 * draw(6, 5, 4)], [teacher, teacher.mean(1) + draw(6, 4)]

    def loss(self, student, teacher, **setting):
        return self.function(student[0], teacher[0], teacher[1].detach().argmax(1), **setting)

    def weighted_mean(self, student, teacher, of_region, temperature, complementary_weight, **setting):
        values = []
        for z_s, z_t, scores in zip(student[0], teacher[0], teacher[1], strict=True):
            label = scores.argmax()
            for s, t in zip(z_s, z_t, strict=True):
                complementary = (t.argmax() == label) ^ (z_t[0].argmax() == label)
                weight = complementary_weight if complementary else 1.0
                values.append(weight * temperature**2 * of_region(s, t, label, temperature, **setting))
        return sum(values) / len(values)


class TestScaleDecoupledKd(RegionTests):
    function = staticmethod(scale_decoupled_kd)
    settings = (
        {"temperature": 4.0, "complementary_weight": 2.0},
        {"temperature": 1.0, "complementary_weight": 0.5},
    )

    def reference(self, student, teacher, **setting):
        return self.weighted_mean(student, teacher, plain, **setting)


class TestScaleDecoupledDkd(RegionTests):
    function = staticmethod(scale_decoupled_dkd)
    settings = (
        {"temperature": 4.0, "alpha": 1.0, "beta": 8.0, "complementary_weight": 2.0},
        {"temperature": 1.0, "alpha": 0.5, "beta": 2.0, "complementary_weight": 3.0},
    )

    def reference(self, student, teacher, **setting):
        return self.weighted_mean(student, teacher, decoupled, **setting)


ONE = math.log(3.0)
"""Logits (ONE, 0) are probabilities (3/4, 1/4)."""


def test_case_by_hand():
    # Label 0. Teacher: right on the whole map, right in region 1, wrong in region 2, with probability 3/4 each time;
    # student: (1/2, 1/2) everywhere. KL = k = 3/4 ln(3/2) + 1/4 ln(1/2) in each. Mean of k, k and 2 k: 4/3 k.
    teacher = torch.tensor([[[ONE, 0.0], [ONE, 0.0], [0.0, ONE]]])
    student, k = torch.zeros(1, 3, 2), 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(scale_decoupled_kd(student, teacher, torch.tensor([0]), 1.0, 2.0)) == pytest.approx(4 / 3 * k)
    # Label 1: the whole map and region 1 are wrong, region 2 is right.
    assert float(scale_decoupled_kd(student, teacher, torch.tensor([1]), 1.0, 2.0)) == pytest.approx(4 / 3 * k)
    # Two classes: the binary part is the whole divergence, and one other class has nothing to compare.
    dkd = scale_decoupled_dkd(student, teacher, torch.tensor([0]), 1.0, 0.5, 8.0, 2.0)
    assert float(dkd) == pytest.approx(0.5 * 4 / 3 * k)


def test_two_different_wrong_classes_are_not_complementary():
    teacher = torch.tensor([[[5.0, 0.0, 0.0], [0.0, 5.0, 0.0]]])
    student, label = torch.zeros(1, 2, 3), torch.tensor([2])
    weighted, unweighted = (float(scale_decoupled_kd(student, teacher, label, 1.0, w)) for w in (2.0, 1.0))
    assert weighted == unweighted


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_one_region_is_logit_kd(temperature):
    student, teacher = torch.randn(8, 10, dtype=torch.float64), torch.randn(8, 10, dtype=torch.float64)
    labels = torch.randint(10, (8,))
    measured = scale_decoupled_kd(student[:, None], teacher[:, None], labels, temperature, 2.0)
    assert float(measured) == pytest.approx(float(logit_kd(student, teacher, temperature)), rel=1e-12)


def test_regions_are_averaged_not_summed():
    student, teacher = torch.randn(8, 5, 10, dtype=torch.float64), torch.randn(8, 5, 10, dtype=torch.float64)
    labels = teacher[:, 0].argmax(1)
    for function, weights in ((scale_decoupled_kd, (1.0,)), (scale_decoupled_dkd, (1.0, 8.0, 1.0))):
        regions = [
            float(function(student[:, r : r + 1], teacher[:, r : r + 1], labels, 2.0, *weights)) for r in range(5)
        ]
        assert float(function(student, teacher, labels, 2.0, *weights)) == pytest.approx(np.mean(regions))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_confident_predictions_stay_finite(dtype):
    student = torch.tensor([[[60.0, -60.0, 0.0]]], dtype=dtype, requires_grad=True)
    teacher, label = torch.tensor([[[-60.0, 60.0, 0.0]]], dtype=dtype), torch.tensor([0])
    loss = scale_decoupled_kd(student, teacher, label, 1.0, 2.0) + scale_decoupled_dkd(
        student, teacher, label, 1.0, 1.0, 8.0, 2.0
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


def test_logits_without_regions_are_an_error():
    with pytest.raises(ValueError, match=r"student_logits are \[2, 3\]"):
        scale_decoupled_kd(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), 1.0, 2.0)


# Regions


def test_regions_are_the_whole_map_and_then_cells_row_by_row():
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    # Quadrants: (0 + 1 + 4 + 5) / 4 = 2.5, then 4.5, 10.5, 12.5.
    expected = [7.5, 2.5, 4.5, 10.5, 12.5, *range(16)]
    assert pool_regions(maps, [1, 2, 4]).flatten().tolist() == expected


def test_the_classifier_of_region_0_gives_the_networks_own_logits():
    maps, classifier = torch.randn(2, 8, 6, 6), torch.nn.Linear(8, 10)
    regions = classifier(pool_regions(maps, [1, 2]))
    assert regions.shape == (2, 5, 10)
    torch.testing.assert_close(regions[:, 0], classifier(maps.mean((2, 3))))


@pytest.mark.parametrize("side", [6, 3, 1])
def test_each_scale_is_pooled_from_the_map_itself(side):
    maps = torch.randn(2, 3, side, side)
    direct = F.adaptive_avg_pool2d(maps, 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(pool_regions(maps, [1, 2, 4])[:, 1:5], direct)
    assert pool_regions(maps, [1, 2, 4]).shape == (2, 21, 3)


@pytest.mark.parametrize("scales", [[], [2], [1, 4, 2], [1, 1]])
def test_scales_that_do_not_ascend_from_1_are_an_error(scales):
    with pytest.raises(ValueError, match="they must ascend from 1"):
        pool_regions(torch.zeros(1, 1, 4, 4), scales)
