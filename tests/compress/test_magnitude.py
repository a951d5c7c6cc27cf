"""Masks of the smallest weights: how many, which, and that they stay."""

import copy

import pytest
import torch
from torch import nn

from kdbench.compress import Compressed, Subject
from kdbench.errors import ConfigError
from tests.compress.subjects import apply, named, own, rebuilt, some_images, subject_of


def all_weights(body: nn.Module) -> torch.Tensor:
    """Return the weights of all convolutions and linear layers, one after the other."""
    layers = [m for m in body.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    return torch.cat([layer.weight.detach().flatten() for layer in layers])


@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_the_share_of_zeros_is_exact_and_they_are_the_smallest_of_the_whole_network(sparsity: float) -> None:
    subject = subject_of(named("student=resnet8"))
    before = all_weights(subject.body)
    after = all_weights(rebuilt(apply(subject, "magnitude", f"sparsity={sparsity}")).body)
    zeros = after == 0
    assert int(zeros.sum()) == round(sparsity * len(before))
    assert before[zeros].abs().max() <= before[~zeros].abs().min()
    assert torch.equal(after[~zeros], before[~zeros])


def test_everything_but_the_weights_of_layers_stays() -> None:
    subject = subject_of(named("student=resnet8"))
    before = copy.deepcopy(subject.body.state_dict())
    body = rebuilt(apply(subject, "magnitude", "sparsity=0.5")).body
    others = [name for name in before if "bn" in name or name.endswith("bias")]
    assert len(others) > 20
    state = body.state_dict()
    assert all(torch.equal(state[name], before[name]) for name in others)


def test_zeros_stay_zero_in_training_with_momentum_and_weight_decay_and_the_others_move() -> None:
    network = rebuilt(apply(subject_of(own("TwoConvolutions")), "magnitude", "sparsity=0.5")).train()
    before = all_weights(network.body)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    for _ in range(3):
        optimiser.zero_grad()
        network(some_images()).logits.square().mean().backward()
        optimiser.step()
    after = all_weights(network.body)
    assert torch.equal(after == 0, before == 0)
    assert bool((after[before != 0] != before[before != 0]).all())


def again(compressed: Compressed) -> Subject:
    """Return a compressed network as the subject of the next step."""
    subject = subject_of(compressed.model)
    subject.body.load_state_dict(compressed.weights)
    return subject


def test_a_second_step_counts_the_masked_weights_and_adds_the_next_smallest() -> None:
    subject = subject_of(named("student=resnet8"))
    before = all_weights(subject.body)
    first = apply(subject, "magnitude", "sparsity=0.4")
    second = apply(again(first), "magnitude", "sparsity=0.7")
    zeros_first, zeros = (all_weights(rebuilt(c).body) == 0 for c in (first, second))
    assert bool(zeros[zeros_first].all())
    assert int(zeros.sum()) == round(0.7 * len(before))
    assert before[zeros].abs().max() <= before[~zeros].abs().min()
    assert second.model == first.model


def test_a_second_step_of_a_smaller_share_keeps_the_zeros() -> None:
    first = apply(subject_of(own("TwoConvolutions")), "magnitude", "sparsity=0.7")
    second = apply(again(first), "magnitude", "sparsity=0.3")
    assert torch.equal(all_weights(rebuilt(second).body), all_weights(rebuilt(first).body))


def test_a_weight_that_is_computed_from_others_is_refused_by_its_layer() -> None:
    subject = subject_of(own("TwoConvolutions"))
    nn.utils.parametrizations.weight_norm(subject.body.fc)
    with pytest.raises(ConfigError) as error:
        apply(subject, "magnitude", "sparsity=0.5")
    assert (error.value.code, error.value.key) == ("not_compressible", "magnitude")
    assert "fc" in str(error.value)


@pytest.mark.parametrize("sparsity", [0, 1, -0.5, 80])
def test_a_share_that_is_none_is_refused(sparsity: float) -> None:
    with pytest.raises(ConfigError) as error:
        apply(subject_of(own("OneLinear")), "magnitude", f"sparsity={sparsity}")
    assert (error.value.code, error.value.key) == ("out_of_range", "magnitude.sparsity")
