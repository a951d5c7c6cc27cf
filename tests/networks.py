"""Small networks in the forms in which people bring theirs. Tests name them by import path."""

import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from kdbench.data import DataSpec

SPEC = DataSpec(num_classes=10, input_shape=(3, 32, 32))
"""Classes and images of the data sets that most tests use."""
STAGES = {"layer1": "layer1", "layer2": "layer2", "layer3": "layer3", "pooled": "flatten"}
"""Stages of `Plain` and of what derives from it."""


def block(in_channels, out_channels, stride=1, norm=nn.BatchNorm2d):
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return nn.Sequential(convolution, norm(out_channels), nn.ReLU())


def group_norm(channels, num_groups):
    return nn.GroupNorm(num_groups, channels)


class Plain(nn.Module):
    def __init__(self, num_classes=10, width=8, act=None, norm=nn.BatchNorm2d):
        super().__init__()
        self.layer1 = block(3, width, 2, norm)
        self.layer2 = block(width, 2 * width, 2, norm)
        self.layer3 = block(2 * width, 4 * width, 2, norm)
        self.act = act or nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * width, num_classes)

    def embed(self, images):
        return self.pool(self.act(self.layer3(self.layer2(self.layer1(images))))).flatten(1)

    def forward(self, images):
        return self.fc(self.embed(images))


# Outputs of forward


class LogitsFirst(Plain):
    def forward(self, images):
        embedding = self.embed(images)
        return self.fc(embedding), F.normalize(embedding, dim=1)


class DictOfStages(Plain):
    """Cannot be traced, and returns its stages."""

    def forward(self, images):
        first = self.layer1(images)
        if float(first.detach().mean()) > 1e9:
            first = first * 2
        second = self.layer2(first)
        third = self.layer3(second)
        return {"logits": self.fc(self.pool(third).flatten(1)), "middle": second, "top": third}


class TwoHeads(Plain):
    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.head_dist = nn.Linear(32, num_classes)

    def forward(self, images):
        embedding = self.embed(images)
        first, second = self.fc(embedding), self.head_dist(embedding)
        return (first, second) if self.training else (first + second) / 2


class OfOther(Plain):
    """Returns something else than float logits [N, C]."""

    def __init__(self, num_classes=10, change="transposed"):
        super().__init__(num_classes)
        self.change = change

    def forward(self, images):
        logits = super().forward(images)
        return {"transposed": logits.T, "whole numbers": logits.long(), "squeezed": logits.squeeze()}[self.change]


def swallows_num_classes(**kwargs):
    return Plain(kwargs.get("classes", 1000))


class IsFeat(Plain):
    def forward(self, images, is_feat=False, preact=False, mask=None):
        embedding = self.embed(images)
        return ([embedding], self.fc(embedding)) if is_feat else self.fc(embedding)


# Control flow, random numbers and counters


class Untraceable(Plain):
    def forward(self, images):
        first = self.layer1(images)
        for _ in range(int(first.detach().abs().mean() < 1e9)):
            first = first * 1.0
        return self.fc(self.pool(self.layer3(self.layer2(first))).flatten(1))


class StochasticDepth(Plain):
    def forward(self, images):
        maps = self.layer2(self.layer1(images))
        if not self.training or random.random() < 0.5:
            maps = maps * 1.5
        return self.fc(self.pool(self.layer3(maps)).flatten(1))


class NumpyNoise(Plain):
    def forward(self, images):
        return super().forward(images + float(np.random.rand()) if self.training else images)


class TorchNoise(Plain):
    def forward(self, images):
        return super().forward(images + torch.randn_like(images) if self.training else images)


class Schedule(Plain):
    """Counts its steps in an attribute, and in a buffer that is not saved."""

    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.steps = 0
        self.register_buffer("seen", torch.zeros(1), persistent=False)

    def forward(self, images):
        logits = super().forward(images)
        if self.training:
            self.steps += 1
            self.seen += len(images)
            logits = logits * (1 + 0.01 * self.steps) + 0.001 * self.seen
        return logits


