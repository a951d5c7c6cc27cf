"""Random erasing, mixup, CutMix and label smoothing, against torchvision's and PyTorch's own."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.random import RandomState
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2
from torchvision.transforms.functional import erase as torchvisions_erase

from kdbench.data.mixing import (
    ERASED_AREA,
    ERASED_RATIO,
    NO_BOX,
    cutmix_box,
    draw_erasing,
    draw_mixing,
    erase,
    mix,
    smoothed,
)

HEIGHT, WIDTH = 32, 24
CLASSES = 7


def images_and_labels(batch: int = 9, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return a batch of normalised images and their labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, HEIGHT, WIDTH, generator=generator)
    return images, torch.randint(CLASSES, (batch,), generator=generator)


# Erasing


def sides_of(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Return heights and widths of boxes [N, 4]."""
    top, left, bottom, right = boxes.unbind(1)
    return bottom - top, right - left


@pytest.mark.parametrize("channels_last", [False, True])
def test_erased_images_are_those_of_torchvision(channels_last: bool) -> None:
    images, _ = images_and_labels(40)
    images = images.contiguous(memory_format=torch.channels_last) if channels_last else images
    before = images.clone()
    boxes = draw_erasing(len(images), HEIGHT, WIDTH, 0.8, RandomState(1))
    erased = erase(images, boxes)
    for image, result, (top, left, bottom, right) in zip(images, erased, boxes.tolist(), strict=True):
        expected = torchvisions_erase(image, top, left, bottom - top, right - left, torch.zeros(3, 1, 1))
        assert torch.equal(result, expected)
    assert torch.equal(images, before)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (32, 8), (64, 48)])
def test_erased_boxes_lie_in_the_image_and_have_allowed_areas_and_ratios(height: int, width: int) -> None:
    boxes = draw_erasing(4000, height, width, 1.0, RandomState(2))
    assert boxes.dtype == torch.int64
    assert bool((boxes >= 0).all())
    assert bool((boxes[:, 2] <= height).all())
    assert bool((boxes[:, 3] <= width).all())
    empty = (boxes == 0).all(dim=1)
    heights, widths = sides_of(boxes[~empty])
    assert bool((heights < height).all())
    assert bool((widths < width).all())
    # A side is rounded to a whole pixel, so the real rectangle lies between half a pixel less and half a pixel more.
    area, ratio = ERASED_AREA, ERASED_RATIO
    assert bool(((heights + 0.5) * (widths + 0.5) >= area[0] * height * width).all())
    assert bool(((heights - 0.5) * (widths - 0.5) <= area[1] * height * width).all())
    assert bool(((heights + 0.5) / (widths - 0.5).clamp_min(1e-9) >= ratio[0]).all())
    assert bool(((heights - 0.5) / (widths + 0.5) <= ratio[1]).all())


def torchvisions_boxes(count: int, probability: float) -> Tensor:
    """Return boxes as torchvision's RandomErasing draws them, all 0 where it erases nothing."""
    transform = v2.RandomErasing(probability, ERASED_AREA, ERASED_RATIO)
    image, boxes = torch.ones(1, HEIGHT, WIDTH), []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(count):
            drawn = transform.make_params([image])
            erases = bool(torch.rand(1) < probability) and drawn["v"] is not None
            top, left = drawn["i"], drawn["j"]
            boxes.append((top, left, top + drawn["h"], left + drawn["w"]) if erases else NO_BOX)
    return torch.tensor(boxes)


