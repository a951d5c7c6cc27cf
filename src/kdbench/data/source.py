"""All images of a data set in splits, as a loader returns them."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Some images of a data set."""

    images: Tensor
    """[N, H, W, C] uint8."""
    labels: Tensor
    """[N] int64."""
    indices: Tensor
    """[N] int64: indices of the images in the original set."""

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def sha256(self) -> str:
        """SHA-256 of images, labels and indices: 64 hexadecimal digits."""
        digest = hashlib.sha256()
        for values in (self.images, self.labels, self.indices):
            digest.update(values.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def take(self, rows: Tensor, device: str) -> "Split":
        """Return some rows, on a device."""
        return Split(*(values[rows].to(device) for values in (self.images, self.labels, self.indices)))


class Source(NamedTuple):
    """All images for training, validation and test, on the CPU."""

    train: Split
    val: Split
    test: Split
