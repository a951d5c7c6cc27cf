"""The fixed split into training and validation images, and balanced subsets."""

import torch
from torch import Tensor

from kdbench.errors import ConfigError

SPLIT_SEED = 1234


def train_val_split(num_images: int, num_val: int) -> tuple[Tensor, Tensor]:
    """Return (training indices, validation indices) of a training set, by a seed that no run changes."""
    permutation = torch.randperm(num_images, generator=torch.Generator().manual_seed(SPLIT_SEED))
    return permutation[num_val:], permutation[:num_val]


def balanced_subset(labels: Tensor, size: int, key: str) -> Tensor:
    """Return rows of `size` images whose class counts differ by at most one, or all rows.

    The first images of each class are taken, so a smaller subset is part of a larger one.

    Args:
        labels: [N] int64.
        size: number of images, at most N.
        key: config key of `size`, for errors.

    Returns:
        [size] int64, ascending.

    Raises:
        ConfigError: `size` is larger than N, or a class has too few images for an equal share.
    """
    if size == len(labels):
        return torch.arange(size)
    if size > len(labels):
        raise ConfigError(
            f"{key} is {size}; the data set has {len(labels)} images for it", code="out_of_range", key=key
        )
    counts = torch.bincount(labels)
    num_classes = len(counts)
    # The remainder comes from the classes with most images, so that the largest possible subset fits.
    largest_first = torch.argsort(counts, descending=True, stable=True)
    share = torch.full((num_classes,), size // num_classes)
    share[largest_first[: size % num_classes]] += 1
    if bool((share > counts).any()):
        raise ConfigError(
            f"{key} is {size}; a balanced subset may have at most {num_classes * int(counts.min())} images "
            f"(the smallest class has {int(counts.min())}), and without balance all {len(labels)}",
            code="out_of_range",
            key=key,
        )
    rows = [(labels == label).nonzero().flatten()[: share[label]] for label in range(num_classes)]
    return torch.cat(rows).sort().values
