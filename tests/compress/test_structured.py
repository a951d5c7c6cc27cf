"""Removal of channels: which ones, how many, and what the smaller network computes."""

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdbench.compress import Subject
from kdbench.errors import ConfigError
from kdbench.models import summarize
from tests.compress.subjects import apply, named, own, rebuilt, some_images, subject_of
from tests.conftest import rest_wide
from tests.networks import SPEC

ARCHITECTURES = ("resnet20", "vgg11", "resnet18", "wrn16_2", "resnet14")


def kept_rows_and_columns(whole: Tensor, part: Tensor) -> tuple[list[int], list[int]]:
    """Return which outputs and inputs of a weight are in a smaller one, by the values of the kernels."""
    places: dict[bytes, list[tuple[int, int]]] = {}
    for row, inputs in enumerate(whole.flatten(2).numpy() if whole.ndim > 2 else whole[..., None].numpy()):
        for column, kernel in enumerate(inputs):
            places.setdefault(kernel.tobytes(), []).append((row, column))
    rows = [Counter[int]() for _ in range(part.shape[0])]
    columns = [Counter[int]() for _ in range(part.shape[1])]
    for i, inputs in enumerate(part.flatten(2).numpy() if part.ndim > 2 else part[..., None].numpy()):
        for j, kernel in enumerate(inputs):
            for row, column in places[kernel.tobytes()]:
                rows[i][row] += 1
                columns[j][column] += 1
    kept = [c.most_common(1)[0][0] for c in rows], [c.most_common(1)[0][0] for c in columns]
    assert torch.equal(whole[kept[0]][:, kept[1]], part)
    return kept


def without_removed_channels(body: nn.Module, smaller: nn.Module) -> nn.Module:
    """Return a network in which the channels that a smaller one lacks are zero."""
    body = copy.deepcopy(body)
    for path, layer in body.named_modules():
        part = smaller.get_submodule(path)
        if isinstance(layer, nn.Conv2d | nn.Linear):
            kept, _ = kept_rows_and_columns(layer.weight.detach(), part.weight.detach())
        elif isinstance(layer, nn.BatchNorm2d):
            kept = [int((layer.running_mean == value).nonzero().item()) for value in part.running_mean]
        else:
            continue
        removed = sorted({*range(len(layer.weight))} - {*kept})
        with torch.no_grad():
            layer.weight[removed] = 0
            if layer.bias is not None:
                layer.bias[removed] = 0
    return body


