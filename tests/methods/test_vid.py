import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from kdbench.methods import VariationalInformationDistillation, variational_information
from tests.conftest import rest_wide
from tests.methods.built import build_method
from tests.methods.conformance import LossTests

PAIRS = {
    "default": (),
    "other widths": ("student=resnet8", "teacher=resnet18"),
    "tokens": ("student=resnet8", "teacher=vit", "method.pairs={layer3: layer2}"),
}


class TestVariationalInformation(LossTests):
    """The side of the student is the predicted mean and the scales of the channels."""

    method = VariationalInformationDistillation

    def inputs(self, draw):
        return [draw(3, 4, 2, 3), 3 * draw(4)], [draw(3, 4, 2, 3)]

    def loss(self, student, teacher):
        return variational_information(student[0], teacher[0], student[1])

    def reference(self, student, teacher):
        mean, log_scale = student
        total = 0.0
        for image, channel, y, x in np.ndindex(mean.shape):
            variance = math.log(1 + math.exp(log_scale[channel])) + 1e-5
            squared = (mean[image, channel, y, x] - teacher[0][image, channel, y, x]) ** 2
            total += 0.5 * (squared / variance + math.log(variance))
        return total / mean.size

    def reordered(self, side, order):
        return [side[0][order], *side[1:]]


def test_case_by_hand():
    # v = softplus(log(e^4 - 1)) + 1e-5 = 4.00001. Difference 2: 0.5 * (4 / 4 + log 4) = 0.5 + 0.6931 = 1.1931.
    log_scale = torch.tensor([math.log(math.exp(4) - 1)])
    mean, target = torch.full((1, 1, 1, 1), 3.0), torch.ones(1, 1, 1, 1)
    assert float(variational_information(mean, target, log_scale)) == pytest.approx(1.1931, abs=1e-4)


def test_the_value_may_be_below_zero():
    zeros = torch.zeros(2, 3, 2, 2)
    assert float(variational_information(zeros, zeros, torch.full((3,), -5.0))) < 0


def test_embeddings_are_compared_like_maps_of_one_position():
    mean, target, log_scale = torch.randn(4, 3), torch.randn(4, 3), torch.randn(3)
    maps = variational_information(mean[..., None, None], target[..., None, None], log_scale)
    assert float(variational_information(mean, target, log_scale)) == pytest.approx(float(maps))


@pytest.mark.parametrize("log_scale", [-1e4, 1e4])
def test_extreme_scales_are_finite(log_scale):
    scale = torch.full((3,), log_scale, requires_grad=True)
    loss = variational_information(torch.ones(2, 3, 2, 2), torch.zeros(2, 3, 2, 2), scale)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(scale.grad).all()


def test_defaults_are_all_common_layers_with_trained_variances():
    built = build_method("vid", "student=resnet8", "teacher=resnet18")
    config = built.config.method.params
    assert (config.ce_weight, config.kd_weight, config.variant, config.pairs) == (1, 1, "paper", None)
    assert built.method.requires.student_stages == ("layer1", "layer2", "layer3")


@pytest.mark.parametrize("variant", ["paper", "mdistiller"])
def test_variances_start_at_5_one_per_channel_of_the_teacher(variant):
    built = build_method("vid", "student=resnet8", "teacher=resnet18", f"method.variant={variant}")
    scales = [module.log_scale for module in built.method.scales]
    assert [len(scale) for scale in scales] == [64, 128, 256]
    for scale in scales:
        assert torch.allclose(F.softplus(scale) + 1e-5, torch.tensor(5.0))


@pytest.mark.parametrize("overrides", rest_wide((pair,) for pair in PAIRS.values()), ids=PAIRS)
def test_a_step_trains_every_parameter_variances_included(overrides):
    built = build_method("vid", *overrides, "method.ce_weight=0.5", "method.kd_weight=3")
    terms = built.step().terms
    assert terms.keys() == {"total", "ce", "kd"}
    assert terms["total"].item() == pytest.approx(0.5 * terms["ce"].item() + 3 * terms["kd"].item())
    terms["kd"].backward()
    parameters = dict(built.method.named_parameters())
    stages = len(built.method.pairs.pairs)
    assert sum(name.endswith("log_scale") for name in parameters) == stages
    assert len(parameters) == 4 * stages  # three convolutions and the scales
    assert all(float(p.grad.abs().sum()) > 0 for p in parameters.values())
    assert any(p.grad is not None and p.grad.any() for p in built.student.parameters())


def test_the_variant_mdistiller_does_not_train_the_variances_and_stores_them():
    paper, peer = build_method("vid"), build_method("vid", "method.variant=mdistiller")
    assert not [name for name, _ in peer.method.named_parameters() if "log_scale" in name]
    assert paper.method.state_dict().keys() == peer.method.state_dict().keys()
    assert paper.step().terms["total"].item() == peer.step().terms["total"].item()


def test_stages_are_summed():
    built = build_method("vid", "method.pairs={layer1: layer1, layer3: layer3}")
    output, target = built.student(built.batch.images), built.teacher(built.batch)
    losses = []
    for i, stage in enumerate(("layer1", "layer3")):
        mean = built.method.pairs.projections[i](output.features[stage])
        losses.append(0.5 * ((mean - target.features[stage]).square() / 5 + math.log(5)).mean())
    assert built.step().terms["kd"].item() == pytest.approx(sum(losses).item(), rel=1e-4)


def test_the_regressor_has_three_convolutions_with_relu_between():
    built = build_method("vid", "student=resnet8", "teacher=resnet18", "method.pairs={layer1: layer1}")
    (regressor,) = built.method.pairs.projections
    inner = [nn.Conv2d, nn.ReLU]
    assert [type(module) for module in regressor] == [*inner, *inner, nn.Conv2d]
    convolutions = [module for module in regressor if isinstance(module, nn.Conv2d)]
    assert [tuple(c.weight.shape) for c in convolutions] == [(64, 16, 1, 1), (64, 64, 1, 1), (64, 64, 1, 1)]
