"""Networks with random weights, as compressions take them, and compressed ones built from their configs."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.compress import Compressed, Subject
from kdbench.config import ModelConfig
from kdbench.models import Network, build, summarize, weights
from kdbench.pipeline.steps import compose_compression
from tests.conftest import SMALL, composed_once
from tests.networks import SPEC


def named(*overrides: str) -> ModelConfig:
    """Return a network that ships by name: `student=NAME` and its arguments."""
    return composed_once(*SMALL, "teacher=none", "method=ce", *overrides).student


def own(name: str) -> ModelConfig:
    """Return a network of `tests.compress.networks`."""
    return ModelConfig(name, f"tests.compress.networks.{name}", {}, {})


def randomise(body: nn.Module) -> None:
    """Give a network's batch norms other weights, biases and statistics than fresh ones have, no two the same."""
    generator = torch.Generator().manual_seed(1)
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data = 0.5 + torch.rand(module.num_features, generator=generator)
            module.bias.data = 0.2 * torch.randn(module.num_features, generator=generator)
            module.running_mean = 0.2 * torch.randn(module.num_features, generator=generator)
            module.running_var = 0.5 + torch.rand(module.num_features, generator=generator)


def some_images(count: int = 4) -> Tensor:
    return torch.randn(count, *SPEC.input_shape, generator=torch.Generator().manual_seed(2))


def calibration() -> Iterator[Tensor]:
    """Yield three batches of images."""
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        yield torch.randn(16, *SPEC.input_shape, generator=generator)


def subject_of(model: ModelConfig, images: Any = calibration) -> Subject:
    """Return a network with random weights."""
    torch.manual_seed(0)
    network = build(model, SPEC, (), trained=False)
    randomise(network.body)
    summary = summarize(model, SPEC, "student", trained=False)
    return Subject(model, summary, network.plain_copy().eval(), SPEC, images)


def apply(subject: Subject, name: str, *settings: str) -> Compressed:
    """Compress a network by one step: the name in conf/compress/ and `KEY=VALUE`."""
    config = compose_compression(name, settings, None)
    compressed: Compressed = config.target(config.params).apply(subject)
    return compressed


def rebuilt(compressed: Compressed) -> Network:
    """Return the compressed network, built from its config, with its weights."""
    network = build(compressed.model, SPEC, (), trained=False)
    weights.load_into(network, compressed.weights, "the compressed network")
    return network.eval()
