import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdbench.errors import ConfigError
from kdbench.methods import KnowledgeReview, hierarchical_context
from kdbench.methods.review import AttentionFusion, resize
from tests.conftest import rest_wide
from tests.methods.built import build_method
from tests.methods.conformance import LossTests

PAIRS = {
    "default": (),
    "other widths": ("student=resnet8", "teacher=resnet18"),
    "tokens": ("student=resnet8", "teacher=vit", "method.pairs={layer3: layer2}"),
}


def pooled(maps, side):
    """Average adaptively: cell i runs from floor(i * H / side) to ceil((i + 1) * H / side)."""
    height, width = maps.shape[2:]
    result = np.empty((*maps.shape[:2], side, side))
    for y, x in np.ndindex(side, side):
        top, bottom = y * height // side, -(-(y + 1) * height // side)
        left, right = x * width // side, -(-(x + 1) * width // side)
        result[:, :, y, x] = maps[:, :, top:bottom, left:right].mean((2, 3))
    return result


class TestHierarchicalContext(LossTests):
    """Sides 7, 4, 3, 2 and 1, and a map that is no square: every number of levels."""

    method = KnowledgeReview

    def inputs(self, draw):
        shapes = [(2, 3, 7, 7), (2, 2, 4, 4), (2, 2, 3, 3), (2, 2, 2, 2), (2, 3, 1, 1), (2, 2, 5, 3)]
        return [draw(*shape) for shape in shapes], [draw(*shape) for shape in shapes]

    def loss(self, student, teacher):
        return hierarchical_context(student, teacher)

    def reference(self, student, teacher):
        levels_of_side = {7: [4, 2, 1], 4: [2, 1], 3: [2, 1], 2: [1], 1: []}
        total = 0.0
        for s, t in zip(student, teacher, strict=True):
            numerator, denominator = ((s - t) ** 2).mean(), 1.0
            for i, level in enumerate(levels_of_side[min(s.shape[2:])]):
                numerator += 2.0 ** -(i + 1) * ((pooled(s, level) - pooled(t, level)) ** 2).mean()
                denominator += 2.0 ** -(i + 1)
            total += numerator / denominator
        return total


def test_case_by_hand():
    # Differences (2, 0; 0, 0): MSE 1. Pooled to 1 x 1: 0.5, squared 0.25. (1 + 1/2 * 0.25) / (1 + 1/2) = 0.75.
    student = torch.tensor([[2.0, 0.0], [0.0, 0.0]]).reshape(1, 1, 2, 2)
    assert float(hierarchical_context([student], [torch.zeros(1, 1, 2, 2)])) == 0.75


def test_levels_as_large_as_the_map_are_left_out_and_weights_start_at_a_half():
    # Differences that every pooling averages to 0: only the first term remains, divided by 1 + 1/2 + 1/4.
    signs = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 2).reshape(1, 1, 4, 4)
    assert float(hierarchical_context([signs], [torch.zeros(1, 1, 4, 4)])) == pytest.approx(1 / 1.75)


def test_a_constant_difference_has_the_same_loss_at_every_size():
    for side in (1, 2, 3, 4, 5, 8):
        ones = torch.ones(2, 3, side, side)
        assert float(hierarchical_context([3 * ones], [ones])) == pytest.approx(4)


def test_stages_are_summed_not_averaged():
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    once, twice = (float(hierarchical_context([student] * n, [teacher] * n)) for n in (1, 2))
    assert twice == pytest.approx(2 * once)


def test_the_larger_map_is_pooled_to_the_smaller():
    large, small = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4)
    expected = float(hierarchical_context([large.reshape(2, 3, 4, 2, 4, 2).mean((3, 5))], [small]))
    assert float(hierarchical_context([large], [small])) == pytest.approx(expected)


def test_different_numbers_of_stages_are_an_error():
    one = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="1 student maps and 2 teacher maps"):
        hierarchical_context([one], [one, one])


