"""The batches of an epoch, made on the device."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kdbench.data import views as augmentation
from kdbench.data.dataset import Dataset
from kdbench.data.source import Split


class Batch(NamedTuple):
    """What a step sees."""

    images: Tensor
    """[B, C, H, W] float32, normalised."""
    labels: Tensor
    """[B] int64."""
    indices: Tensor
    """[B] int64: which images of the original set these are."""
    views: Tensor
    """[B] int64 in [0, 162): which view of each (see `kdbench.data.views`)."""


class Batches:
    """Training batches: the same for every run of the same data, data seed and batch size.

    Args:
        dataset: On the device where the batches are wanted.
        batch_size: Images a batch; the last one of an epoch has what is left.
        data_seed: With the epoch it decides order and views.
        augment: False gives every image as it is.
        channels_last: Memory format of the images.
    """

    def __init__(self, dataset: Dataset, batch_size: int, data_seed: int, augment: bool, channels_last: bool) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.data_seed = data_seed
        self.augment = augment
        self.channels_last = channels_last

    def __len__(self) -> int:
        """Steps in an epoch."""
        return -(-len(self.dataset.train) // self.batch_size)

    def plan(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and views of the batches of an epoch, counted from 0, without the first `start`."""
        device = self.dataset.train.labels.device
        order, views = augmentation.epoch_plan(len(self.dataset.train), self.data_seed, epoch, self.augment)
        parts = zip(order.to(device).split(self.batch_size), views.to(device).split(self.batch_size), strict=True)
        yield from itertools.islice(parts, start, None)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches themselves."""
        for rows, views in self.plan(epoch, start):
            yield self.batch(rows, views)

    def batch(self, rows: Tensor, views: Tensor) -> Batch:
        """Any rows of the training images [B] in any views [B], both int64 and on the data's device."""
        train = self.dataset.train
        images = self.dataset.normalise(augmentation.crop(self.dataset.padded, rows, views))
        return Batch(in_memory_format(images, self.channels_last), train.labels[rows], train.indices[rows], views)


def plain_batches(dataset: Dataset, split: Split, batch_size: int, channels_last: bool) -> Iterator[Tensor]:
    """A split's normalised images in order, without augmentation, to evaluate on."""
    for images_NHWC in split.images.split(batch_size):
        yield in_memory_format(dataset.normalise(images_NHWC.permute(0, 3, 1, 2)), channels_last)


def in_memory_format(images: Tensor, channels_last: bool) -> Tensor:
    return images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
