"""The batches of an epoch, computed on the device."""

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from numpy.random import RandomState
from torch import Tensor

from kdbench.config.recipe import RecipeConfig
from kdbench.data.dataset import Dataset
from kdbench.data.mixing import draw_erasing, draw_mixing, erase, mix, smoothed
from kdbench.data.policies import Policy
from kdbench.data.source import Split
from kdbench.data.views import epoch_plan, epoch_seed

POLICY, ERASING, MIXING = 1, 2, 3
"""Purposes of an epoch's random numbers beside order and views."""


policy_of = functools.lru_cache(maxsize=2)(Policy)
"""Policies are large and have no state: the runs of a group share one."""


class Batch(NamedTuple):
    """Input of a training step."""

    images: Tensor
    """[B, C, H, W] float32, normalised."""
    labels: Tensor
    """[B] int64. Where images are mixed: of the one with the larger share."""
    indices: Tensor
    """[B] int64: indices of the images in the original set."""
    views: Tensor
    """[B] int64: view of each image (`kdbench.data.views`)."""
    soft_targets: Tensor | None = None
    """[B, num_classes] float32: probabilities of the classes, where labels are smoothed or mixed."""

    @property
    def targets(self) -> Tensor:
        """Targets of the cross-entropy: labels [B], or probabilities [B, C] where they are smoothed or mixed."""
        return self.labels if self.soft_targets is None else self.soft_targets

    def part(self, rows: slice) -> "Batch":
        """Return some of the images."""
        return Batch._make(None if values is None else values[rows] for values in self)


class BatchPlan(NamedTuple):
    """Everything that determines a batch, on its device."""

    rows: Tensor
    """[B] int64: rows of the training images."""
    views: Tensor
    """[B] int64: view of each."""
    images: Tensor | None = None
    """[B, C, H, W] uint8: the augmented images, where rows and views alone do not give them on the device."""
    erased: Tensor | None = None
    """[B, 4] int64: rectangle that is erased in each image."""
    shares: Tensor | None = None
    """[4] float32: shares of mixed images and labels."""
    box: Tensor | None = None
    """[1, 4] int64: rectangle of CutMix."""


class EpochDraws(NamedTuple):
    """Everything random of an epoch."""

    order: Tensor
    """[N] int64: rows of the training images, on the device."""
    views: Tensor
    """[N] int64: view of each, on the device."""
    rows_of_images: Tensor
    """The same as `order` where the images lie."""
    views_of_images: Tensor
    operations: Tensor | None
    """[N, K] int64 on the CPU: operations of the policy."""
    erased: Tensor | None
    """[N, 4] int64: erased rectangles."""
    shares: Tensor | None
    """[steps, 4] float32: shares of mixed images and labels."""
    boxes: Tensor | None
    """[steps, 1, 4] int64: rectangles of CutMix."""