class ScheduleInEvaluation(Schedule):
    def forward(self, images):
        return super().forward(images) * (1 + 0.1 * self.steps)


class OwnGenerator(Plain):
    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.generator = random.Random(0)

    def forward(self, images):
        return super().forward(images + self.generator.random() if self.training else images)


class RandomInEvaluation(Plain):
    def forward(self, images):
        return self.fc(F.dropout(self.embed(images), 0.5, training=True))


# State


class RandomBuffer(Plain):
    def __init__(self, num_classes=10, persistent=False):
        super().__init__(num_classes)
        self.register_buffer("basis", torch.randn(32), persistent=persistent)

    def forward(self, images):
        return self.fc(self.embed(images) * self.basis)


class RandomAttribute(Plain):
    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.basis = torch.randn(32)

    def forward(self, images):
        return self.fc(self.embed(images) * self.basis)


class ExtraState(Plain):
    def get_extra_state(self):
        return {"version": 1}

    def set_extra_state(self, state):
        pass


class OddBuffers(Plain):
    """Whole numbers, truth values, five dimensions, and tied weights."""

    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.register_buffer("index", torch.arange(32).flip(0))
        self.register_buffer("mask", torch.ones(32, dtype=torch.bool))
        self.register_buffer("scale", torch.ones(1, 1, 1, 1, 1))
        self.again = nn.Linear(32, num_classes)
        self.again.weight = self.fc.weight

    def forward(self, images):
        embedding = self.embed(images * self.scale[0])[:, self.index] * self.mask
        return self.fc(embedding) + self.again(embedding)


# Structure


class Shared(nn.Module):
    """Names that end in numbers, and one activation for all."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 2, padding=1)
        self.conv_1 = nn.Conv2d(8, 12, 3, 2, padding=1)
        self.conv1_1 = nn.Conv2d(12, 16, 3, 2, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(16, num_classes)

    def forward(self, images):
        maps = self.relu(self.conv1_1(self.relu(self.conv_1(self.relu(self.conv1(images))))))
        return self.fc(maps.mean((2, 3)))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = block(3, 8, 2)

    def forward(self, images):
        maps = self.inner(images)
        return maps, maps.mean((2, 3))


class WithList(nn.Module):
    """A list of blocks, after a block with two outputs."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = Pair()
        self.blocks = nn.ModuleList([block(8, 8), block(8, 8)])
        self.fc = nn.Linear(8, num_classes)

    def forward(self, images):
        maps, _ = self.stem(images)
        for inner in self.blocks:
            maps = inner(maps)
        return self.fc(maps.mean((2, 3)))


class ChannelsLast(nn.Module):
    """A stage [N, H, W, C] with as many channels as rows and columns, and one with more."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.patches, self.more = nn.Linear(12, 16), nn.Linear(16, 24)
        self.fc = nn.Linear(24, num_classes)

    def forward(self, images):
        patches = F.pixel_unshuffle(images, 2).permute(0, 2, 3, 1)
        return self.fc(self.more(self.patches(patches)).mean((1, 2)))


class Lazy(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.layer1 = nn.LazyConv2d(8, 3, 2)
        self.fc = nn.LazyLinear(num_classes)

    def forward(self, images):
        return self.fc(self.layer1(images).mean((2, 3)))


def with_group_norm(num_classes=10):
    return Plain(num_classes, norm=lambda channels: nn.GroupNorm(4, channels))


def of_one_image_fails(num_classes=10):
    class Squeezed(Plain):
        def forward(self, images):
            return self.fc(self.pool(self.layer3(self.layer2(self.layer1(images)))).squeeze())

    return Squeezed(num_classes, norm=lambda channels: nn.GroupNorm(4, channels))


def scripted(num_classes=10):
    return torch.jit.script(Plain(num_classes))


def other_name_for_classes(labels):
    return Plain(labels)


def fails_while_it_is_built(num_classes=10):
    return [x.item() for x in torch.linspace(0, 0.1, 3)] and Plain(num_classes, width="wide")


class DropPathRates(Plain):
    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.rates = [x.item() for x in torch.linspace(0, 0.1, 3)]


def drawn_on_the_host(num_classes=10):
    network = Plain(num_classes)
    with torch.no_grad():
        network.fc.weight.copy_(torch.from_numpy(np.random.normal(0, 0.1, network.fc.weight.shape)))
        network.fc.bias.fill_(random.random())
    return network


class InPlaceAfter(nn.Module):
    """Stages that later operations change in place, as outputs and as inputs."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.conv, self.relu, self.fc = (
            nn.Conv2d(3, 8, 3, 2, padding=1),
            nn.ReLU(inplace=True),
            nn.Linear(8, num_classes),
        )

    def forward(self, images):
        return self.fc(self.relu(self.conv(images)).mean((2, 3)))


