"""The embedded data set: the same bytes everywhere, balanced, and not separable by colour."""

import hashlib

import numpy as np
import pytest

from kdbench.data.shapes import BLOCK, class_names, draw_shapes


@pytest.fixture(scope="module", params=[10, 100])
def num_classes(request):
    return request.param


@pytest.fixture(scope="module")
def sample(num_classes):
    return draw_shapes(2000, seed=0, num_classes=num_classes)


# A change here is a change of the data set: old numbers no longer compare with new ones.
@pytest.mark.parametrize(
    ("num_classes", "count", "digest"),
    [
        (10, 64, "3e4d363909f373c80d7cc0cb6879b15e29fbb383a0245ec5d2809f1e37c78920"),
        (100, 200, "02aae369940567d6358bc2d29ceaada90f6b841c45ab93211adb0f1a8c6673ff"),
    ],
)
def test_first_images_of_seed_0_are_pinned(num_classes, count, digest):
    images, labels = draw_shapes(count, seed=0, num_classes=num_classes)
    assert hashlib.sha256(images.tobytes() + labels.astype("<i8").tobytes()).hexdigest() == digest


def test_ten_classes_are_the_default():
    for by_default, given in zip(draw_shapes(20, seed=0), draw_shapes(20, seed=0, num_classes=10), strict=True):
        np.testing.assert_array_equal(by_default, given)


def test_images_are_uint8_in_rows_of_rgb_and_use_the_range(sample):
    images, labels = sample
    assert images.shape == (2000, 32, 32, 3)
    assert images.dtype == np.uint8
    assert images.flags.c_contiguous
    assert labels.shape == (2000,)
    assert labels.dtype == np.int64
    assert images.min() == 0
    assert images.max() == 255


def test_same_seed_draws_the_same(sample, num_classes):
    again = draw_shapes(2000, seed=0, num_classes=num_classes)
    np.testing.assert_array_equal(again[0], sample[0])
    np.testing.assert_array_equal(again[1], sample[1])


@pytest.mark.parametrize("count", [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 33])
def test_a_shorter_draw_is_a_prefix_of_a_longer_one(sample, num_classes, count):
    images, labels = draw_shapes(count, seed=0, num_classes=num_classes)
    np.testing.assert_array_equal(images, sample[0][:count])
    np.testing.assert_array_equal(labels, sample[1][:count])


def test_another_seed_shares_no_image(sample, num_classes):
    seen = {image.tobytes() for image in sample[0]}
    assert len(seen) == 2000
    assert seen.isdisjoint(image.tobytes() for image in draw_shapes(500, seed=1, num_classes=num_classes)[0])


def test_drawing_does_not_change_the_global_random_state():
    np.random.seed(5)
    expected = np.random.random_sample()
    np.random.seed(5)
    draw_shapes(10, seed=0)
    assert np.random.random_sample() == expected


def test_every_num_classes_samples_hold_each_class_once(sample, num_classes):
    rounds = sample[1].reshape(-1, num_classes)
    np.testing.assert_array_equal(np.sort(rounds, axis=1), np.tile(np.arange(num_classes), (len(rounds), 1)))
    assert len(np.unique(rounds, axis=0)) > len(rounds) / 2, "the order within a round must vary"


def test_ten_classes_are_named_after_the_figures():
    figures = ("disk", "ring", "crescent", "square", "frame", "triangle", "star", "plus", "stripes", "checkers")
    assert class_names(10) == figures


def test_a_hundred_classes_are_named_after_ordered_pairs_of_figures():
    figures, pairs = class_names(10), class_names(100)
    assert len(pairs) == 100
    assert pairs[6] == "disk-star"
    assert all(pairs[10 * i + j] == f"{figures[i]}-{figures[j]}" for i in range(10) for j in range(10))


def test_first_figure_of_a_pair_is_in_the_upper_left_quarter_and_second_in_the_lower_right():
    """Disks fill the middle of their own quarter and rings leave it open; the other quarter has the same mean."""
    images, labels = draw_shapes(4000, seed=0, num_classes=100)
    contrast = abs(images - images.mean(axis=(1, 2), keepdims=True)).mean(axis=-1)  # either may be the lighter part
    middles = {
        "first": contrast[:, 5:11, 5:11].mean(axis=(1, 2)),
        "second": contrast[:, 21:27, 21:27].mean(axis=(1, 2)),
    }
    disk, ring = class_names(10).index("disk"), class_names(10).index("ring")
    for own, other, figure in (("first", "second", labels // 10), ("second", "first", labels % 10)):
        assert middles[own][figure == disk].mean() - middles[own][figure == ring].mean() > 20
        assert abs(middles[other][figure == disk].mean() - middles[other][figure == ring].mean()) < 4


def test_classes_cannot_be_separated_by_colour(sample, num_classes):
    """The nearest class mean, over each image's mean and spread of every channel, stays near chance."""
    images, labels = sample
    features = np.concatenate([images.mean(axis=(1, 2)), images.std(axis=(1, 2))], axis=1)
    centres = np.stack([features[:1000][labels[:1000] == label].mean(axis=0) for label in range(num_classes)])
    distances = ((features[1000:, None] - centres) ** 2).sum(axis=-1)
    accuracy = (distances.argmin(axis=1) == labels[1000:]).mean()
    assert accuracy < 1.8 / num_classes


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_below_one_is_an_error(count):
    with pytest.raises(ValueError, match=rf"count is {count}\b"):
        draw_shapes(count, seed=0)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_outside_32_bits_is_an_error(seed):
    with pytest.raises(ValueError, match=rf"seed is {seed}\b"):
        draw_shapes(1, seed=seed)


@pytest.mark.parametrize("num_classes", [-10, 0, 1, 20, 1000])
@pytest.mark.parametrize("call", [class_names, lambda num_classes: draw_shapes(1, 0, num_classes)])
def test_another_number_of_classes_is_an_error(call, num_classes):
    with pytest.raises(ValueError, match=rf"num_classes is {num_classes}; it must be 10 or 100$"):
        call(num_classes)
