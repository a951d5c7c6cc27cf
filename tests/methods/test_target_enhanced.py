import math

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.errors import ConfigError
from kdbench.methods import logit_kd, target_enhanced_kd, target_enhanced_kd_of_paper
from kdbench.methods.target_enhanced import TargetEnhancedDistillation, build_exit, exit_shapes
from tests.methods.built import build_method
from tests.methods.conformance import LossTests


def softmax(row, temperature):
    e = np.exp((row - row.max()) / temperature)
    return e / e.sum()


class TestTargetEnhanced(LossTests):
    """The teacher's second tensor gives the labels: its largest column."""

    method = TargetEnhancedDistillation
    authors = True
    settings = (
        {"temperature": 1.0, "exponent": 1.0},
        {"temperature": 1.0, "exponent": 1.5},
        {"temperature": 3.0, "exponent": 0.7},
    )

    def inputs(self, draw):
        return [3 * draw(6, 7)], [3 * draw(6, 7), draw(6, 7)]

    def loss(self, student, teacher, **setting):
        return target_enhanced_kd(student[0], teacher[0], teacher[1].detach().argmax(1), **setting)

    def reference(self, student, teacher, temperature, exponent):
        total = 0.0
        for z_s, z_t, scores in zip(student[0], teacher[0], teacher[1], strict=True):
            p_s, p_t, label = softmax(z_s, temperature), softmax(z_t, temperature), scores.argmax()
            for c in range(len(z_s)):
                if c == label:
                    weight = (1 + p_t[c]) ** exponent - 1
                else:
                    weight = p_t[c] ** exponent if self.authors else p_t[c]
                total -= weight * math.log(p_s[c])
        return total / len(student[0])


class TestTargetEnhancedOfPaper(TestTargetEnhanced):
    settings = ({"temperature": 2.0, "exponent": 1.5},)
    authors = False

    def loss(self, student, teacher, **setting):
        return target_enhanced_kd_of_paper(student[0], teacher[0], teacher[1].detach().argmax(1), **setting)


def test_case_by_hand():
    # p_t = (3/4, 1/4), p_s = (1/2, 1/2), e = 2. Label 0: w = ((7/4)^2 - 1, 1/16) = (33/16, 1/16), loss 34/16 ln 2.
    # Label 1: w = (9/16, (5/4)^2 - 1) = (9/16, 9/16), loss 18/16 ln 2. Paper, label 0: (33/16 + 4/16) ln 2.
    student, teacher = torch.zeros(1, 2), torch.tensor([[math.log(3.0), 0.0]])
    first, second = torch.tensor([0]), torch.tensor([1])
    assert float(target_enhanced_kd(student, teacher, first, 1.0, 2.0)) == pytest.approx(34 / 16 * math.log(2))
    assert float(target_enhanced_kd(student, teacher, second, 1.0, 2.0)) == pytest.approx(18 / 16 * math.log(2))
    paper = target_enhanced_kd_of_paper(student, teacher, first, 1.0, 2.0)
    assert float(paper) == pytest.approx(37 / 16 * math.log(2))


@pytest.mark.parametrize("form", [target_enhanced_kd, target_enhanced_kd_of_paper])
def test_with_exponent_and_temperature_1_it_is_logit_kd_plus_the_teachers_entropy(form):
    student, teacher = torch.randn(8, 10, dtype=torch.float64), torch.randn(8, 10, dtype=torch.float64)
    p = torch.softmax(teacher, 1)
    expected = float(logit_kd(student, teacher, 1.0)) - float((p * p.log()).sum(1).mean())
    labels = torch.randint(10, (8,))
    assert float(form(student, teacher, labels, 1.0, 1.0)) == pytest.approx(expected, rel=1e-12)


