"""Contract of a compression: a class with its keys, from a trained network to a smaller one and its weights."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from kdbench.config import ModelConfig
from kdbench.config.derived import CompressConfig
from kdbench.data.source import DataSpec
from kdbench.models import ModelSummary


@dataclass(frozen=True)
class Subject:
    """A trained network that is to be compressed."""

    model: ModelConfig
    """Its architecture, without first weights."""
    summary: ModelSummary
    body: nn.Module
    """Its module with the trained weights, on the CPU, in evaluation mode; a copy that may be changed."""
    spec: DataSpec
    images: Callable[[], Iterator[Tensor]]
    """Returns all training images in a fixed random order: normalised batches [B, C, H, W], without augmentation."""


@dataclass(frozen=True)
class Compressed:
    """The result of a compression."""

    model: ModelConfig
    """Architecture, with the name of the one before."""
    weights: dict[str, Tensor]
    """Its state dict."""


def fault_of_order(compress: CompressConfig, rounded: str | None, masks: str | None) -> str:
    """Return why a compression cannot follow others, or an empty text.

    Args:
        compress: the compression.
        rounded: name of the step after which the weights are rounded, or None.
        masks: name of the step that masked the weights, or None.
    """
    if rounded is not None:
        return (
            f"{compress.name} cannot follow {rounded}, whose weights are rounded and whose batch norms may be folded "
            f"into convolutions; put {rounded} last"
        )
    if masks is not None and not compress.target.after_masks:
        return (
            f"{compress.name} cannot follow {masks}, whose masks belong to weights of the shapes that they were made "
            f"for; put {compress.name} before {masks}"
        )
    return ""


class Compression(ABC):
    """A way to make a trained network smaller. Its random numbers come from torch's global generator, seeded.

    Args:
        config: instance of the class's `Config`.

    Raises:
        ConfigError: its keys contradict each other.
    """

    Config: ClassVar[type[Any]]
    """Dataclass of the keys in its YAML file."""
    trainable: ClassVar[bool] = True
    """True if the result can be trained, and compressed further."""
    masks: ClassVar[bool] = False
    """True if it masks weights."""
    after_masks: ClassVar[bool] = False
    """True if it can follow a compression that masks weights."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def apply(self, subject: Subject) -> Compressed:
        """Return the compressed network.

        Raises:
            ConfigError: the network cannot be compressed in this way.
        """