class Batches:
    """Training batches: the same for every run of the same data, data seed and batch keys of the recipe.

    Args:
        dataset: data set on the device of the batches.
        recipe: batch size, augmentation beyond crop and flip, mixing and label smoothing.
        data_seed: seed of everything random in an epoch, together with the epoch.
        channels_last: memory format of the images.
    """

    def __init__(self, dataset: Dataset, recipe: RecipeConfig, data_seed: int, channels_last: bool) -> None:
        self.dataset = dataset
        self.recipe = recipe
        self.batch_size = recipe.batch_size
        self.data_seed = data_seed
        self.channels_last = channels_last
        self.height, self.width = dataset.spec.input_shape[1:]
        self.policy: Policy | None = None
        if recipe.policy:
            self.policy = policy_of(
                recipe.policy, self.height, self.width, dataset.device, recipe.policy_ops, recipe.policy_magnitude
            )

    def __len__(self) -> int:
        """Steps in an epoch."""
        return -(-len(self.dataset.train) // self.batch_size)

    def draw(self, epoch: int) -> "EpochDraws":
        """Return everything random of an epoch, counted from 0."""
        recipe, images, device = self.recipe, len(self.dataset.train), self.dataset.device
        order, views = epoch_plan(images, self.dataset.views, self.data_seed, epoch)
        operations = erased = shares = boxes = None
        if self.policy:
            generator = torch.Generator().manual_seed(epoch_seed(self.data_seed, epoch, POLICY))
            operations = self.policy.draw(images, generator)
        if recipe.erasing:
            random = RandomState(epoch_seed(self.data_seed, epoch, ERASING) % 2**32)
            erased = draw_erasing(images, self.height, self.width, recipe.erasing, random).to(device)
        if recipe.mixes:
            random = RandomState(epoch_seed(self.data_seed, epoch, MIXING) % 2**32)
            shares, boxes = draw_mixing(len(self), self.height, self.width, recipe.mixup, recipe.cutmix, random)
            shares, boxes = shares.to(device), boxes.to(device)
        place = "cpu" if self.dataset.on_host else device
        return EpochDraws(order.to(device), views.to(device), order.to(place), views.to(place),
                          operations, erased, shares, boxes)  # fmt: skip

    def plan(self, epoch: int, start: int = 0) -> Iterator[BatchPlan]:
        """Yield the plans of the batches of an epoch, counted from 0, without the first `start`."""
        draws = self.draw(epoch)
        for step in range(start, len(self)):
            part = slice(step * self.batch_size, (step + 1) * self.batch_size)
            images = None
            if draws.operations is not None or self.dataset.on_host:
                images = self.crops(draws.rows_of_images[part], draws.views_of_images[part])
            if self.policy and images is not None and draws.operations is not None:
                images = self.policy.apply(images, draws.operations[part])
            yield BatchPlan(
                draws.order[part],
                draws.views[part],
                images,
                None if draws.erased is None else draws.erased[part],
                None if draws.shares is None else draws.shares[step],
                None if draws.boxes is None else draws.boxes[step],
            )

    def crops(self, rows: Tensor, views: Tensor) -> Tensor:
        """Return views of training images [B, C, H, W] uint8 on the device; rows and views lie where the images are."""
        crops = self.dataset.views.crop(self.dataset.padded, rows, views)
        if self.dataset.on_host and self.dataset.device != "cpu":
            return crops.pin_memory().to(self.dataset.device, non_blocking=True)
        return crops

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch, without the first `start`."""
        for plan in self.plan(epoch, start):
            yield self.batch(plan)

    def batch(self, plan: BatchPlan) -> Batch:
        """Return the batch of a plan. Unless images lie on the host and the plan has none, it can be captured."""
        train, recipe = self.dataset.train, self.recipe
        crops = plan.images
        if crops is None:
            rows, views = (plan.rows.cpu(), plan.views.cpu()) if self.dataset.on_host else (plan.rows, plan.views)
            crops = self.crops(rows, views)
        images, labels, targets = self.dataset.normalise(crops), train.labels[plan.rows], None
        if plan.erased is not None:
            images = erase(images, plan.erased)
        if plan.shares is not None or recipe.label_smoothing:
            targets = smoothed(labels, self.dataset.spec.num_classes, recipe.label_smoothing)
        if plan.shares is not None and plan.box is not None and targets is not None:
            images, targets = mix(images, targets, plan.shares, plan.box)
            labels = torch.where(plan.shares[2] >= plan.shares[3], labels, labels.roll(1))
        images = in_memory_format(images, self.channels_last)
        return Batch(images, labels, train.indices[plan.rows], plan.views, targets)


def plain_batches(dataset: Dataset, split: Split, batch_size: int, channels_last: bool) -> Iterator[Tensor]:
    """Yield a split's normalised images in order, without augmentation, for evaluation."""
    for images_NHWC in split.images.split(batch_size):
        on_device = images_NHWC.to(dataset.device, non_blocking=True)
        yield in_memory_format(dataset.normalise(on_device.permute(0, 3, 1, 2)), channels_last)


def in_memory_format(images: Tensor, channels_last: bool) -> Tensor:
    """Return images [N, C, H, W] in a memory format."""
    return images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
