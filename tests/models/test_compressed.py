"""Compressed networks as modules: built from their configs, masks made plain, and what a config may not say."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from kdbench.errors import ConfigError
from kdbench.models import build, summarize
from kdbench.models.compressed import narrowed, set_size, without_masks
from kdbench.models.counts import count_weights
from tests.compress.networks import TwoConvolutions
from tests.compress.subjects import apply, named, own, rebuilt, some_images, subject_of
from tests.networks import SPEC


def small_subject():
    return subject_of(named("student=resnet8", "student.widths=[8,8,16,32]"))


@pytest.mark.parametrize(
    ("name", "settings"),
    [("structured", ("ratio=0.5",)), ("magnitude", ("sparsity=0.5",)), ("low_rank", ("energy=0.5",)), ("bf16", ())],
)
def test_a_network_built_from_its_config_computes_what_the_compressed_one_did(name, settings):
    subject = small_subject()
    compressed = apply(subject, name, *settings)
    first, second = rebuilt(compressed), rebuilt(compressed)
    assert torch.equal(first(some_images()).logits, second(some_images()).logits)
    state = first.body.state_dict()
    assert state.keys() == compressed.weights.keys()
    assert all(torch.equal(state[key], value) for key, value in compressed.weights.items())


@pytest.mark.parametrize("name", ["structured", "magnitude", "low_rank"])
def test_a_fresh_compressed_network_has_random_weights_that_can_be_trained(name):
    model = apply(small_subject(), name).model
    torch.manual_seed(5)
    network = build(model, SPEC).train()
    network(some_images()).logits.square().mean().backward()
    for path, parameter in network.body.named_parameters():
        assert parameter.grad is not None, path
        assert bool(parameter.isfinite().all()), path
        assert parameter.ndim == 1 or float(parameter.detach().std()) > 0, path


@pytest.mark.parametrize("name", ["structured", "magnitude", "low_rank"])
def test_the_stages_of_a_compressed_network_are_those_of_its_base(name):
    model = apply(small_subject(), name).model
    summary = summarize(model, SPEC, "student")
    assert list(model.stages) == list(named("student=resnet8").stages)
    assert summary.refused == {}


def test_masks_are_made_plain_without_a_change_of_the_outputs_or_of_other_copies():
    network = rebuilt(apply(small_subject(), "magnitude", "sparsity=0.5"))
    body = network.body
    with torch.no_grad():
        expected = body(some_images())
        plain = without_masks(copy.deepcopy(body))
        torch.testing.assert_close(plain(some_images()), expected, rtol=0, atol=0)
        assert not any(parametrize.is_parametrized(module) for module in plain.modules())
        assert {type(m).__name__ for m in plain.modules()}.isdisjoint({"ParametrizedConv2d", "ParametrizedLinear"})
        assert parametrize.is_parametrized(body.conv1)
        assert torch.equal(body(some_images()), expected)
    fresh = build(named("student=resnet8", "student.widths=[8,8,16,32]"), SPEC).body
    assert plain.state_dict().keys() == fresh.state_dict().keys()


def test_a_plain_network_of_masked_weights_can_be_parametrised_again():
    body = rebuilt(apply(small_subject(), "magnitude")).body
    plain = without_masks(copy.deepcopy(body))
    nn.utils.parametrizations.weight_norm(plain.fc)
    torch.testing.assert_close(plain(some_images()), body(some_images()))


@pytest.mark.parametrize(
    ("path", "name", "value"),
    [
        ("conv1", "out_channel", 8),
        ("conv1", "out_channels", "8"),
        ("conv1", "out_channels", True),
        ("conv1", "out_channels", [8]),
        ("conv1", "kernel_size", [3, "3"]),
        ("conv1", "padding_mode", "circular"),
        ("conv1", "forward", 1),
        ("", "training", 1),
    ],
)
def test_a_size_that_a_layer_does_not_have_is_refused(path, name, value):
    module = build(own("TwoConvolutions"), SPEC).body.get_submodule(path)
    with pytest.raises(ValueError, match="has no such size"):
        set_size(module, f"{path}.{name}", name, value)


def test_sizes_of_a_layer_that_is_not_there_are_refused():
    with pytest.raises(AttributeError, match="conv9"):
        narrowed(functools.partial(TwoConvolutions), {"conv9": {"out_channels": 3}}, 10)


@pytest.mark.parametrize("path", ["grouped", "missing"])
def test_factors_of_a_layer_that_cannot_have_them_are_refused(path):
    compressed = apply(subject_of(own("OddConvolutions")), "low_rank", "energy=0.5", "only_smaller=false")
    compressed.model.arguments["ranks"] |= {path: 2}
    with pytest.raises(ConfigError) as error:
        build(compressed.model, SPEC)
    assert (error.value.code, error.value.key) == ("not_buildable", "student")
    assert path in str(error.value)


# Counts


def test_nonzero_weights_and_the_share_of_zeros_are_counted_over_the_plain_weights():
    network = rebuilt(apply(subject_of(own("TwoConvolutions")), "magnitude", "sparsity=0.25"))
    weights = 4 * 27 + 6 * 36 + 60
    zeros = round(0.25 * weights)
    assert count_weights(network) == (weights - zeros + 10, zeros / weights)


@pytest.mark.slow
def test_of_an_8_bit_network_the_integers_count():
    subject = subject_of(own("TwoConvolutions"))
    with torch.no_grad():
        subject.body.conv2.weight[:, 1] = 0
        subject.body.fc.bias.fill_(0)
    convolutions = [subject.body.conv1.weight.detach().flatten(1), subject.body.conv2.weight.detach().flatten(1)]
    rounded = [torch.round(w / (w.abs().amax(1, keepdim=True) / 127)) for w in convolutions]
    nonzero = sum(int((integers != 0).sum()) for integers in rounded)
    found, sparsity = count_weights(rebuilt(apply(subject, "int8")))
    assert 0 <= found - nonzero <= 60
    assert found == pytest.approx((4 * 27 + 6 * 36 + 60) * (1 - sparsity))
    assert sparsity >= 54 / (4 * 27 + 6 * 36 + 60)


# 8-bit networks


@pytest.mark.slow
def test_an_8_bit_network_is_its_graph_alone():
    compressed = apply(subject_of(own("TwoConvolutions")), "int8")
    network = rebuilt(compressed)
    assert list(network.body.state_dict()) == ["graph"]
    fresh = build(compressed.model, SPEC, trained=False).eval()
    assert fresh(some_images()).logits.shape == (4, 10)
    assert not torch.allclose(fresh(some_images()).logits, network(some_images()).logits)
    again = copy.deepcopy(network)
    assert torch.equal(again(some_images()).logits, network(some_images()).logits)
    assert not any(p.requires_grad for p in network.parameters())
