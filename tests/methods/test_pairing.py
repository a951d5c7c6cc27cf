"""Pairs of stages: what methods share that read feature maps."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from kdbench.errors import ConfigError
from kdbench.methods.pairing import check_stage, find_classifier, grid_of, pool_to
from tests.methods.built import build_method


@pytest.mark.parametrize("size", [(8, 8), (4, 4), (4, 2), (1, 1), (3, 5), (7, 8), (6, 4)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_pooling_and_its_gradient_are_those_of_adaptive_pooling(size, memory_format):
    maps = torch.randn(2, 3, 8, 8, dtype=torch.float64).contiguous(memory_format=memory_format).requires_grad_()
    weights = torch.randn(2, 3, *size, dtype=torch.float64)
    pooled, expected = pool_to(maps, size), F.adaptive_avg_pool2d(maps, size)
    torch.testing.assert_close(pooled, expected)
    gradients = [torch.autograd.grad((values * weights).sum(), maps)[0] for values in (pooled, expected)]
    torch.testing.assert_close(*gradients)


def test_pooling_does_not_use_the_operation_that_deterministic_algorithms_refuse_on_a_gpu(monkeypatch):
    monkeypatch.setattr(F, "adaptive_avg_pool2d", None)
    for size in ((4, 4), (3, 5)):
        assert pool_to(torch.ones(1, 1, 8, 8), size).shape[2:] == size


def test_tokens_are_a_grid_unless_some_have_no_place():
    assert grid_of((16, 8)) == (8, 4, 4)
    assert grid_of((17, 8)) is None
    assert grid_of((8, 4, 2)) == (8, 4, 2)
    assert grid_of((8,)) is None


def test_a_classifier_that_reads_tokens_without_a_place_is_none_of_a_map():
    teacher = build_method("simkd").context.teacher
    with_class_token = dataclasses.replace(
        teacher, shapes={**teacher.shapes, "tokens": (17, 64)}, classifiers={"tokens": "fc"}
    )
    with pytest.raises(ConfigError) as error:
        find_classifier(with_class_token, "tokens", "teacher")
    assert (error.value.code, error.value.key) == ("no_classifier", "method.pairs")
    assert find_classifier(teacher, "layer3", "teacher") == ("fc", (64, 8, 8))


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("fitnet", "method.pairs={layer9: layer2}"), "method.pairs"),
        (("ofa", "method.stages=[layer9]"), "method.stages"),
    ],
)
def test_a_stage_that_does_not_exist_is_the_same_error_in_every_method(overrides, key):
    with pytest.raises(ConfigError, match="has 'layer9': the student has no such stage") as error:
        build_method(*overrides)
    assert (error.value.code, error.value.key) == ("unknown_stage", key)


def test_a_stage_without_a_gradient_can_be_read_of_a_teacher_only():
    model = dataclasses.replace(build_method("at").context.student, without_gradient={"layer2": "it is detached"})
    check_stage("layer2", model, "teacher", "method.pairs")
    with pytest.raises(ConfigError, match=r"student\.stages\.layer2: it is detached") as error:
        check_stage("layer2", model, "student", "method.pairs")
    assert (error.value.code, error.value.key) == ("unusable_stage", "student.stages.layer2")
