import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kdbench.methods import NeuronSelectivityTransfer, neuron_selectivity
from tests.conftest import rest_wide
from tests.methods.built import build_method
from tests.methods.conformance import LossTests

PAIRS = {
    "default": (),
    "other widths": ("student=resnet8", "teacher=resnet18"),
    "tokens": ("student=resnet8", "teacher=vit", "method.pairs={layer3: layer2}"),
}


def kernel_mean(a, b):
    """Return the mean kernel over all pairs of channels of two maps [C, H, W] of an image."""
    values = []
    for one in a.reshape(len(a), -1):
        for other in b.reshape(len(b), -1):
            values.append(((one / np.linalg.norm(one)) @ (other / np.linalg.norm(other))) ** 2)
    return sum(values) / len(values)


def reference(student, teacher):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        images = [kernel_mean(a, a) + kernel_mean(b, b) - 2 * kernel_mean(a, b) for a, b in zip(s, t, strict=True)]
        total += sum(images) / len(images)
    return total


class TestNeuronSelectivity(LossTests):
    """More channels than positions, more positions than channels, different numbers of channels."""

    method = NeuronSelectivityTransfer

    def inputs(self, draw):
        student = [draw(3, 8, 2, 2), draw(3, 2, 3, 4), draw(3, 3, 2, 2), draw(3, 4, 3, 3)]
        return student, [draw(3, 8, 2, 2), draw(3, 2, 3, 4), draw(3, 6, 2, 2), draw(3, 3, 3, 3)]

    def loss(self, student, teacher):
        return neuron_selectivity(student, teacher)

    def reference(self, student, teacher):
        return reference(student, teacher)


def test_case_by_hand():
    # Two positions. Student channels (1, 0) and (0, 2), teacher channel (1, 1) / sqrt 2.
    # k within the student: 1, 0, 0, 1, mean 1/2; within the teacher: 1; mixed: 1/2, 1/2. 1/2 + 1 - 2 * 1/2 = 1/2.
    student = torch.tensor([[1.0, 0.0], [0.0, 2.0]]).reshape(1, 2, 1, 2)
    teacher = torch.tensor([[3.0, 3.0]]).reshape(1, 1, 1, 2)
    assert float(neuron_selectivity([student], [teacher])) == pytest.approx(0.5)


@pytest.mark.parametrize("shape", [(4, 8, 3, 3), (4, 8, 2, 2)])
def test_identical_maps_give_exactly_zero_in_float32(shape):
    maps = torch.rand(shape)
    assert float(neuron_selectivity([maps], [maps.clone()])) == 0


def test_the_order_of_channels_does_not_matter():
    student, teacher = torch.randn(2, 5, 4, 4), torch.randn(2, 5, 4, 4)
    expected = float(neuron_selectivity([student], [teacher]))
    assert float(neuron_selectivity([student.flip(1)], [teacher.roll(1, 1)])) == pytest.approx(expected, rel=1e-5)


def test_stages_are_summed_not_averaged():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    once, twice = (float(neuron_selectivity([student] * n, [teacher] * n)) for n in (1, 2))
    assert twice == pytest.approx(2 * once)


@pytest.mark.parametrize(("channels", "side"), [(12, 2), (12, 5)])
def test_no_tensor_holds_every_pair_of_channels_at_every_position(channels, side):
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            sizes.append(result.numel() if isinstance(result, torch.Tensor) else 0)
            return result

    maps = torch.randn(2, channels, side, side)
    with Sizes():
        neuron_selectivity([maps], [maps + 1])
    assert max(sizes) <= 2 * channels * max(channels, side * side)


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 16, 2, 2)])
def test_dead_channels_have_finite_loss_and_gradient(shape):
    student = torch.zeros(shape, requires_grad=True)
    loss = neuron_selectivity([student], [torch.rand(shape)])
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("teacher_is_larger", [True, False])
def test_the_larger_map_is_pooled_to_the_smaller(teacher_is_larger):
    large, small = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    pooled = large.reshape(2, 3, 2, 2, 2, 2).mean((3, 5))
    expected = reference([pooled.numpy()], [small.numpy()])
    pair = (small, large) if teacher_is_larger else (large, small)
    assert float(neuron_selectivity([pair[0]], [pair[1]])) == pytest.approx(expected)


def test_different_numbers_of_stages_are_an_error():
    one = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="1 student maps and 2 teacher maps"):
        neuron_selectivity([one], [one, one])


def test_defaults_are_all_common_layers_with_weight_50():
    built = build_method("nst", "student=resnet8", "teacher=resnet18")
    config = built.config.method.params
    assert (config.ce_weight, config.kd_weight, config.pairs) == (1, 50, None)
    assert built.method.requires.student_stages == ("layer1", "layer2", "layer3")


@pytest.mark.parametrize("overrides", rest_wide((pair,) for pair in PAIRS.values()), ids=PAIRS)
def test_a_step_has_the_terms_of_its_weights(overrides):
    built = build_method("nst", *overrides, "method.ce_weight=0.5", "method.kd_weight=3")
    terms = built.step().terms
    assert terms.keys() == {"total", "ce", "kd"}
    assert terms["total"].item() == pytest.approx(0.5 * terms["ce"].item() + 3 * terms["kd"].item())
    terms["kd"].backward()
    assert not list(built.method.parameters())
    assert any(p.grad is not None and p.grad.any() for p in built.student.parameters())
