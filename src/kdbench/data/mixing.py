"""Augmentation of normalised batches: random erasing, mixup and CutMix, as torchvision computes them.

What is random is drawn on the CPU for a whole epoch; the rest is computed on the device without waiting for it.
"""

import math

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor

ERASED_AREA = (0.02, 0.33)
"""Smallest and largest share of an image that is erased (Zhong et al. 2017, arXiv 1708.04896)."""
ERASED_RATIO = (0.3, 3.3)
"""Smallest and largest ratio of height to width of the erased rectangle."""
ATTEMPTS = 10
"""Rectangles that are drawn for an image until one fits into it; if none does, nothing is erased."""
NO_BOX = (0, 0, 0, 0)


def draw_erasing(count: int, height: int, width: int, probability: float, random: RandomState) -> Tensor:
    """Draw the rectangles that torchvision's RandomErasing erases.

    Args:
        count: number of images.
        height: H of the images.
        width: W of the images.
        probability: share of the images that are erased, in [0, 1].
        random: source of random numbers.

    Returns:
        [count, 4] int64: top, left, bottom, right; bottom and right are exclusive, and an empty rectangle is all 0.
    """
    chosen = random.random_sample(count) < probability
    area = height * width * random.uniform(*ERASED_AREA, (count, ATTEMPTS))
    low, high = map(math.log, ERASED_RATIO)
    ratio = np.exp(random.uniform(low, high, (count, ATTEMPTS)))
    heights, widths = np.rint(np.sqrt(area * ratio)).astype(int), np.rint(np.sqrt(area / ratio)).astype(int)
    places = random.random_sample((2, count, ATTEMPTS))
    tops = (places[0] * (height - heights + 1)).astype(int)
    lefts = (places[1] * (width - widths + 1)).astype(int)
    fits = (heights < height) & (widths < width)
    first = fits.argmax(axis=1)[:, None]
    top, left, h, w = (np.take_along_axis(values, first, axis=1)[:, 0] for values in (tops, lefts, heights, widths))
    boxes = np.stack([top, left, top + h, left + w], axis=1)
    return torch.from_numpy(np.where((chosen & fits.any(axis=1))[:, None], boxes, 0))


def erase(images_NCHW: Tensor, boxes: Tensor) -> Tensor:
    """Return normalised images with a rectangle of each set to 0; boxes [N, 4] from `draw_erasing`."""
    return images_NCHW.masked_fill(inside(boxes, *images_NCHW.shape[2:])[:, None], 0)


def inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Return which pixels lie in the boxes [N, 4]: [N, H, W] bool."""
    top, left, bottom, right = boxes[:, :, None, None].unbind(1)
    y = torch.arange(height, device=boxes.device)[:, None]
    x = torch.arange(width, device=boxes.device)
    return (y >= top) & (y < bottom) & (x >= left) & (x < right)


def draw_mixing(
    steps: int, height: int, width: int, mixup: float, cutmix: float, random: RandomState
) -> tuple[Tensor, Tensor]:
    """Draw how each batch of an epoch is mixed. With both kinds, each batch has one of them with equal probability.

    Args:
        steps: number of batches.
        height: H of the images.
        width: W of the images.
        mixup: alpha of mixup's Beta(alpha, alpha); 0: no mixup.
        cutmix: alpha of CutMix; 0: no CutMix.
        random: source of random numbers.

    Returns:
        shares [steps, 4] float32: what a pixel keeps of its own image, what it takes of the partner's, and the same for
        the labels; boxes [steps, 1, 4] int64: the rectangle that CutMix takes from the partner, empty for mixup.

    Sources: Zhang et al. 2018 (arXiv 1710.09412); Yun et al. 2019 (arXiv 1905.04899).
    """
    kinds = random.random_sample(steps) < 0.5
    beta_of = {alpha: random.beta(alpha, alpha, steps) for alpha in (mixup, cutmix) if alpha}
    places = random.random_sample((steps, 2))
    shares, boxes = [], []
    for step in range(steps):
        if mixup and (not cutmix or kinds[step]):
            own = float(beta_of[mixup][step])
            shares.append((own, 1 - own, own, 1 - own))
            boxes.append(NO_BOX)
            continue
        box = cutmix_box(float(beta_of[cutmix][step]), height, width, *(places[step] * (height, width)).astype(int))
        top, left, bottom, right = box
        own = 1 - (bottom - top) * (right - left) / (height * width)
        shares.append((1.0, 0.0, own, 1 - own))
        boxes.append(box)
    return torch.tensor(shares, dtype=torch.float32), torch.tensor(boxes)[:, None]


def cutmix_box(share: float, height: int, width: int, y: int, x: int) -> tuple[int, int, int, int]:
    """Return CutMix's rectangle around a centre, cut at the border: top, left, bottom, right.

    Args:
        share: what remains of the image, where nothing is cut at the border.
        height: H of the image.
        width: W of the image.
        y: row of the centre.
        x: column of the centre.
    """
    half = 0.5 * math.sqrt(1 - share)
    half_height, half_width = int(half * height), int(half * width)
    top, bottom = max(y - half_height, 0), min(y + half_height, height)
    left, right = max(x - half_width, 0), min(x + half_width, width)
    return top, left, bottom, right


def mix(images_NCHW: Tensor, targets_NC: Tensor, shares: Tensor, box: Tensor) -> tuple[Tensor, Tensor]:
    """Mix each image and its target with those of the image before it in the batch, the first with the last.

    Args:
        images_NCHW: normalised images.
        targets_NC: probabilities of the classes.
        shares: [4] float32, of this batch, from `draw_mixing`.
        box: [1, 4] int64, of this batch.

    Returns:
        The mixed images and targets.
    """
    own, other, own_target, other_target = shares.unbind()
    partners = images_NCHW.roll(1, 0)
    mixed = (partners * other).add_(images_NCHW * own)
    images = torch.where(inside(box, *images_NCHW.shape[2:])[:, None], partners, mixed)
    return images, (targets_NC.roll(1, 0) * other_target).add_(targets_NC * own_target)


def smoothed(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Return labels [N] as probabilities [N, C] float32: 1 - smoothing on the label, and smoothing / C on every class.

    Source: Szegedy et al. 2016 (arXiv 1512.00567), section 7.
    """
    classes = torch.arange(num_classes, device=labels.device)  # one_hot reads values on the host on some devices
    return (labels[:, None] == classes).float().mul_(1 - smoothing).add_(smoothing / num_classes)