def sizes_at_half_width(body: nn.Module) -> tuple[int, int]:
    """Return parameters and multiply-accumulates of a network whose channels are halved, but images and classes."""
    areas: dict[nn.Module, int] = {}
    hooks = [
        layer.register_forward_hook(lambda layer, _, out: areas.__setitem__(layer, out[0, 0].numel()))
        for layer in body.modules()
        if isinstance(layer, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        body(some_images(1))
    for hook in hooks:
        hook.remove()
    parameters = macs = 0
    for layer, area in areas.items():
        outputs, inputs, *kernel = layer.weight.shape
        inputs = inputs if inputs == 3 else inputs // 2
        outputs = outputs if isinstance(layer, nn.Linear) else outputs // 2
        weights = outputs * inputs * int(torch.tensor(kernel or [1]).prod())
        parameters += weights + (outputs if layer.bias is not None else 0)
        macs += weights * (area if kernel else 1)
    norms = [layer for layer in body.modules() if isinstance(layer, nn.BatchNorm2d)]
    return parameters + sum(2 * (layer.num_features // 2) for layer in norms), macs


@pytest.mark.parametrize("name", rest_wide(ARCHITECTURES))
def test_the_smaller_network_is_the_whole_one_with_the_removed_channels_at_zero(name: str) -> None:
    subject = subject_of(named(f"student={name}"))
    whole = copy.deepcopy(subject.body)
    smaller = rebuilt(apply(subject, "structured", "ratio=0.5"))
    masked = without_removed_channels(whole, smaller.body)
    with torch.no_grad():
        expected, full = masked(some_images()), whole(some_images())
        torch.testing.assert_close(smaller(some_images()).logits, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(full, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", rest_wide(ARCHITECTURES))
def test_half_of_every_width_but_the_classes_is_removed(name: str) -> None:
    subject = subject_of(named(f"student={name}"))
    whole = copy.deepcopy(subject.body)
    compressed = apply(subject, "structured", "ratio=0.5")
    body = rebuilt(compressed).body
    for path, layer in whole.named_modules():
        if isinstance(layer, nn.Conv2d):
            assert body.get_submodule(path).out_channels == layer.out_channels // 2, path
    summary = summarize(compressed.model, SPEC, "student", trained=False)
    assert (summary.num_params, summary.macs) == sizes_at_half_width(whole)
    assert sum(p.numel() for p in body.parameters()) == summary.num_params


def two_convolutions(first: list[float], second: list[float], uneven: int | None = None) -> Subject:
    """Return a network whose channels have kernels of one value: in the first layer, and where the second reads them.

    Args:
        first: value of the kernels of each channel, by channel.
        second: value of the kernels that read it, by channel.
        uneven: channel of the first layer with its values in one place alone.
    """
    subject = subject_of(own("TwoConvolutions"))
    with torch.no_grad():
        subject.body.conv1.weight.copy_(torch.tensor(first)[:, None, None, None].expand(4, 3, 3, 3))
        subject.body.conv2.weight.copy_(torch.tensor(second)[None, :, None, None].expand(6, 4, 3, 3))
        subject.body.conv2.weight.mul_(1 + 0.001 * torch.arange(6)[:, None, None, None])
        subject.body.fc.weight.fill_(0.1)
        if uneven is not None:
            subject.body.conv1.weight[uneven] = 0
            subject.body.conv1.weight[uneven, 0, 0, 0] = 3
    return subject


@pytest.mark.parametrize(
    ("first", "second", "kept"),
    [
        ([0.1, 1.0, 0.2, 2.0], [1, 1, 1, 1], [1, 3]),
        ([1, 1, 1, 1], [0.5, 0.1, 0.6, 0.2], [0, 2]),
        ([0.9, 0.1, 0.5, 0.6], [0.1, 0.8, 0.8, 0.1], [1, 2]),
    ],
)
def test_channels_with_the_smallest_norm_over_all_their_layers_are_removed(
    first: list[float], second: list[float], kept: list[int]
) -> None:
    subject = two_convolutions(first, second)
    whole = copy.deepcopy(subject.body)
    squares = (27 * np.square(first) + 54 * np.square(second)) / 2
    assert sorted(np.argsort(squares)[2:]) == kept
    body = rebuilt(apply(subject, "structured", "ratio=0.5")).body
    assert torch.equal(body.conv1.weight, whole.conv1.weight[kept])
    assert torch.equal(body.conv2.weight, whole.conv2.weight[3:, kept])


@pytest.mark.parametrize(("norm", "removed"), [(1, 1), (2, 0)])
def test_the_norm_decides_between_many_small_weights_and_a_large_one(norm: int, removed: int) -> None:
    """Channel 0: 27 weights of 0.5, sum 13.5, squares 6.75. Channel 1: one weight of 3, sum 3, squares 9."""
    subject = two_convolutions([0.5, 0, 5, 5], [1, 1, 1, 1], uneven=1)
    whole = copy.deepcopy(subject.body)
    body = rebuilt(apply(subject, "structured", "ratio=0.25", f"norm={norm}")).body
    kept = [c for c in range(4) if c != removed]
    assert torch.equal(body.conv1.weight, whole.conv1.weight[kept])


def test_with_a_global_scope_the_layers_of_small_weights_lose_more() -> None:
    subject = subject_of(named("student=resnet8", "student.widths=[8,8,16,32]"))
    with torch.no_grad():
        for name, parameter in subject.body.named_parameters():
            if name.startswith("layer3.0.conv1"):
                parameter.mul_(1e-3)
    body = rebuilt(apply(subject, "structured", "ratio=0.3", "scope=global")).body
    assert body.layer3[0].conv1.out_channels / 32 < body.layer1[0].conv1.out_channels / 8


def test_numbers_of_channels_are_multiples_of_round_to() -> None:
    subject = subject_of(named("student=resnet8"))
    body = rebuilt(apply(subject, "structured", "ratio=0.4", "round_to=4")).body
    widths = {layer.out_channels for layer in body.modules() if isinstance(layer, nn.Conv2d)}
    assert all(width % 4 == 0 for width in widths)
    assert max(widths) < 64


def test_a_network_with_attention_is_refused_by_its_layer() -> None:
    with pytest.raises(ConfigError) as error:
        apply(subject_of(named("student=vit_tiny")), "structured", "ratio=0.5")
    assert (error.value.code, error.value.key) == ("not_compressible", "structured")
    assert "attention" in str(error.value)
    assert "self_attention" in str(error.value)


def test_a_ratio_that_removes_nothing_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        apply(subject_of(own("TwoConvolutions")), "structured", "ratio=0.01", "round_to=6")
    assert (error.value.code, error.value.key) == ("nothing_removed", "structured.ratio")
