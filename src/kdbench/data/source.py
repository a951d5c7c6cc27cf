"""What a loader gives: all images of a set, split."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Split:
    """Some images of a set."""

    images: Tensor
    """[N, H, W, C] uint8."""
    labels: Tensor
    """[N] int64."""
    indices: Tensor
    """[N] int64: which images of the original set these are."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Tensor, device: str) -> "Split":
        """Some rows of it, on a device."""
        return Split(*(values[rows].to(device) for values in (self.images, self.labels, self.indices)))


class Source(NamedTuple):
    """Every image that may train, validate and test, on the CPU."""

    train: Split
    val: Split
    test: Split
