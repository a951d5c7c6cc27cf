import copy

import pytest
import torch
from torch import nn

from kdbench.models import Network, build, fuse_batch_norm
from kdbench.system.device import autocast, place
from tests.conftest import composed_once, every_model
from tests.networks import SPEC


def network_with_statistics(name, *overrides):
    """Return a network in which no batch norm is the identity, and its config."""
    config = composed_once(f"student={name}", "method=ce", "runtime.device=cpu", *overrides)
    torch.manual_seed(0)
    network = place(build(config.student, SPEC, tuple(config.student.stages)), config.runtime)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, 0, 0.1)
    return network.eval(), config


def images(count=8):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(1)).to(
        memory_format=torch.channels_last
    )


@pytest.mark.parametrize("name", [p for p in every_model() if p.values[0] not in ("resnet101", "resnet152")])
@torch.no_grad()
def test_a_fused_network_computes_the_same_function(name):
    """The two left out have the blocks of resnet50."""
    network, _ = network_with_statistics(name)
    fused = fuse_batch_norm(network)
    kept = [path for path, module in fused.body.named_modules() if type(module) is nn.BatchNorm2d]
    if name.startswith("wrn"):  # pre-activation: these read sums, not convolutions
        kept = [path for path in kept if not path.endswith(".bn1") and path != "bn"]
    assert not kept
    expected, output = network(images()), fused(images())
    assert_equal_but_for_rounding(output.logits, expected.logits)
    assert torch.equal(output.logits.argmax(1), expected.logits.argmax(1))
    assert list(output.features) == list(expected.features)
    for stage, maps in expected.features.items():
        assert_equal_but_for_rounding(output.features[stage], maps)


def assert_equal_but_for_rounding(measured, expected):
    """Compare with the largest value: sums are rounded to the size of their terms, not of the result."""
    assert (measured - expected).abs().max() <= 1e-5 * expected.abs().max()


@torch.no_grad()
def test_weights_stored_in_bf16_give_the_same_bits_as_autocast():
    network, config = network_with_statistics("resnet20", "runtime.precision=bf16")
    wide, narrow = fuse_batch_norm(network), fuse_batch_norm(network, torch.bfloat16)
    assert {p.dtype for p in narrow.parameters()} == {torch.bfloat16}
    with autocast(config.runtime):
        assert torch.equal(narrow(images()).logits, wide(images()).logits)


def test_fusing_does_not_change_the_network():
    network, _ = network_with_statistics("resnet8")
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fused = fuse_batch_norm(network)
    assert network.training
    assert not fused.training
    assert not any(p.requires_grad for p in fused.parameters())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    network(images())
    assert not torch.equal(network.state_dict()["body.bn1.running_mean"], before["body.bn1.running_mean"])


def test_the_memory_format_is_kept():
    network, _ = network_with_statistics("resnet8")
    weight = next(
        p for p in fuse_batch_norm(network).parameters() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1
    )
    assert weight.is_contiguous(memory_format=torch.channels_last)


class Odd(nn.Module):
    """Has a convolution read twice, one called twice, a batch norm without statistics, and two norms in a row."""

    def __init__(self, num_classes):
        super().__init__()
        self.read_twice, self.called_twice, self.free = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        self.bn1, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.bn3 = nn.BatchNorm2d(3, track_running_stats=False)
        self.last, self.bn4, self.bn5 = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        for norm in (self.bn1, self.bn2, self.bn4, self.bn5):
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
        self.fc = nn.Linear(3, num_classes)

    def forward(self, images):
        maps = self.read_twice(images)
        maps = maps + self.bn1(maps)
        maps = self.bn2(self.called_twice(self.called_twice(maps)))
        maps = self.bn5(self.bn4(self.last(maps)))
        return self.fc(self.bn3(self.free(maps)).mean((2, 3)))


@torch.no_grad()
def test_batch_norms_that_cannot_be_fused_are_kept():
    config = copy.deepcopy(composed_once("student=resnet8", "method=ce").student)
    config.target, config.arguments, config.stages = f"{__name__}.Odd", {}, {}
    network: Network = build(config, SPEC).eval()
    fused = fuse_batch_norm(network)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in fused.modules()) == 3
    torch.testing.assert_close(fused(images()).logits, network(images()).logits)


@torch.no_grad()
def test_a_stage_before_its_batch_norm_keeps_its_values():
    config = copy.deepcopy(composed_once("student=resnet8", "method=ce").student)
    config.stages = {"raw": "layer1.0.conv1", "normed": "layer1.0.bn1"}
    network = build(config, SPEC, ("raw", "normed")).eval()
    fused = fuse_batch_norm(network)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in fused.modules()) == 1
    for stage in ("raw", "normed"):
        torch.testing.assert_close(fused(images()).features[stage], network(images()).features[stage])


@torch.no_grad()
def test_fusing_does_not_depend_on_the_stages_that_are_computed():
    config = copy.deepcopy(composed_once("student=resnet8", "method=ce").student)
    config.stages = {"raw": "layer1.0.conv1", "pooled": "flatten"}
    logits = []
    for stages in (("raw", "pooled"), ("pooled",)):
        torch.manual_seed(0)
        network = build(config, SPEC, stages).eval()
        logits.append(fuse_batch_norm(network)(images()).logits)
    assert torch.equal(*logits)
