"""Images with labels: a split, and all splits of a data set as a loader returns them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor


class DataSpec(NamedTuple):
    """Properties of a data set that networks and methods depend on."""

    num_classes: int
    input_shape: tuple[int, int, int]
    """C, H, W of an image."""
    class_names: tuple[str, ...] = ()
    """Name of each class; empty where they have none."""
    mean: tuple[float, ...] = ()
    """Mean of each channel, of values in [0, 1]."""
    std: tuple[float, ...] = ()
    """Standard deviation of each channel."""


@dataclass(frozen=True)
class Split:
    """Some images of a data set."""

    images: Tensor
    """[N, H, W, C] uint8."""
    labels: Tensor
    """[N] int64."""
    indices: Tensor
    """[N] int64: indices of the images in the original set."""

    @classmethod
    def of(cls, images: Any, labels: Any) -> "Split":
        """Return all images of a set.

        Args:
            images: [N, H, W, 3] uint8, red, green and blue, or grey [N, H, W] or [N, H, W, 1], which becomes three
                equal channels; an array or a tensor.
            labels: [N], whole numbers from 0.

        Raises:
            ValueError: the images are of another type or shape, or there is not one label per image.
        """
        images, labels = torch.as_tensor(images), torch.as_tensor(labels)
        if images.dtype != torch.uint8:
            raise ValueError(f"images are {images.dtype}; they must be uint8 in [0, 255]")
        if images.ndim == 3:
            images = images[..., None]
        if not len(images):
            raise ValueError("there are no images")
        if images.ndim != 4 or images.shape[3] not in (1, 3) or not images.numel():
            raise ValueError(f"images are {list(images.shape)}; they must be [N, H, W, 3], [N, H, W, 1] or [N, H, W]")
        if images.shape[3] == 1:
            images = images.expand(-1, -1, -1, 3)
        if labels.is_floating_point() or labels.dtype == torch.bool or list(labels.shape) != [len(images)]:
            raise ValueError(
                f"labels are {list(labels.shape)} of {labels.dtype}; they must be [{len(images)}] whole numbers"
            )
        return cls(images.contiguous(), labels.to(torch.int64), torch.arange(len(images)))

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of images, labels and indices: 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for values in (self.images, self.labels, self.indices):
            digest.update(values.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    @property
    def num_bytes(self) -> int:
        """Size of the images."""
        return self.images.numel()

    def take(self, rows: Tensor) -> "Split":
        """Return some rows."""
        return Split(*(values[rows] for values in (self.images, self.labels, self.indices)))

    def to(self, device: str, images_on: str, pinned: bool = False) -> "Split":
        """Return the split on a device, with its images there or on the host, in pinned memory on request."""
        images = self.images.to(images_on)
        if pinned and images_on == "cpu" and torch.device(device).type == "cuda":
            images = images.pin_memory()
        return Split(images, self.labels.to(device), self.indices.to(device))


class Source(NamedTuple):
    """All images for training, validation and test, on the CPU."""

    train: Split
    val: Split
    test: Split
    class_names: Sequence[str]
    """Name of each class, in the order of the labels."""