class NoiseFirst(Plain):
    """Another addition comes first in training."""

    def forward(self, images):
        maps = self.layer1(images)
        if self.training:
            maps = maps + 0.1
        maps = maps + self.layer1[0].weight.mean()
        return self.fc(self.pool(self.layer3(self.layer2(maps))).flatten(1))


class Detached(Plain):
    def forward(self, images):
        with torch.no_grad():
            first = self.layer1(images)
        return self.fc(self.pool(self.layer3(self.layer2(first))).flatten(1))


class Rectangular(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.patches, self.fc = nn.Linear(3 * 8 * 4, 16), nn.Linear(16, num_classes)

    def forward(self, images):
        patches = images.unfold(2, 8, 8).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3)
        return self.fc(self.patches(patches).mean((1, 2)))


class OfAnotherKind(Plain):
    """Cannot be trained, or changes its images."""

    def __init__(self, num_classes=10, kind="double"):
        super().__init__(num_classes)
        self.kind = kind
        if kind == "double":
            self.double()

    def forward(self, images):
        if self.kind == "double":
            return super().forward(images.double())
        if self.kind == "images":
            return super().forward(images.mul_(2))
        logits = super().forward(images)
        kept = logits.exp()
        kept.add_(1)  # exp needs its result for its gradient
        return kept


class AuxiliaryInTraining(Plain):
    def forward(self, images):
        logits = super().forward(images)
        return {"out": logits, "aux": logits * 2} if self.training else logits


class Answer:
    def __init__(self, logits, hidden):
        self.logits, self.hidden = logits, hidden


class OwnObject(Plain):
    def forward(self, images):
        embedding = self.embed(images)
        return Answer(self.fc(embedding), embedding)


class CountsEpochs(Plain):
    """Counts the calls of train()."""

    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.epoch = 0

    def train(self, mode=True):
        self.epoch += mode
        return super().train(mode)

    def forward(self, images):
        logits = super().forward(images)
        return logits * (1 + 0.01 * self.epoch) if self.training else logits


class SetUpByTheFirstBatch(Plain):
    """Sets a parameter from the first batch, and draws on the host from the fourth step on."""

    def __init__(self, num_classes=10):
        super().__init__(num_classes)
        self.shift = nn.Parameter(torch.zeros(1))
        self.steps, self.ready = 0, False

    def forward(self, images):
        if self.training:
            self.steps += 1
            if not self.ready:
                self.shift.data.fill_(-float(images.mean()))
                self.ready = True
            if self.steps > 3:
                images = images * (1 + 0.1 * random.random())
        return super().forward(images + self.shift)


class Versioned(Plain):
    """Refuses a state dict without its version, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if metadata.get("version") != 2:
            raise ValueError("version should be set to 2")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def with_other_name(**kwargs):
    return other_name(**kwargs)


def other_name(nb_classes=10):
    return Plain(nb_classes)


def old_weight_norm(num_classes=10):
    network = Plain(num_classes)
    nn.utils.weight_norm(network.fc)
    return network
