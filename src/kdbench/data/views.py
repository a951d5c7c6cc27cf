"""Augmentation as an index: the 9 x 9 x 2 = 162 views of a 32 x 32 image.

View v shifts the crop window of the image, padded by 4 black pixels on each side, and may mirror it:

    v = (row * 9 + column) * 2 + flip,   row and column in [0, 8], flip in {0, 1}

which is what torchvision's RandomCrop(32, padding=4) and RandomHorizontalFlip can do, and no more. Views are drawn
from (data seed, epoch) alone, so every run with the same data seed sees the same images in the same order.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

PADDING = 4
SHIFTS = 2 * PADDING + 1
NUM_VIEWS = SHIFTS * SHIFTS * 2
IDENTITY_VIEW = (PADDING * SHIFTS + PADDING) * 2


def pad(images_NHWC: Tensor) -> Tensor:
    """Add a black border to images [N, H, W, C] uint8: [N, H + 8, W + 8, C]."""
    return F.pad(images_NHWC, (0, 0, PADDING, PADDING, PADDING, PADDING))


def crop(padded_NHWC: Tensor, indices: Tensor, views: Tensor) -> Tensor:
    """Return view `views[i]` of image `indices[i]`, for a whole batch at once.

    Args:
        padded_NHWC: images from `pad`, uint8.
        indices: [B] int64, rows of `padded_NHWC`.
        views: [B] int64 in [0, 162).

    Returns:
        [B, C, H, W] uint8, channels-last in memory.
    """
    height, width = padded_NHWC.shape[1] - 2 * PADDING, padded_NHWC.shape[2] - 2 * PADDING
    # Every window of every image as a strided view, [N, 9, 9, C, H, W]; only the chosen ones are copied.
    windows = padded_NHWC.unfold(1, height, 1).unfold(2, width, 1).permute(0, 1, 2, 4, 5, 3)
    rows, columns, flips = views // (2 * SHIFTS), views // 2 % SHIFTS, views % 2
    crops_NHWC = windows[indices, rows, columns]
    mirrored_NHWC = crops_NHWC.flip(2)
    return torch.where(flips.bool()[:, None, None, None], mirrored_NHWC, crops_NHWC).permute(0, 3, 1, 2)


def epoch_plan(num_samples: int, data_seed: int, epoch: int, augment: bool) -> tuple[Tensor, Tensor]:
    """Return order and views of one epoch, the same on every device.

    Args:
        num_samples: N, number of training images.
        data_seed: seed, at least 0.
        epoch: epoch, counted from 0.
        augment: whether images are cropped and flipped; otherwise every view is the image itself.

    Returns:
        order [N] int64, a permutation; views [N] int64 in [0, 162), view of the sample at that place of the order.
    """
    # SeedSequence mixes the two numbers, so that (0, 1) and (1, 0) give unrelated streams.
    seed = int(np.random.SeedSequence([data_seed, epoch]).generate_state(1, np.uint64)[0] >> 1)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(num_samples, generator=generator)
    views = torch.randint(NUM_VIEWS, (num_samples,), generator=generator)
    return order, views if augment else torch.full_like(views, IDENTITY_VIEW)
