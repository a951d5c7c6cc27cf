"""Low-rank factors: their rank, what they compute, and their size."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from kdbench.errors import ConfigError
from kdbench.models import summarize
from tests.compress.subjects import apply, named, own, rebuilt, some_images, subject_of
from tests.networks import SPEC


def matrix(layer: nn.Module) -> np.ndarray:
    """Return a weight as a matrix [outputs, inputs x kernel]."""
    return layer.weight.detach().double().flatten(1).numpy()


def product(factors: nn.Module) -> np.ndarray:
    """Return the matrix that two factors are together."""
    first, second = factors
    return matrix(second) @ matrix(first)


@pytest.mark.parametrize("model", [own("OddConvolutions"), named("student=resnet8"), own("OneLinear")])
def test_at_full_rank_the_outputs_are_those_of_the_network(model) -> None:
    subject = subject_of(model)
    with torch.no_grad():
        expected = subject.body(some_images())
    network = rebuilt(apply(subject, "low_rank", "energy=1", "only_smaller=false"))
    with torch.no_grad():
        torch.testing.assert_close(network(some_images()).logits, expected, rtol=1e-4, atol=1e-5)
    kept = [m for m in network.body.modules() if isinstance(m, nn.Sequential) and len(m) == 2]
    assert kept


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
def test_the_rank_is_the_smallest_whose_squared_singular_values_reach_the_energy(energy: float) -> None:
    subject = subject_of(named("student=resnet8"))
    whole = copy.deepcopy(subject.body)
    body = rebuilt(apply(subject, "low_rank", f"energy={energy}", "only_smaller=false")).body
    layers = {path: m for path, m in whole.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert len(layers) > 8
    for path, layer in layers.items():
        left, values, right = np.linalg.svd(matrix(layer), full_matrices=False)
        shares = np.cumsum(values**2) / np.sum(values**2)
        rank = next(n for n, share in enumerate(shares, 1) if share >= energy)
        factors = body.get_submodule(path)
        assert len(factors[0].weight) == rank, path
        np.testing.assert_allclose(product(factors), (left[:, :rank] * values[:rank]) @ right[:rank], atol=1e-6)


@pytest.mark.parametrize(("rank", "expected"), [("0.5", 4), ("1", 8), ("3", 3), ("100", 8), ("0.01", 1)])
def test_a_rank_is_a_share_of_the_full_one_or_a_number(rank: str, expected: int) -> None:
    network = rebuilt(
        apply(subject_of(own("OddConvolutions")), "low_rank", "energy=null", f"rank={rank}", "only_smaller=false")
    )
    assert network.body.flat[0].out_channels == expected
    assert isinstance(network.body.grouped, nn.Conv2d)


def test_layers_whose_factors_have_as_many_weights_stay() -> None:
    """conv1: 4 x 27, smaller up to rank 3. conv2: 6 x 36, up to 5. fc: 10 x 6, up to 3."""
    subject = subject_of(own("TwoConvolutions"))
    body = rebuilt(apply(subject, "low_rank", "energy=null", "rank=4")).body
    kinds = [type(layer) for layer in (body.conv1, body.conv2, body.fc)]
    assert kinds == [nn.Conv2d, nn.Sequential, nn.Linear]


def test_the_counts_are_those_of_the_factors() -> None:
    subject = subject_of(own("TwoConvolutions"))
    compressed = apply(subject, "low_rank", "energy=null", "rank=2")
    summary = summarize(compressed.model, SPEC, "student", trained=False)
    conv1, conv2, fc = 2 * 27 + 4 * 2, 2 * 36 + 6 * 2, 2 * 6 + 10 * 2
    assert summary.num_params == conv1 + conv2 + fc + 10
    assert summary.macs == 16 * 16 * conv1 + 8 * 8 * conv2 + fc
    assert sum(p.numel() for p in rebuilt(compressed).parameters()) == summary.num_params


def test_a_network_whose_factors_are_no_smaller_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        apply(subject_of(own("OneLinear")), "low_rank", "energy=1")
    assert (error.value.code, error.value.key) == ("nothing_removed", "low_rank.energy")


@pytest.mark.parametrize("settings", [("rank=2",), ("energy=null",)])
def test_energy_and_rank_at_once_or_neither_are_refused(settings: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as error:
        apply(subject_of(own("OneLinear")), "low_rank", *settings)
    assert (error.value.code, error.value.key) == ("mismatch", "low_rank.energy")


@pytest.mark.parametrize("setting", ["rank=2.5", "rank=0", "rank=-1", "energy=0", "energy=1.5"])
def test_values_out_of_range_are_refused(setting: str) -> None:
    with pytest.raises(ConfigError) as error:
        apply(subject_of(own("OneLinear")), "low_rank", setting)
    assert (error.value.code, error.value.key) == ("out_of_range", f"low_rank.{setting.partition('=')[0]}")
