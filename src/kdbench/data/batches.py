"""The batches of an epoch, computed on the device."""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from kdbench.data import views as augmentation
from kdbench.data.dataset import Dataset
from kdbench.data.source import Split


class Batch(NamedTuple):
    """Input of a training step."""

    images: Tensor
    """[B, C, H, W] float32, normalised."""
    labels: Tensor
    """[B] int64."""
    indices: Tensor
    """[B] int64: indices of the images in the original set."""
    views: Tensor
    """[B] int64 in [0, 162): view of each image (`kdbench.data.views`)."""


class Batches:
    """Training batches: the same for every run of the same data, data seed and batch size.

    Args:
        dataset: data set on the device of the batches.
        batch_size: images per batch; the last one of an epoch may be smaller.
        data_seed: seed of order and views, together with the epoch.
        augment: whether images are cropped and flipped.
        channels_last: memory format of the images.
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
        """Yield rows and views of the batches of an epoch, counted from 0, without the first `start`."""
        device = self.dataset.train.labels.device
        order, views = augmentation.epoch_plan(len(self.dataset.train), self.data_seed, epoch, self.augment)
        parts = zip(order.to(device).split(self.batch_size), views.to(device).split(self.batch_size), strict=True)
        yield from itertools.islice(parts, start, None)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, without the first `start`."""
        for rows, views in self.plan(epoch, start):
            yield self.batch(rows, views)

    def batch(self, rows: Tensor, views: Tensor) -> Batch:
        """Return a batch of training images by rows [B] and views [B], both int64 and on the data's device."""
        train = self.dataset.train
        images = self.dataset.normalise(augmentation.crop(self.dataset.padded, rows, views))
        return Batch(in_memory_format(images, self.channels_last), train.labels[rows], train.indices[rows], views)


def plain_batches(dataset: Dataset, split: Split, batch_size: int, channels_last: bool) -> Iterator[Tensor]:
    """Yield a split's normalised images in order, without augmentation, for evaluation."""
    for images_NHWC in split.images.split(batch_size):
        yield in_memory_format(dataset.normalise(images_NHWC.permute(0, 3, 1, 2)), channels_last)


def in_memory_format(images: Tensor, channels_last: bool) -> Tensor:
    """Return images [N, C, H, W] in a memory format."""
    return images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
