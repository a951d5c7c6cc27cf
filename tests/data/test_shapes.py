"""The embedded data set: the same bytes everywhere, balanced, and not separable by colour."""

import hashlib

import numpy as np
import pytest

from kdbench.data.shapes import BLOCK, CLASSES, draw_shapes


@pytest.fixture(scope="module")
def sample():
    return draw_shapes(2000, seed=0)


def test_first_images_of_seed_0_are_pinned(sample):
    # A change here is a change of the data set: old numbers no longer compare with new ones.
    digest = hashlib.sha256(sample[0][:64].tobytes() + sample[1][:64].astype("<i8").tobytes()).hexdigest()
    assert digest == "3e4d363909f373c80d7cc0cb6879b15e29fbb383a0245ec5d2809f1e37c78920"


def test_images_are_uint8_in_rows_of_rgb_and_use_the_range(sample):
    images, labels = sample
    assert images.shape == (2000, 32, 32, 3)
    assert images.dtype == np.uint8
    assert images.flags.c_contiguous
    assert labels.shape == (2000,)
    assert labels.dtype == np.int64
    assert images.min() == 0
    assert images.max() == 255


def test_same_seed_draws_the_same(sample):
    again = draw_shapes(2000, seed=0)
    np.testing.assert_array_equal(again[0], sample[0])
    np.testing.assert_array_equal(again[1], sample[1])


@pytest.mark.parametrize("count", [1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 33])
def test_a_shorter_draw_is_a_prefix_of_a_longer_one(sample, count):
    images, labels = draw_shapes(count, seed=0)
    np.testing.assert_array_equal(images, sample[0][:count])
    np.testing.assert_array_equal(labels, sample[1][:count])


def test_another_seed_shares_no_image(sample):
    seen = {image.tobytes() for image in sample[0]}
    assert len(seen) == 2000
    assert seen.isdisjoint(image.tobytes() for image in draw_shapes(500, seed=1)[0])


def test_drawing_does_not_change_the_global_random_state():
    np.random.seed(5)
    expected = np.random.random_sample()
    np.random.seed(5)
    draw_shapes(10, seed=0)
    assert np.random.random_sample() == expected


def test_every_ten_samples_hold_each_class_once(sample):
    tens = sample[1].reshape(-1, 10)
    np.testing.assert_array_equal(np.sort(tens, axis=1), np.tile(np.arange(10), (200, 1)))
    assert len(np.unique(tens, axis=0)) > 100, "the order within ten must vary"


def test_classes_are_ten_names():
    assert len(set(CLASSES)) == 10


def test_classes_cannot_be_separated_by_colour(sample):
    """The nearest class mean, over each image's mean and spread of every channel, stays near the chance of 10 %."""
    images, labels = sample
    features = np.concatenate([images.mean(axis=(1, 2)), images.std(axis=(1, 2))], axis=1)
    centres = np.stack([features[:1000][labels[:1000] == label].mean(axis=0) for label in range(10)])
    distances = ((features[1000:, None] - centres) ** 2).sum(axis=-1)
    accuracy = (distances.argmin(axis=1) == labels[1000:]).mean()
    assert accuracy < 0.18


@pytest.mark.parametrize("count", [0, -1])
def test_a_count_below_one_is_an_error(count):
    with pytest.raises(ValueError, match=rf"count is {count}\b"):
        draw_shapes(count, seed=0)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_outside_32_bits_is_an_error(seed):
    with pytest.raises(ValueError, match=rf"seed is {seed}\b"):
        draw_shapes(1, seed=seed)
