import copy
import dataclasses

import pytest
import torch

from kdbench.errors import ConfigError
from kdbench.methods import RandomControl, logit_kd
from tests.methods.built import build_method


def kd_of(built, seed=0):
    torch.manual_seed(seed)
    return float(built.step().terms["kd"].detach())


def test_yaml_has_the_documented_defaults():
    built = build_method("random_control")
    params = built.config.method.params
    assert (params.alpha, params.ce_weight, params.kd_weight) == (0.5, None, None)
    assert (params.kind, params.temperature, params.scale) == ("per_sample", 4, 1)
    assert built.config.teacher is None
    assert (built.method.role, built.method.needs_teacher, built.method.soft_labels) == ("control", False, True)


@pytest.mark.parametrize("kind", ["per_sample", "resampled"])
def test_total_is_the_weighted_sum_and_reaches_the_student(kind):
    built = build_method("random_control", f"method.kind={kind}", "method.alpha=0.75", "student=resnet20")
    terms = built.step().terms
    expected = 0.25 * terms["ce"] + 0.75 * terms["kd"]
    assert float(terms["total"].detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    terms["kd"].backward()
    assert all(bool(p.grad.isfinite().all()) for p in built.student.parameters())


def test_each_image_has_fixed_logits_that_its_original_index_finds():
    built = build_method("random_control", "method.scale=3", "method.temperature=2")
    logits = built.student(built.batch.images).logits.detach()
    place = {int(index): row for row, index in enumerate(built.context.indices)}
    targets = 3 * torch.stack([built.method.random_logits[place[int(index)]] for index in built.batch.indices])
    assert kd_of(built, seed=0) == pytest.approx(float(logit_kd(logits, targets, 2.0)), rel=1e-5)
    assert kd_of(built, seed=1) == kd_of(built, seed=2)


def test_fixed_logits_are_standard_normal_and_those_of_the_seed():
    first, same, other = (build_method("random_control", images=2000, seed=s).method.random_logits for s in (0, 0, 1))
    assert first.shape == (2000, 10)
    assert first.dtype == torch.float32
    assert float(first.mean()) == pytest.approx(0, abs=0.03)
    assert float(first.std()) == pytest.approx(1, abs=0.03)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_fixed_logits_are_in_the_checkpoint():
    first, other = build_method("random_control"), build_method("random_control", seed=1)
    other.method.load_state_dict(copy.deepcopy(first.method.state_dict()))
    assert torch.equal(other.method.random_logits, first.method.random_logits)


def test_resampled_logits_differ_at_each_step_and_repeat_with_the_seed_of_torch():
    built = build_method("random_control", "method.kind=resampled")
    assert not list(built.method.buffers())
    torch.manual_seed(3)
    first, second = (float(built.step().terms["kd"].detach()) for _ in range(2))
    assert first != second
    assert kd_of(built, seed=3) == first


def test_logits_are_standard_normal_times_the_scale_at_each_step():
    built = build_method("random_control", "method.kind=resampled", "method.scale=3", "method.temperature=2")
    logits = built.student(built.batch.images).logits.detach()
    torch.manual_seed(4)
    targets = 3 * torch.randn(16, 10)
    assert kd_of(built, seed=4) == pytest.approx(float(logit_kd(logits, targets, 2.0)), rel=1e-5)


def test_scale_0_is_the_uniform_distribution():
    built = build_method("random_control", "method.scale=0")
    logits = built.student(built.batch.images).logits.detach()
    assert kd_of(built) == pytest.approx(float(logit_kd(logits, torch.zeros_like(logits), 4.0)), rel=1e-5)


def test_it_is_built_without_training_images():
    built = build_method("random_control")
    empty = torch.zeros(0, dtype=torch.int64)
    context = dataclasses.replace(built.context, labels=empty, indices=empty)
    assert RandomControl(built.config.method.params, context).random_logits.shape == (0, 10)


def test_an_unknown_kind_is_an_error():
    with pytest.raises(ConfigError) as error:
        build_method("random_control", "method.kind=fixed")
    assert (error.value.code, error.value.key) == ("out_of_range", "method.kind")
