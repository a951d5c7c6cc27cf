import numpy as np
import pytest
import torch
from torch import nn

from kdbench.errors import ConfigError
from kdbench.methods import HintRegression, hint_regression
from tests.conftest import rest_wide
from tests.methods.built import build_method
from tests.methods.conformance import LossTests

PAIRS = {
    "default": (),
    "other widths": ("student=resnet8", "teacher=resnet18"),
    "tokens": ("student=resnet8", "teacher=vit", "method.pairs={layer3: layer2}"),
}


class TestHintRegression(LossTests):
    method = HintRegression

    def inputs(self, draw):
        return [draw(3, 4, 5, 5), draw(3, 2, 2, 3)], [draw(3, 4, 5, 5), draw(3, 2, 2, 3)]

    def loss(self, student, teacher):
        return hint_regression(student, teacher)

    def reference(self, student, teacher):
        stages = []
        for s, t in zip(student, teacher, strict=True):
            total = sum((s[index] - t[index]) ** 2 for index in np.ndindex(s.shape))
            stages.append(total / s.size)
        return sum(stages) / len(stages)


def test_case_by_hand():
    # Stage 1: squares 1 and 9, mean 5. Stage 2: square 4. Mean over the stages: 4.5.
    student = [torch.tensor([1.0, 3.0]).reshape(1, 2, 1, 1), torch.tensor([2.0]).reshape(1, 1, 1, 1)]
    teacher = [torch.zeros(1, 2, 1, 1), torch.zeros(1, 1, 1, 1)]
    assert float(hint_regression(student, teacher)) == 4.5


def test_the_larger_map_is_pooled_to_the_smaller():
    large, small = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    expected = float((large.reshape(2, 3, 4, 2, 4, 2).mean((3, 5)) - small).square().mean())
    assert float(hint_regression([large], [small])) == pytest.approx(expected)
    assert float(hint_regression([small], [large])) == pytest.approx(expected)


def test_large_half_precision_maps_do_not_overflow():
    student, teacher = (torch.full((2, 3, 4, 4), value, dtype=torch.float16) for value in (300.0, -300.0))
    assert float(hint_regression([student], [teacher])) == pytest.approx(360_000)


def test_different_numbers_of_stages_are_an_error():
    one = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="1 student maps and 2 teacher maps"):
        hint_regression([one], [one, one])


def test_defaults_are_one_stage_with_weight_100():
    built = build_method("fitnet")
    config = built.config.method.params
    assert (config.ce_weight, config.kd_weight, config.pairs) == (1, 100, None)
    assert built.method.requires.student_stages == built.method.requires.teacher_stages == ("layer2",)


@pytest.mark.parametrize("overrides", rest_wide((pair,) for pair in PAIRS.values()), ids=PAIRS)
def test_a_step_trains_every_parameter_of_the_regressor(overrides):
    built = build_method("fitnet", *overrides, "method.ce_weight=0.5", "method.kd_weight=3")
    terms = built.step().terms
    assert terms.keys() == {"total", "ce", "kd"}
    assert terms["total"].item() == pytest.approx(0.5 * terms["ce"].item() + 3 * terms["kd"].item())
    terms["kd"].backward()
    parameters = list(built.method.parameters())
    assert len(parameters) == 3  # weights of the convolution; weight and bias of the batch norm
    assert all(float(p.grad.abs().sum()) > 0 for p in parameters)
    assert any(p.grad is not None for p in built.student.parameters())


def test_the_regressor_is_a_1x1_convolution_with_batch_norm_and_relu_on_the_pooled_map():
    built = build_method("fitnet", "student=resnet8", "teacher=resnet18", "method.pairs={layer1: layer2}")
    built.step()  # initialises the running statistics
    (regressor,) = built.method.pairs.projections
    assert [type(module) for module in regressor] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    weight = regressor[0].weight
    assert weight.shape == (128, 16, 1, 1)
    features = built.student(built.batch.images).features["layer1"]
    pooled = features.reshape(16, 16, 16, 2, 16, 2).mean((3, 5))
    mapped = torch.einsum("oc,bchw->bohw", weight[:, :, 0, 0], pooled)
    mean, variance = mapped.mean((0, 2, 3), keepdim=True), mapped.var((0, 2, 3), unbiased=False, keepdim=True)
    regressed = ((mapped - mean) / (variance + 1e-5).sqrt()).clamp(min=0)
    expected = (regressed - built.teacher(built.batch).features["layer2"]).square().mean()
    assert built.step().terms["kd"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_networks_without_layer2_need_pairs():
    with pytest.raises(ConfigError) as error:
        build_method("fitnet", "method.pairs={layer2: layer9}")
    assert (error.value.code, error.value.key) == ("unknown_stage", "method.pairs")


def test_an_empty_mapping_of_pairs_is_refused():
    with pytest.raises(ConfigError) as error:
        build_method("fitnet", "method.pairs={}")
    assert (error.value.code, error.value.key) == ("out_of_range", "method.pairs")
