import numpy as np
import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods import feature_kd
from kdbench.methods.feature import select_stages


def reference(students, teachers, beta, normalize="none"):
    """Compute the definition in float64 numpy, for maps of equal size."""
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


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 8, 6, 6), (4, 16, 3, 3)]
    return [[torch.randn(s, generator=generator, dtype=torch.float64) + 0.3 for s in shapes] for _ in range(2)]


def test_case_by_hand():
    # One pixel, two channels: MSE of (1, 0) and (0, 1) is 1, and they stand at a right angle: 1 - cos = 1.
    student, teacher = (torch.tensor(v).reshape(1, 2, 1, 1) for v in ([1.0, 0.0], [0.0, 1.0]))
    assert float(feature_kd([student], [teacher], beta=0.5)) == pytest.approx(1.5)


@pytest.mark.parametrize("normalize", ["none", "teacher_std"])
@pytest.mark.parametrize("beta", [0.0, 0.5, 3.0])
def test_it_equals_the_float64_reference(maps, beta, normalize):
    student, teacher = maps
    assert float(feature_kd(student, teacher, beta, normalize)) == pytest.approx(
        reference(student, teacher, beta, normalize), rel=1e-10
    )
    narrow = feature_kd([m.float() for m in student], [m.float() for m in teacher], beta, normalize)
    assert float(narrow) == pytest.approx(reference(student, teacher, beta, normalize), rel=1e-5)


def test_stages_are_averaged_not_summed(maps):
    student, teacher = maps
    once, twice = (feature_kd(student[:1] * n, teacher[:1] * n, 0.5) for n in (1, 2))
    assert float(once) == pytest.approx(float(twice))


def test_identical_maps_give_zero(maps):
    assert float(feature_kd(maps[0], maps[0], 0.5)) == pytest.approx(0, abs=1e-12)


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


def test_the_gradient_reaches_the_student_and_never_the_teacher():
    student, teacher = (torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(2))
    feature_kd([student], [teacher], 0.5).backward()
    assert float(student.grad.abs().sum()) > 0
    assert teacher.grad is None


def test_the_order_of_images_does_not_matter(maps):
    order = torch.tensor([2, 0, 3, 1])
    student, teacher = ([m[order] for m in side] for side in maps)
    assert float(feature_kd(student, teacher, 0.5)) == pytest.approx(float(feature_kd(*maps, 0.5)))


def test_half_precision_accumulates_in_float32():
    student, teacher = (torch.full((2, 3, 4, 4), v, dtype=torch.float16) for v in (300.0, -300.0))
    measured = feature_kd([student], [teacher], 0.0)  # the square of 600 has no float16
    assert measured.dtype == torch.float32
    assert float(measured) == pytest.approx(360_000)


def test_wrong_arguments_are_errors():
    one = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="1 student maps and 2 teacher maps"):
        feature_kd([one], [one, one], 0.5)
    with pytest.raises(ValueError, match="0 student maps and 0 teacher maps"):
        feature_kd([], [], 0.5)
    with pytest.raises(ValueError, match="normalize is 'std'"):
        feature_kd([one], [one], 0.5, normalize="std")


def test_the_default_stages_are_the_layers_that_both_models_have():
    student = {"layer1": (16, 32, 32), "layer2": (32, 16, 16), "layer3": (64, 8, 8), "pooled": (64,)}
    teacher = {f"layer{i}": (64 * i, 8, 8) for i in (1, 2, 3, 4)} | {"pooled": (512,)}
    assert select_stages(None, student, teacher) == ("layer1", "layer2", "layer3")
    assert select_stages(["layer2"], student, teacher) == ("layer2",)


@pytest.mark.parametrize("stages", [["layer4"], ["pooled"], ["layer9"], []])
def test_a_stage_that_is_no_map_of_both_models_is_an_error(stages):
    student = {"layer1": (16, 32, 32), "pooled": (64,)}
    teacher = {"layer1": (16, 32, 32), "layer4": (64, 4, 4), "pooled": (64,)}
    with pytest.raises(ConfigError) as error:
        select_stages(stages, student, teacher)
    assert (error.value.code, error.value.key) == ("unknown_stage", "method.stages")


def test_models_without_a_common_layer_are_an_error():
    with pytest.raises(ConfigError) as error:
        select_stages(None, {"pooled": (64,)}, {"layer1": (64, 8, 8), "pooled": (64,)})
    assert (error.value.code, error.value.key) == ("unknown_stage", "method.stages")


def test_teacher_std_is_computed_over_the_whole_map_before_pooling():
    large, small = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    scale = float(large.numpy().std(ddof=1))
    pooled = large.reshape(2, 3, 4, 2, 4, 2).mean((3, 5))
    expected = reference([small / scale], [pooled / scale], 0.5)
    assert float(feature_kd([small], [large], 0.5, "teacher_std")) == pytest.approx(expected, rel=1e-10)
