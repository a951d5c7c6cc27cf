import numpy as np
import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods import AttentionTransfer, attention_transfer
from tests.conftest import rest_wide
from tests.methods.built import build_method
from tests.methods.conformance import LossTests

PAIRS = {
    "default": (),
    "other widths": ("student=resnet8", "teacher=resnet18"),
    "tokens": ("student=resnet8", "teacher=vit", "method.pairs={layer3: layer2}"),
}


def reference(student, teacher, power=2.0):
    """Compute the definition image by image and position by position."""
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        differences = []
        for image in range(len(s)):
            attentions = []
            for maps in (s[image], t[image]):
                channels, height, width = maps.shape
                q = [
                    sum(abs(maps[c, y, x]) ** power for c in range(channels)) / channels
                    for y in range(height)
                    for x in range(width)
                ]
                attentions.append(np.array(q) / np.sqrt(sum(value**2 for value in q)))
            differences.extend((attentions[0] - attentions[1]) ** 2)
        total += sum(differences) / len(differences)
    return total


class TestAttentionTransfer(LossTests):
    method = AttentionTransfer
    settings = ({}, {"power": 1.0}, {"power": 3.0})

    def inputs(self, draw):
        return [draw(3, 4, 3, 3), draw(3, 5, 2, 3)], [draw(3, 6, 3, 3), draw(3, 5, 2, 3)]

    def loss(self, student, teacher, **setting):
        return attention_transfer(student, teacher, **setting)

    def reference(self, student, teacher, **setting):
        return reference(student, teacher, **setting)

    def test_declared_invariant(self, setting, invariant):
        if invariant == "zero_for_identical":
            maps = self.drawn()[1]
            assert float(self.loss(maps, [values.clone() for values in maps], **setting)) == 0
        else:
            super().test_declared_invariant(setting, invariant)


def test_case_by_hand():
    # Two positions, one channel. Student (1, 1): Q = (0.7071, 0.7071). Teacher (3, 0): Q = (1, 0).
    # mean((0.2929)^2, (0.7071)^2) = (0.0858 + 0.5) / 2 = 0.2929.
    student, teacher = (torch.tensor(values).reshape(1, 1, 1, 2) for values in ([1.0, 1.0], [3.0, 0.0]))
    assert float(attention_transfer([student], [teacher])) == pytest.approx(0.29289, abs=1e-5)


def test_stages_are_summed_not_averaged():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    once, twice = (float(attention_transfer([student] * n, [teacher] * n)) for n in (1, 2))
    assert twice == pytest.approx(2 * once)


def test_a_stage_is_averaged_over_positions_and_images():
    student, teacher = torch.rand(2, 3, 4, 4) + 1, torch.rand(2, 3, 4, 4) + 1
    once = float(attention_transfer([student], [teacher]))
    repeated = float(attention_transfer([student.repeat(3, 1, 1, 1)], [teacher.repeat(3, 1, 1, 1)]))
    assert repeated == pytest.approx(once)
    # Every position twice: each Q shrinks by the root of 2, so the mean of squares halves.
    wide = float(attention_transfer([student.repeat(1, 1, 1, 2)], [teacher.repeat(1, 1, 1, 2)]))
    assert wide == pytest.approx(once / 2)


def test_the_number_of_channels_does_not_matter():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    expected = float(attention_transfer([student], [teacher]))
    assert float(attention_transfer([student], [teacher.repeat(1, 2, 1, 1)])) == pytest.approx(expected)


def test_maps_are_pooled_before_the_attention_is_taken():
    large, small = torch.randn(2, 3, 4, 4, dtype=torch.float64), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    pooled = large.reshape(2, 3, 2, 2, 2, 2).mean((3, 5))
    expected = reference([pooled.numpy()], [small.numpy()])
    assert float(attention_transfer([large], [small])) == pytest.approx(expected)
    assert float(attention_transfer([small], [large])) == pytest.approx(expected)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_maps_of_zeros_have_finite_loss_and_gradient(power):
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = attention_transfer([student], [torch.rand(2, 3, 4, 4)], power)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("power", [2.0, 16.0])
@pytest.mark.parametrize("value", [6e4, 1e-7])
def test_powers_of_large_and_small_half_precision_maps_neither_overflow_nor_underflow(power, value):
    student, teacher = torch.full((1, 2, 2, 2), value).half(), torch.ones(1, 2, 2, 2).half()
    assert float(attention_transfer([student], [teacher], power)) == pytest.approx(0, abs=1e-6)


def test_different_numbers_of_stages_are_an_error():
    one = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="1 student maps and 2 teacher maps"):
        attention_transfer([one], [one, one])


def test_defaults_are_all_common_layers_with_weight_1000():
    built = build_method("at", "student=resnet8", "teacher=resnet18")
    config = built.config.method.params
    assert (config.ce_weight, config.kd_weight, config.power, config.pairs) == (1, 1000, 2, None)
    assert built.method.requires.student_stages == ("layer1", "layer2", "layer3")


@pytest.mark.parametrize("overrides", rest_wide((pair,) for pair in PAIRS.values()), ids=PAIRS)
def test_a_step_has_the_terms_of_its_weights(overrides):
    built = build_method("at", *overrides, "method.ce_weight=0.5", "method.kd_weight=3")
    terms = built.step().terms
    assert terms.keys() == {"total", "ce", "kd"}
    assert terms["total"].item() == pytest.approx(0.5 * terms["ce"].item() + 3 * terms["kd"].item())
    terms["kd"].backward()
    assert not list(built.method.parameters())
    assert any(p.grad is not None and p.grad.any() for p in built.student.parameters())


def test_the_method_compares_the_networks_own_maps():
    built = build_method("at", "method.pairs={layer3: layer3}", "method.power=3", batch_size=4)
    student = built.student(built.batch.images).features["layer3"].detach().double().numpy()
    teacher = built.teacher(built.batch).features["layer3"].double().numpy()
    assert built.step().terms["kd"].item() == pytest.approx(reference([student], [teacher], 3.0), rel=1e-5)


def test_a_power_below_1_is_an_error():
    with pytest.raises(ConfigError) as error:
        build_method("at", "method.power=0.5")
    assert (error.value.code, error.value.key) == ("out_of_range", "method.power")
