"""Augmentation as an index: the views of an image by crop and flip.

View v shifts the crop window of the image, padded by p black pixels on each side, and may mirror it:

    v = (row * (2p + 1) + column) * F + flip,   row and column in [0, 2p], flip in [0, F), F = 2 or, without flip, 1

which is what torchvision's RandomCrop(size, padding=p) and RandomHorizontalFlip can do, and no more: 162 views for
p = 4 with flip. Views are drawn from (data seed, epoch) alone, so every run with the same data seed sees the same
images in the same order.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.config.sections import DataKeys


@dataclass(frozen=True)
class Views:
    """The views of an image."""

    padding: int
    """Black pixels on each side before the crop, p."""
    flip: bool
    """True if a view may be mirrored."""

    @property
    def shifts(self) -> int:
        """Positions of the crop window in one direction."""
        return 2 * self.padding + 1

    @property
    def flips(self) -> int:
        return 2 if self.flip else 1

    @property
    def number(self) -> int:
        """Number of views."""
        return self.shifts * self.shifts * self.flips

    @property
    def identity(self) -> int:
        """The view that is the image itself."""
        return (self.padding * self.shifts + self.padding) * self.flips

    def pad(self, images_NHWC: Tensor) -> Tensor:
        """Add the black border to images [N, H, W, C] uint8: [N, H + 2p, W + 2p, C]."""
        if not self.padding:
            return images_NHWC
        return F.pad(images_NHWC, (0, 0, self.padding, self.padding, self.padding, self.padding))

    def crop(self, padded_NHWC: Tensor, rows: Tensor, views: Tensor) -> Tensor:
        """Return view `views[i]` of image `rows[i]`, for a whole batch at once.

        Args:
            padded_NHWC: images from `pad`, uint8.
            rows: [B] int64, rows of `padded_NHWC`.
            views: [B] int64 in [0, number).

        Returns:
            [B, C, H, W] uint8, channels-last in memory.
        """
        height, width = padded_NHWC.shape[1] - 2 * self.padding, padded_NHWC.shape[2] - 2 * self.padding
        # Every window of every image as a strided view, [N, S, S, C, H, W]; only the chosen ones are copied.
        windows = padded_NHWC.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)
        window_rows = views // (self.flips * self.shifts)
        crops_NHWC = windows[rows, window_rows, views // self.flips % self.shifts]
        if self.flip:
            mirrored = (views % 2).bool()[:, None, None, None]
            crops_NHWC = torch.where(mirrored, crops_NHWC.flip(2), crops_NHWC)
        return crops_NHWC.permute(0, 3, 1, 2)


NO_VIEWS = Views(padding=0, flip=False)
"""Without augmentation: the image itself is the only view."""


def views_of(keys: DataKeys) -> Views:
    """Return the views of a data set's training images."""
    return Views(keys.padding, keys.flip) if keys.augment else NO_VIEWS


def epoch_seed(data_seed: int, epoch: int, *purpose: int) -> int:
    """Return a seed that depends on data seed and epoch alone; a purpose beside order and views adds a number."""
    # SeedSequence mixes the numbers, so that (0, 1) and (1, 0) give unrelated streams.
    return int(np.random.SeedSequence([data_seed, epoch, *purpose]).generate_state(1, np.uint64)[0] >> 1)


def epoch_plan(num_samples: int, views: Views, data_seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """Return order and views of one epoch, the same on every device.

    Args:
        num_samples: N, number of training images.
        views: the views.
        data_seed: seed, at least 0.
        epoch: epoch, counted from 0.

    Returns:
        order [N] int64, a permutation; views [N] int64, view of the sample at that place of the order.
    """
    generator = torch.Generator().manual_seed(epoch_seed(data_seed, epoch))
    order = torch.randperm(num_samples, generator=generator)
    return order, torch.randint(views.number, (num_samples,), generator=generator)
