import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kdbench.errors import ConfigError
from kdbench.methods import feature_kd
from kdbench.methods.feature import FeatureDistillation
from tests.methods.built import build_method
from tests.methods.conformance import LossTests


def reference(students, teachers, beta, normalize="none"):
    """Compute the definition in float64 NumPy, for maps of equal size."""
    squared, angular = [], []
    for student, teacher in zip(students, teachers, strict=True):
        s, t = np.asarray(student, float), np.asarray(teacher, float)
        if normalize == "teacher_std":
            scale = max(t.std(ddof=1), 1e-6)
            s, t = s / scale, t / scale
        squared.append(((s - t) ** 2).mean())
        a, b = s.mean((2, 3)), t.mean((2, 3))
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        angular.append((1 - cosine).mean())
    return float(np.mean(squared) + beta * np.mean(angular))


class TestFeatureKD(LossTests):
    method = FeatureDistillation
    settings = tuple({"beta": beta, "normalize": name} for beta in (0.0, 0.5, 3.0) for name in ("none", "teacher_std"))

    def inputs(self, draw):
        shapes = [(4, 5, 3, 3), (4, 6, 2, 2)]
        student, teacher = ([draw(*shape) + 0.3 for shape in shapes] for _ in range(2))
        return student, teacher

    def loss(self, student, teacher, **setting):
        return feature_kd(student, teacher, **setting)

    def reference(self, student, teacher, **setting):
        return reference(student, teacher, **setting)


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 8, 6, 6), (4, 16, 3, 3)]
    return [[torch.randn(s, generator=generator, dtype=torch.float64) + 0.3 for s in shapes] for _ in range(2)]


def test_case_by_hand():
    # One pixel, two channels: MSE of (1, 0) and (0, 1) is 1, and they stand at a right angle: 1 - cos = 1.
    student, teacher = (torch.tensor(v).reshape(1, 2, 1, 1) for v in ([1.0, 0.0], [0.0, 1.0]))
    assert float(feature_kd([student], [teacher], beta=0.5)) == pytest.approx(1.5)


def test_stages_are_averaged_not_summed(maps):
    student, teacher = maps
    once, twice = (feature_kd(student[:1] * n, teacher[:1] * n, 0.5) for n in (1, 2))
    assert float(once) == pytest.approx(float(twice))


@pytest.mark.parametrize("student_is_larger", [True, False])
def test_the_larger_map_is_pooled_to_the_smaller(student_is_larger):
    large, small = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    pooled = large.reshape(2, 3, 4, 2, 4, 2).mean((3, 5))
    pair, expected = ((large, small), (pooled, small)) if student_is_larger else ((small, large), (small, pooled))
    assert float(feature_kd([pair[0]], [pair[1]], 0.5)) == pytest.approx(
        reference([expected[0]], [expected[1]], 0.5), rel=1e-10
    )


def test_teacher_std_makes_the_scale_irrelevant(maps):
    student, teacher = maps
    plain = feature_kd(student, teacher, 0.5, "teacher_std")
    scaled = feature_kd([9 * m for m in student], [9 * m for m in teacher], 0.5, "teacher_std")
    assert float(plain) == pytest.approx(float(scaled), rel=1e-10)


def test_a_constant_teacher_map_does_not_cause_a_division_by_zero():
    assert torch.isfinite(feature_kd([torch.zeros(2, 3, 2, 2)], [torch.zeros(2, 3, 2, 2)], 0.5, "teacher_std"))


def test_half_precision_accumulates_in_float32():
    student, teacher = (torch.full((2, 3, 4, 4), v, dtype=torch.float16) for v in (300.0, -300.0))
    measured = feature_kd([student], [teacher], 0.0)  # the square of 600 has no float16
    assert measured.dtype == torch.float32
    assert float(measured) == pytest.approx(360_000)


def test_wrong_arguments_are_errors():
    one = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="1 student maps and 2 teacher maps"):
        feature_kd([one], [one, one], 0.5)
    with pytest.raises(ValueError, match="normalize is 'std'"):
        feature_kd([one], [one], 0.5, normalize="std")


def test_no_maps_are_an_error():
    with pytest.raises(ValueError, match="0 student maps and 0 teacher maps"):
        feature_kd([], [], 0.5)


def test_teacher_std_is_computed_over_the_whole_map_before_pooling():
    large, small = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    scale = float(large.numpy().std(ddof=1))
    pooled = large.reshape(2, 3, 4, 2, 4, 2).mean((3, 5))
    expected = reference([small / scale], [pooled / scale], 0.5)
    assert float(feature_kd([small], [large], 0.5, "teacher_std")) == pytest.approx(expected, rel=1e-10)


# The class


def stages_of(*overrides, networks=("student=resnet8", "teacher=resnet18")):
    """Return the pairs of stages that the method compares."""
    pairs = build_method("feature", *networks, *overrides, batch_size=2).method.pairs
    return list(zip(pairs.student_stages, pairs.teacher_stages, strict=True))


