"""Networks in 16 bits: stored numbers, logits, and values out of range."""

import copy

import pytest
import torch

from kdbench.errors import ConfigError
from tests.compress.subjects import apply, named, own, rebuilt, some_images, subject_of

TYPES = {"fp16": (torch.float16, 2**-10), "bf16": (torch.bfloat16, 2**-7)}
"""Type, and distance of neighbouring numbers near 1."""


@pytest.mark.parametrize("name", TYPES)
def test_every_weight_and_statistic_is_stored_rounded_to_16_bits(name: str) -> None:
    dtype, _ = TYPES[name]
    subject = subject_of(named("student=resnet8"))
    before = copy.deepcopy(subject.body.state_dict())
    state = rebuilt(apply(subject, name)).body.state_dict()
    assert state.keys() == before.keys()
    for key, value in before.items():
        if value.is_floating_point():
            assert state[key].dtype == dtype, key
            assert torch.equal(state[key], value.to(dtype)), key
        else:
            assert torch.equal(state[key], value)


@pytest.mark.parametrize("name", TYPES)
def test_logits_are_float32_and_near_those_of_the_network(name: str) -> None:
    _, step = TYPES[name]
    subject = subject_of(named("student=resnet8"))
    with torch.no_grad():
        expected = subject.body(some_images())
        logits = rebuilt(apply(subject, name))(some_images()).logits
    assert logits.dtype == torch.float32
    difference = float((logits - expected).abs().max() / expected.abs().max())
    assert 0 < difference < 10 * step


@pytest.mark.parametrize(("value", "beyond"), [(65504.0, False), (65536.0, True)])
def test_values_beyond_the_range_of_fp16_are_refused_by_their_name(value: float, beyond: bool) -> None:
    subject = subject_of(own("TwoConvolutions"))
    with torch.no_grad():
        subject.body.conv2.weight[3, 1, 0, 0] = value
    if not beyond:
        apply(subject, "fp16")
        return
    with pytest.raises(ConfigError) as error:
        apply(copy.deepcopy(subject), "fp16")
    assert (error.value.code, error.value.key) == ("out_of_range", "fp16")
    assert "conv2.weight" in str(error.value)
    assert float(rebuilt(apply(subject, "bf16")).body.conv2.weight[3, 1, 0, 0]) == value