def test_maps_are_averaged_to_smaller_and_repeated_to_larger_sizes():
    maps = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert resize(maps, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert torch.equal(resize(maps, (8, 8)), maps.repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert resize(maps, (4, 4)) is maps
    assert resize(maps, (2, 8)).shape == (1, 1, 2, 8)


def test_fusion_adds_both_maps_with_weights_per_position():
    torch.manual_seed(0)
    fusion = AttentionFusion(in_channels=3, width=4, out_channels=5, fuses=True).double().eval()
    maps, deeper = torch.randn(2, 3, 4, 4).double(), torch.randn(2, 4, 2, 2).double()
    output, fused = fusion(maps, deeper, (4, 4))
    own = torch.einsum("oc,bchw->bohw", fusion.reduction[0].weight[:, :, 0, 0], maps) / (1 + 1e-5) ** 0.5
    other = deeper.repeat_interleave(2, 2).repeat_interleave(2, 3)
    weight, bias = fusion.attention[0].weight[:, :, 0, 0], fusion.attention[0].bias
    attention = 1 / (
        1 + (-(torch.einsum("oc,bchw->bohw", weight, torch.cat([own, other], 1)) + bias[:, None, None])).exp()
    )
    assert torch.allclose(fused, attention[:, :1] * own + attention[:, 1:] * other)
    assert torch.allclose(output, F.conv2d(fused, fusion.output[0].weight, padding=1) / (1 + 1e-5) ** 0.5)


def test_defaults_ramp_over_20_epochs_to_weight_5():
    built = build_method("review", "student=resnet8", "teacher=resnet18")
    config = built.config.method.params
    assert (config.ce_weight, config.kd_weight, config.ramp_epochs, config.pairs) == (1, 5, 20, None)
    assert built.method.requires.student_stages == ("layer1", "layer2", "layer3")


@pytest.mark.parametrize(("epoch", "factor"), [(0, 1 / 20), (9, 0.5), (19, 1.0), (40, 1.0)])
def test_the_weight_of_the_kd_term_ramps_from_epoch_1_of_20(epoch, factor):
    terms = build_method("review").step(epoch).terms
    expected = terms["ce"].item() + 5 * factor * terms["kd"].item()
    assert terms["total"].item() == pytest.approx(expected, rel=1e-5)


def test_without_ramp_the_weight_is_whole_from_the_beginning():
    terms = build_method("review", "method.ramp_epochs=0", "method.ce_weight=0.5").step().terms
    assert terms["total"].item() == pytest.approx(0.5 * terms["ce"].item() + 5 * terms["kd"].item(), rel=1e-5)


@pytest.mark.parametrize("overrides", rest_wide((pair,) for pair in PAIRS.values()), ids=PAIRS)
def test_a_step_trains_every_parameter_of_the_fusions(overrides):
    built = build_method("review", *overrides)
    terms = built.step().terms
    assert terms.keys() == {"total", "ce", "kd"}
    assert torch.isfinite(terms["total"])
    terms["kd"].backward()
    parameters = list(built.method.parameters())
    stages = len(built.method.pairs.pairs)
    assert len(parameters) == 8 * stages - 2  # convolution, batch norm, attention except in the deepest, both again
    assert all(float(p.grad.abs().sum()) > 0 for p in parameters)
    assert any(p.grad is not None and p.grad.any() for p in built.student.parameters())


@pytest.mark.parametrize("pairs", ["{layer1: layer2, layer3: layer4}", "{layer3: layer4, layer1: layer2}"])
def test_pairs_are_fused_from_the_deepest_stage_of_the_student_whatever_their_order(pairs):
    built = build_method("review", "student=resnet8", "teacher=resnet18", f"method.pairs={pairs}")
    shallow, deep = built.method.fusions
    assert (deep.attention, shallow.attention is None) == (None, False)
    assert [fusion.reduction[0].in_channels for fusion in (shallow, deep)] == [16, 64]
    assert [fusion.output[0].out_channels for fusion in (shallow, deep)] == [128, 512]
    assert {fusion.reduction[0].out_channels for fusion in (shallow, deep)} == {64}
    assert torch.isfinite(built.step().terms["kd"])  # sizes of the pairs differ: 32 and 16, 8 and 4


@pytest.mark.parametrize(("channels", "width"), [(64, 64), (512, 512), (600, 512)])
def test_the_common_width_is_that_of_the_deepest_stage_and_at_most_512(channels, width):
    built = build_method("review")
    student = dataclasses.replace(built.context.student, shapes={"layer1": (16, 8, 8), "layer2": (channels, 4, 4)})
    method = KnowledgeReview(built.config.method.params, dataclasses.replace(built.context, student=student))
    assert [fusion.reduction[0].out_channels for fusion in method.fusions] == [width, width]


def test_a_deeper_fused_map_changes_the_loss_of_shallower_stages_only():
    built = build_method("review")
    output, target = built.student(built.batch.images), built.teacher(built.batch)
    maps, targets = built.method.pairs(output, target, same_size=False)
    before = built.method.fuse(maps, targets)
    after = built.method.fuse([maps[0], maps[1] + torch.randn_like(maps[1]), maps[2]], targets)
    assert not torch.allclose(before[0], after[0])
    assert not torch.allclose(before[1], after[1])
    assert torch.equal(before[2], after[2])


@pytest.mark.parametrize(
    ("pairs", "code"),
    [("{layer9: layer1}", "unknown_stage"), ("{layer1: layer9}", "unknown_stage"), ("{pooled: pooled}", "mismatch")],
)
def test_stages_without_maps_are_an_error(pairs, code):
    with pytest.raises(ConfigError) as error:
        build_method("review", f"method.pairs={pairs}")
    assert (error.value.code, error.value.key) == (code, "method.pairs")
