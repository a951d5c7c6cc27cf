"""What a loader gives: all images of a set, before splitting."""

from typing import NamedTuple

from torch import Tensor


class Source(NamedTuple):
    """A data set as its authors or its code made it, on the CPU."""

    train_images: Tensor
    """[N, H, W, C] uint8."""
    train_labels: Tensor
    """[N] int64."""
    test_images: Tensor
    test_labels: Tensor
    num_val: int
    """How many of the training images are held out for validation."""
