import math

import numpy as np
import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods import logit_kd, multi_level_kd
from kdbench.methods.multi_level import MultiLevelDistillation
from tests.methods.built import build_method
from tests.methods.conformance import LossTests


def softmax(row, temperature):
    e = np.exp((row - row.max()) / temperature)
    return e / e.sum()


class TestMultiLevel(LossTests):
    method = MultiLevelDistillation
    settings = (
        {"temperatures": [2.0, 3.0, 4.0, 5.0, 6.0]},
        {"temperatures": [4.0], "instance_weight": 0.0, "batch_weight": 2.0, "class_weight": 0.0},
        {"temperatures": [1.0, 0.5], "instance_weight": 0.0, "batch_weight": 0.0, "class_weight": 3.0},
        {"temperatures": [1.5], "instance_weight": 0.5, "batch_weight": 1.5, "class_weight": 2.5},
    )

    def inputs(self, draw):
        return [3 * draw(5, 7)], [3 * draw(5, 7)]

    def loss(self, student, teacher, **setting):
        return multi_level_kd(student[0], teacher[0], **setting)

    def reference(self, student, teacher, temperatures, instance_weight=1.0, batch_weight=1.0, class_weight=1.0):
        (z_s,), (z_t,) = student, teacher
        images, classes = z_s.shape
        total = 0.0
        for T in temperatures:
            s = [softmax(row, T) for row in z_s]
            t = [softmax(row, T) for row in z_t]
            kl = sum(
                q * math.log(q / p)
                for p_row, q_row in zip(s, t, strict=True)
                for p, q in zip(p_row, q_row, strict=True)
            )
            total += instance_weight * T**2 * kl / images
            for i in range(images):
                for j in range(images):
                    total += batch_weight * (np.dot(t[i], t[j]) - np.dot(s[i], s[j])) ** 2 / images
            for a in range(classes):
                for b in range(classes):
                    own, other = (sum(row[a] * row[b] for row in side) for side in (s, t))
                    total += class_weight * (other - own) ** 2 / classes
        return total


def test_case_by_hand():
    # One image, two classes, T = 1: p_t = (3/4, 1/4), p_s = (1/2, 1/2).
    # KL = 3/4 ln(3/2) + 1/4 ln(1/2). Image: 10/16 - 8/16 = 1/8, squared, over B = 1: 1/64.
    # Classes: [[9, 3], [3, 1]] / 16 - [[4, 4], [4, 4]] / 16 = [[5, -1], [-1, -3]] / 16; its squares over C = 2:
    # (25 + 1 + 1 + 9) / 256 / 2 = 9/128.
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    kl = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(multi_level_kd(student, teacher, [1.0], 1, 0, 0)) == pytest.approx(kl, rel=1e-5)
    assert float(multi_level_kd(student, teacher, [1.0], 0, 1, 0)) == pytest.approx(1 / 64, rel=1e-5)
    assert float(multi_level_kd(student, teacher, [1.0], 0, 0, 1)) == pytest.approx(9 / 128, rel=1e-5)
    assert float(multi_level_kd(student, teacher, [1.0])) == pytest.approx(kl + 1 / 64 + 9 / 128, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.7, 4.0])
def test_the_instance_level_alone_is_logit_kd(temperature):
    student, teacher = torch.randn(6, 10, dtype=torch.float64), torch.randn(6, 10, dtype=torch.float64)
    expected = float(logit_kd(student, teacher, temperature))
    assert float(multi_level_kd(student, teacher, [temperature], 1, 0, 0)) == pytest.approx(expected, rel=1e-12)


def test_the_factor_of_the_squared_temperature_is_on_the_instance_level_only():
    # Scaling logits and temperature alike leaves all probabilities as they are.
    student, teacher = torch.randn(6, 10, dtype=torch.float64), torch.randn(6, 10, dtype=torch.float64)
    for weights, factor in (((1, 0, 0), 9.0), ((0, 1, 0), 1.0), ((0, 0, 1), 1.0)):
        once = float(multi_level_kd(student, teacher, [1.0], *weights))
        scaled = float(multi_level_kd(3 * student, 3 * teacher, [3.0], *weights))
        assert scaled == pytest.approx(factor * once, rel=1e-10)


def test_the_gram_terms_grow_with_the_batch_and_the_instance_level_does_not():
    student, teacher = torch.randn(4, 10, dtype=torch.float64), torch.randn(4, 10, dtype=torch.float64)
    for weights, factor in (((1, 0, 0), 1.0), ((0, 1, 0), 2.0), ((0, 0, 1), 4.0)):
        once = float(multi_level_kd(student, teacher, [2.0], *weights))
        twice = float(multi_level_kd(student.repeat(2, 1), teacher.repeat(2, 1), [2.0], *weights))
        assert twice == pytest.approx(factor * once, rel=1e-10)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_extreme_narrow_logits_stay_finite(dtype):
    student, teacher = (torch.tensor([[60.0, -60.0, 0.0]], dtype=dtype) * sign for sign in (1, -1))
    assert torch.isfinite(multi_level_kd(student, teacher, [0.5, 4.0]))


def test_no_temperatures_are_an_error():
    with pytest.raises(ValueError, match="temperatures is empty"):
        multi_level_kd(torch.zeros(1, 2), torch.zeros(1, 2), [])


def test_the_defaults_are_those_of_the_source():
    keys = build_method("mlld").method.config
    assert (keys.ce_weight, keys.kd_weight) == (0.1, 0.9)
    assert keys.temperatures == [2, 3, 4, 5, 6]
    assert (keys.instance_weight, keys.batch_weight, keys.class_weight) == (1, 1, 1)


@pytest.mark.parametrize("overrides", [(), ("student=resnet8", "teacher=resnet18")])
def test_the_total_is_the_weighted_sum_of_finite_terms(overrides):
    built = build_method("mlld", *overrides, batch_size=4)
    result = built.step()
    terms = {name: value.item() for name, value in result.terms.items()}
    assert all(math.isfinite(value) for value in terms.values())
    assert terms["total"] == pytest.approx(0.1 * terms["ce"] + 0.9 * terms["kd"], rel=1e-6)
    result.terms["total"].backward()
    assert all(parameter.grad is not None for parameter in built.student.parameters())


def test_only_the_gram_terms_need_the_whole_batch():
    assert build_method("mlld").method.requires.whole_batch
    assert build_method("mlld", "method.batch_weight=0").method.requires.whole_batch
    assert not build_method("mlld", "method.batch_weight=0", "method.class_weight=0").method.requires.whole_batch


@pytest.mark.parametrize(
    ("overrides", "code", "key"),
    [
        (["method.temperatures=[]"], "out_of_range", "method.temperatures"),
        (["method.temperatures=[2,0]"], "out_of_range", "method.temperatures"),
        (["method.temperatures=[2,nan]"], "out_of_range", "method.temperatures"),
        (["method.batch_weight=-1"], "out_of_range", "method.batch_weight"),
        ([f"method.{level}_weight=0" for level in ("instance", "batch", "class")], "no_loss", "method.instance_weight"),
    ],
)
def test_keys_out_of_range_are_errors(overrides, code, key):
    with pytest.raises(ConfigError) as error:
        build_method("mlld", *overrides)
    assert (error.value.code, error.value.key) == (code, key)