def test_the_defaults_are_those_of_the_study():
    assert dataclasses.asdict(build_method("feature").method.config) == {
        "alpha": 0.5, "ce_weight": None, "kd_weight": None, "beta": 0.5, "stages": None, "normalize": "none",
        "pairs": None,
    }  # fmt: skip


def test_stages_are_every_layer_that_both_have_or_those_that_are_named():
    # resnet8 has layer1 to layer3, resnet18 has layer4 too; both have `pooled`
    assert stages_of() == [("layer1", "layer1"), ("layer2", "layer2"), ("layer3", "layer3")]
    assert stages_of("method.stages=[layer2]") == [("layer2", "layer2")]
    assert stages_of("method.pairs={layer2: layer3}") == [("layer2", "layer3")]


def test_the_order_of_pairs_which_is_no_part_of_the_run_key_changes_nothing():
    values = ("{layer1: layer2, layer3: layer3}", "{layer3: layer3, layer1: layer2}")
    one, other = (build_method("feature", f"method.pairs={value}", batch_size=2).method for value in values)
    assert one.pairs.pairs == other.pairs.pairs
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_stages_and_pairs_together_are_an_error():
    with pytest.raises(ConfigError) as error:
        build_method("feature", "method.stages=[layer2]", "method.pairs={layer2: layer3}")
    assert (error.value.code, error.value.key) == ("mismatch", "method.pairs")


@pytest.mark.parametrize(
    ("setting", "code"),
    [
        ("method.stages=[layer4]", "unknown_stage"),  # of the teacher alone
        ("method.stages=[layer9]", "unknown_stage"),
        ("method.stages=[pooled]", "mismatch"),  # no map
        ("method.pairs={layer4: layer3}", "unknown_stage"),
        ("method.pairs={layer3: layer9}", "unknown_stage"),
    ],
)
def test_a_stage_that_is_no_map_of_its_network_is_an_error(setting, code):
    with pytest.raises(ConfigError) as error:
        build_method("feature", "student=resnet8", "teacher=resnet18", setting, batch_size=2)
    assert (error.value.code, error.value.key) == (code, setting.partition("=")[0])


def test_networks_without_a_common_layer_need_pairs():
    renamed = [*(f"~student.stages.layer{i}" for i in (1, 2, 3)), "+student.stages.early=layer1"]
    networks = ("student=resnet8", "teacher=resnet18", *renamed)
    with pytest.raises(ConfigError) as error:
        stages_of(networks=networks)
    assert (error.value.code, error.value.key) == ("unknown_stage", "method.pairs")
    assert stages_of("method.pairs={early: layer2}", networks=networks) == [("early", "layer2")]


def test_an_empty_list_of_stages_is_an_error():
    with pytest.raises(ConfigError) as error:
        build_method("feature", "method.stages=[]")
    assert (error.value.code, error.value.key) == ("out_of_range", "method.stages")


@pytest.mark.parametrize(
    ("networks", "shapes"),
    [
        (["teacher=resnet18"], [(64, 16, 1, 1), (128, 32, 1, 1), (256, 64, 1, 1)]),
        (["teacher=resnet18", "method.stages=[layer2]", "method.normalize=teacher_std"], [(128, 32, 1, 1)]),
        (["teacher=vit", "method.pairs={layer3: layer2}"], [(192, 64, 1, 1)]),
    ],
)
def test_the_total_is_the_weighted_sum_and_every_projection_is_trained(networks, shapes):
    keys = ["method.alpha=null", "method.ce_weight=0.5", "method.kd_weight=3"]
    built = build_method("feature", "student=resnet8", *networks, *keys, batch_size=4)
    output = built.step()
    terms = {name: float(term.detach()) for name, term in output.terms.items()}
    assert set(terms) == {"total", "ce", "kd"}
    assert terms["ce"] == pytest.approx(float(F.cross_entropy(output.logits.detach(), built.batch.labels)), rel=1e-5)
    assert terms["total"] == pytest.approx(0.5 * terms["ce"] + 3 * terms["kd"], rel=1e-5)
    assert [tuple(parameter.shape) for parameter in built.method.parameters()] == shapes
    output.terms["total"].backward()
    trained = [*built.method.parameters(), *built.student.parameters()]
    assert all(float(parameter.grad.abs().sum()) > 0 for parameter in trained)
    assert all(parameter.grad is None for parameter in built.teacher.network.parameters())


def test_the_kd_term_compares_the_projected_maps_with_the_teachers():
    built = build_method("feature", "student=resnet8", "teacher=resnet18", "method.stages=[layer2]", batch_size=4)
    (weight,) = (parameter.detach() for parameter in built.method.parameters())
    with torch.no_grad():
        own = built.student(built.batch.images).features["layer2"]
        other = built.teacher(built.batch).features["layer2"]
        expected = reference([np.einsum("oc,bchw->bohw", weight[:, :, 0, 0], own)], [other], 0.5)
        measured = float(built.step().terms["kd"])
    assert measured == pytest.approx(expected, rel=1e-4)


def test_only_the_deviation_over_the_batch_needs_the_whole_batch():
    assert build_method("feature", "method.normalize=teacher_std").method.requires.whole_batch
    assert not build_method("feature").method.requires.whole_batch
