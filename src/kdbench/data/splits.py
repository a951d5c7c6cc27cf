"""Which images train, which validate: fixed for all runs, and balanced when only some are used."""

import torch
from torch import Tensor

from kdbench.errors import ConfigError

SPLIT_SEED = 1234


def train_val_split(num_images: int, num_val: int) -> tuple[Tensor, Tensor]:
    """(training indices, validation indices) of a training set, from a seed that no run changes."""
    permutation = torch.randperm(num_images, generator=torch.Generator().manual_seed(SPLIT_SEED))
    return permutation[num_val:], permutation[:num_val]


def balanced_subset(indices: Tensor, labels: Tensor, size: int, key: str) -> Tensor:
    """`size` of `indices` with class counts that differ by at most one, or all of them as they are.

    The first ones of each class are taken, so a smaller subset lies in a larger one.

    Args:
        indices: [N] int64, which images there are to choose from.
        labels: [M] int64, the label of every image of the set.
        size: At most N.
        key: The config key that asks for `size`, for errors.

    Raises:
        ConfigError: `size` is larger than N, or some class has too few images for an equal share.
    """
    if size == len(indices):
        return indices
    if size > len(indices):
        raise ConfigError(f"{key} is {size}; the set has {len(indices)} images for it")
    counts = torch.bincount(labels[indices])
    num_classes = len(counts)
    # The classes with most images give the odd ones, so that as much as possible fits.
    richest_first = torch.argsort(counts, descending=True, stable=True)
    share = torch.full((num_classes,), size // num_classes)
    share[richest_first[: size % num_classes]] += 1
    if bool((share > counts).any()):
        raise ConfigError(
            f"{key} is {size}; a balanced subset may have at most {num_classes * int(counts.min())} images "
            f"(the rarest class has {int(counts.min())}), and without balance all {len(indices)}"
        )
    own_labels = labels[indices]
    chosen = [(own_labels == label).nonzero().flatten()[: share[label]] for label in range(num_classes)]
    return indices[torch.cat(chosen).sort().values]