@pytest.mark.parametrize("probability", [0.25, 1.0])
def test_erased_boxes_are_distributed_as_those_of_torchvision(probability: float) -> None:
    count = 5000
    own, other = draw_erasing(count, HEIGHT, WIDTH, probability, RandomState(3)), torchvisions_boxes(count, probability)
    erased = [(boxes[:, 2] > 0) for boxes in (own, other)]
    assert float(erased[0].double().mean()) == pytest.approx(float(erased[1].double().mean()), abs=0.03)
    own, other = own[erased[0]].double(), other[erased[1]].double()

    def quantities(boxes: Tensor) -> dict[str, Tensor]:
        heights, widths = sides_of(boxes)
        return {
            "area": heights * widths,
            "log of ratio": torch.log(heights / widths),
            "row of the centre": boxes[:, 0] + heights / 2,
            "column of the centre": boxes[:, 1] + widths / 2,
        }

    expected = quantities(other)
    for name, values in quantities(own).items():
        # Five standard errors of a mean, or of a difference of the standard deviations, are no difference.
        error = float(expected[name].std()) * math.sqrt(1 / len(own) + 1 / len(other))
        assert float(values.mean()) == pytest.approx(float(expected[name].mean()), abs=5 * error), name
        assert float(values.std()) == pytest.approx(float(expected[name].std()), abs=5 * error), name


def test_without_probability_nothing_is_erased() -> None:
    images, _ = images_and_labels()
    boxes = draw_erasing(len(images), HEIGHT, WIDTH, 0.0, RandomState(0))
    assert torch.equal(erase(images, boxes), images)


def test_an_image_that_no_rectangle_fits_into_is_left_as_it_is() -> None:
    images = torch.ones(50, 3, 1, 9)
    assert torch.equal(erase(images, draw_erasing(50, 1, 9, 1.0, RandomState(0))), images)


# Mixup and CutMix


def given_draws(monkeypatch: pytest.MonkeyPatch, share: float, y: int = 0, x: int = 0) -> None:
    """Make torchvision draw a share and the centre of a box."""
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda *_: torch.tensor([share], dtype=torch.float64))
    centre = iter((x, y))
    monkeypatch.setattr(torch, "randint", lambda *_, **__: torch.tensor([next(centre)]))