def test_there_is_no_factor_of_the_squared_temperature():
    student, teacher = torch.randn(8, 10, dtype=torch.float64), torch.randn(8, 10, dtype=torch.float64)
    labels = torch.randint(10, (8,))
    once = float(target_enhanced_kd(student, teacher, labels, 1.0, 1.5))
    assert float(target_enhanced_kd(4 * student, 4 * teacher, labels, 4.0, 1.5)) == pytest.approx(once, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_extreme_narrow_logits_stay_finite(dtype):
    student = torch.tensor([[60.0, -60.0, 0.0]], dtype=dtype, requires_grad=True)
    loss = target_enhanced_kd(student, -student.detach(), torch.tensor([0]), 1.0, 1.5)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(student.grad).all()


# Exits


def test_an_exit_halves_the_map_once_per_later_stage_and_ends_at_the_given_width():
    head = build_exit((16, 32, 32), later=2, width=64, num_classes=10)
    maps = torch.randn(2, 16, 32, 32)
    assert [head[:n](maps).shape[1:] for n in (1, 2)] == [(32, 16, 16), (64, 8, 8)]
    assert head(maps).shape == (2, 10)


def test_the_last_stage_has_an_exit_of_a_1x1_convolution():
    head = build_exit((64, 8, 8), later=0, width=256, num_classes=10)
    assert isinstance(head[0], nn.Conv2d)
    assert head[0].weight.shape == (256, 64, 1, 1)
    assert head(torch.randn(2, 64, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(("side", "blocks"), [(8, 2), (7, 2), (2, 0), (1, 0)])
def test_maps_of_2x2_are_not_reduced_further(side, blocks):
    head = build_exit((32, side, side), later=11, width=64, num_classes=10)
    assert sum(isinstance(part, nn.Sequential) for part in head) == blocks
    assert head(torch.randn(2, 32, side, side)).shape == (2, 10)


# The method


def check_step(built, exits):
    result = built.step()
    terms = {name: value.item() for name, value in result.terms.items()}
    assert all(math.isfinite(value) for value in terms.values())
    assert len(built.method.exits) == exits
    assert terms["kd"] == pytest.approx(terms["final"] + terms["exits"], rel=1e-6)
    assert terms["total"] == pytest.approx(terms["ce"] + terms["kd"], rel=1e-6)
    result.terms["total"].backward()
    trained = [*built.student.parameters(), *built.method.parameters()]
    assert all(parameter.grad is not None for parameter in trained)
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in built.method.exits[0][-1].parameters())


def test_the_defaults_are_those_of_the_source_and_every_layer_has_an_exit():
    built = build_method("ofa")
    keys = built.method.config
    assert (keys.ce_weight, keys.kd_weight, keys.exit_weight) == (1, 1, 1)
    assert (keys.temperature, keys.exponent, keys.variant) == (1, 1, "authors")
    assert built.method.requires.student_stages == ("layer1", "layer2", "layer3")
    assert not built.method.requires.whole_batch
    check_step(built, exits=3)


@pytest.mark.parametrize(
    ("overrides", "exits"),
    [
        (["student=resnet8", "teacher=resnet18"], 3),
        (["student=vit", "teacher=resnet8", "method.stages=[layer1,layer3]"], 2),
    ],
)
def test_it_works_for_other_networks_and_for_tokens(overrides, exits):
    check_step(build_method("ofa", *overrides, batch_size=4), exits)


def test_exits_are_as_wide_as_the_wider_networks_last_stage():
    built = build_method("ofa", "student=resnet8", "teacher=vit", batch_size=4)
    assert {head[-1].in_features for head in built.method.exits} == {192}


def test_the_terms_are_the_losses_of_the_logits_and_of_the_exits():
    built = build_method("ofa", "method.stages=[layer2]", "method.exit_weight=0.5", "method.exponent=1.5", batch_size=4)
    output, teacher = built.student(built.batch.images), built.teacher(built.batch).get_logits()
    terms = built.method(output, [built.teacher(built.batch)], built.batch, None).terms
    with torch.no_grad():
        exit_logits = built.method.exits[0](output.features["layer2"])
        final, on_exit = (
            target_enhanced_kd(logits, teacher, built.batch.labels, 1.0, 1.5).item()
            for logits in (output.logits, exit_logits)
        )
    assert terms["final"].item() == pytest.approx(final, rel=1e-5)
    assert terms["exits"].item() == pytest.approx(on_exit, rel=1e-5)
    assert terms["kd"].item() == pytest.approx(final + 0.5 * on_exit, rel=1e-5)


def test_inference_is_without_exits():
    built = build_method("ofa", "method.stages=[layer3]", batch_size=4)
    assert built.method.inference_state() == {}
    output = built.student.eval()(built.batch.images)
    assert torch.equal(built.predict(), output.logits.detach())


def test_it_is_not_defined_for_mixed_labels():
    assert not TargetEnhancedDistillation.soft_labels


@pytest.mark.parametrize(
    ("overrides", "code", "key"),
    [
        (["method.stages=[layer9]"], "unknown_stage", "method.stages"),
        (["method.stages=[]"], "out_of_range", "method.stages"),
        (["method.stages=[layer1,layer1]"], "out_of_range", "method.stages"),
        (["method.exponent=0"], "out_of_range", "method.exponent"),
        (["method.temperature=0"], "out_of_range", "method.temperature"),
        (["method.variant=code"], "out_of_range", "method.variant"),
    ],
)
def test_keys_out_of_range_are_errors(overrides, code, key):
    with pytest.raises(ConfigError) as error:
        build_method("ofa", *overrides)
    assert (error.value.code, error.value.key) == (code, key)


def test_a_student_without_layers_is_an_error():
    student = build_method("ofa", "method.stages=[layer3]").context.student
    with pytest.raises(ConfigError) as error:
        exit_shapes([], student)
    assert (error.value.code, error.value.key) == ("unknown_stage", "method.stages")