def mixed_by(batch: tuple[Tensor, Tensor], shares: tuple[float, ...], box: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return what `mix` makes of images and labels."""
    images, labels = batch
    return mix(images, smoothed(labels, CLASSES, 0.0), torch.tensor(shares), torch.tensor([box]))


def assert_equal(own: tuple[Tensor, Tensor], expected: Any) -> None:
    assert torch.equal(own[0], expected[0])
    assert torch.equal(own[1], expected[1])


@pytest.mark.parametrize("share", [0.0, 0.1, 1 / 3, 0.5, 0.7123456789012345, 0.999999, 1.0])
@pytest.mark.parametrize("batch", [9, 1])
def test_mixup_is_that_of_torchvision_bit_for_bit(monkeypatch: pytest.MonkeyPatch, share: float, batch: int) -> None:
    given = images_and_labels(batch)
    given_draws(monkeypatch, share)
    expected = v2.MixUp(alpha=0.5, num_classes=CLASSES)(*given)
    assert_equal(mixed_by(given, (share, 1 - share, share, 1 - share), NO_BOX), expected)


@pytest.mark.parametrize(("y", "x"), [(0, 0), (31, 23), (16, 12), (3, 20)])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.51, 0.9, 1.0])
@pytest.mark.parametrize("batch", [9, 1])
def test_cutmix_is_that_of_torchvision_bit_for_bit(
    monkeypatch: pytest.MonkeyPatch, share: float, y: int, x: int, batch: int
) -> None:
    given = images_and_labels(batch)
    given_draws(monkeypatch, share, y, x)
    expected = v2.CutMix(alpha=1.0, num_classes=CLASSES)(*given)
    top, left, bottom, right = box = cutmix_box(share, HEIGHT, WIDTH, y, x)
    own = 1 - (bottom - top) * (right - left) / (HEIGHT * WIDTH)
    assert_equal(mixed_by(given, (1.0, 0.0, own, 1 - own), box), expected)


def test_mixing_smoothed_labels_is_that_of_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    share = 0.3
    images, labels = images_and_labels()
    targets = smoothed(labels, CLASSES, 0.1)
    given_draws(monkeypatch, share)
    expected = v2.MixUp(alpha=1.0)(images, targets)
    own = mix(images, targets, torch.tensor([share, 1 - share] * 2), torch.tensor([NO_BOX]))
    assert_equal(own, expected)
    assert torch.allclose(own[1].sum(dim=1), torch.ones(len(labels)))


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.2, 0.0), (0.0, 1.0), (0.8, 1.0), (0.01, 0.01), (100.0, 100.0)])
def test_drawn_shares_sum_to_one_and_are_those_of_the_boxes(mixup: float, cutmix: float) -> None:
    shares, boxes = draw_mixing(300, HEIGHT, WIDTH, mixup, cutmix, RandomState(4))
    assert shares.shape == (300, 4)
    assert shares.dtype == torch.float32
    assert boxes.shape == (300, 1, 4)
    assert boxes.dtype == torch.int64
    assert bool(((shares >= 0) & (shares <= 1)).all())
    assert torch.allclose(shares[:, 0] + shares[:, 1], torch.ones(300))
    assert torch.allclose(shares[:, 2] + shares[:, 3], torch.ones(300))
    heights, widths = sides_of(boxes[:, 0])
    own = 1 - heights * widths / (HEIGHT * WIDTH)
    of_cutmix = (shares[:, 0] == 1) & (shares[:, 1] == 0)
    assert torch.allclose(shares[of_cutmix, 2], own[of_cutmix].float())
    assert torch.equal(shares[~of_cutmix, :2], shares[~of_cutmix, 2:])
    assert bool((boxes[~of_cutmix] == 0).all())
    assert bool((boxes >= 0).all())
    assert bool((boxes[:, 0] <= torch.tensor([HEIGHT, WIDTH, HEIGHT, WIDTH])).all())


def test_with_both_kinds_each_batch_has_one_of_them_about_equally_often() -> None:
    shares, boxes = draw_mixing(2000, HEIGHT, WIDTH, 0.8, 1.0, RandomState(5))
    mixup, cutmix = shares[:, 1] > 0, (boxes[:, 0, 2] > boxes[:, 0, 0]) & (boxes[:, 0, 3] > boxes[:, 0, 1])
    assert not bool((mixup & cutmix).any())
    assert float(mixup.double().mean()) == pytest.approx(0.5, abs=0.06)
    assert float((mixup | cutmix).double().mean()) > 0.97  # the box of a share close to 1 is empty


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_have_the_moments_of_the_beta_distribution(kind: str, alpha: float) -> None:
    count = 20_000
    if kind == "mixup":
        shares = draw_mixing(count, HEIGHT, WIDTH, alpha, 0.0, RandomState(6))[0][:, 0].double().numpy()
    else:  # a box at the centre is cut at no border, and of a large image it is hardly rounded
        drawn = RandomState(6).beta(alpha, alpha, count)
        boxes = np.array([cutmix_box(float(share), 1000, 1000, 500, 500) for share in drawn])
        shares = 1 - (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) / 1e6
    deviation = math.sqrt(1 / (4 * (2 * alpha + 1)))
    assert shares.mean() == pytest.approx(0.5, abs=5 * deviation / math.sqrt(count))
    assert shares.std() == pytest.approx(deviation, rel=0.03)


# Label smoothing


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5, 0.99])
def test_cross_entropy_of_smoothed_labels_is_that_of_pytorch(smoothing: float) -> None:
    _, labels = images_and_labels(64)
    logits = torch.randn(64, CLASSES, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    targets = smoothed(labels, CLASSES, smoothing)
    assert targets.dtype == torch.float32
    assert torch.allclose(targets.sum(dim=1), torch.ones(64))
    expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert float(F.cross_entropy(logits, targets.double())) == pytest.approx(float(expected), rel=1e-7)
