"""Test images that flip between distilled runs and their baselines, described and shown."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from kdbench.report.build import build_report
from tests.report.conftest import report_of, write_run

N, NAMES = 30, ["cat", "dog", "owl"]
LABELS = np.arange(N) % 3
FLIPPED = 12
"""Number of images that flip in at least one pair."""


def predictions(wrong):
    """Return logits that predict the next class for some images, and the label for the others."""
    predicted = LABELS.copy()
    predicted[list(wrong)] = (predicted[list(wrong)] + 1) % 3
    return np.eye(3, dtype=np.float32)[predicted], LABELS


@pytest.fixture
def runs(tmp_path):
    """Write a teacher that is always right, and pairs of which the first flips image 20 alone, the others more."""
    root, others = tmp_path / "runs", {"class_names": NAMES}
    write_run(root, student="resnet20", run_key="key", logits=predictions([]), **others)
    for seed in range(3):
        write_run(root, seed=seed, logits=predictions([20]), **others)
        wrong = [*range(seed, FLIPPED - 1), *([20] if seed == 2 else [])]
        write_run(
            root, seed=seed, teacher="resnet20", teacher_key="key", method="logit", logits=predictions(wrong), **others
        )
    return root


def reader(images, labels=LABELS):
    return lambda folder, data_root: (images, labels)


def test_images_are_sorted_by_flips_then_by_place(runs):
    flipped = report_of(runs).flipped
    assert [image.index for image in flipped] == [2, 3, 4, 5, 6, 7, 8, 9, 10, 1]
    assert [image.flips for image in flipped] == [3] * 9 + [2]
    assert {image.pairs for image in flipped} == {3}


def test_each_image_says_what_teacher_baseline_and_student_predict(runs):
    image = report_of(runs).flipped[-1]
    assert image.label == "dog"
    assert image.predictions == [
        ("teacher resnet20", "dog 1"), ("baseline resnet8", "dog 3"), ("distilled resnet8", "owl 2, dog 1"),
    ]  # fmt: skip
    assert image.png is None


def test_a_class_that_rounding_leaves_open_is_no_flip_and_said(tmp_path):
    logits = predictions([0, 1])[0].astype(np.float16)
    logits[0] = 1
    write_run(tmp_path, logits=predictions([]), class_names=NAMES)
    write_run(tmp_path, logits=(logits, LABELS), class_names=NAMES, teacher="t", method="logit")
    (image,) = report_of(tmp_path).flipped
    assert image.index == 1
    logits[1] = 1
    write_run(tmp_path, seed=1, logits=predictions([]), class_names=NAMES)
    write_run(tmp_path, seed=1, logits=(logits, LABELS), class_names=NAMES, teacher="t", method="logit")
    (image,) = report_of(tmp_path).flipped
    assert image.predictions[-1] == ("distilled resnet8", "owl 1, open 1")


@pytest.mark.parametrize(
    ("shape", "size", "mode"),
    [((32, 32, 3), (32, 32), "RGB"), ((28, 28, 1), (28, 28), "L"), ((200, 100, 3), (48, 96), "RGB")],
)
def test_pictures_hold_the_pixels_of_the_images_at_most_96_wide(runs, shape, size, mode):
    images = np.random.default_rng(0).integers(0, 256, (N, *shape), dtype=np.uint8)
    report = build_report([runs], images=reader(images))
    for image in report.flipped:
        kind, _, content = image.png.partition(",")
        assert kind == "data:image/png;base64"
        picture = Image.open(io.BytesIO(base64.b64decode(content)))
        assert (picture.size, picture.mode) == (size, mode)
        if max(shape) <= 96:
            assert np.array_equal(np.asarray(picture).reshape(shape), images[image.index])
    assert not [line for line in report.remarks if "flipped images" in line]


def test_images_that_cannot_be_read_leave_the_words_and_a_remark(runs):
    report = build_report([runs], images=lambda folder, data_root: "they are on the moon")
    assert len(report.flipped) == 10
    assert "the flipped images are described without pictures: they are on the moon" in report.remarks


def test_images_with_other_labels_are_not_shown(runs):
    report = build_report([runs], images=reader(np.zeros((N, 4, 4, 3), dtype=np.uint8), (LABELS + 1) % 3))
    assert {image.png for image in report.flipped} == {None}
    assert any("are not those of the runs" in line for line in report.remarks)


def test_images_are_not_read_where_nothing_flips(tmp_path):
    def refuse(folder, data_root):
        raise AssertionError("read for nothing")

    write_run(tmp_path, logits=predictions([]))
    write_run(tmp_path, logits=predictions([]), teacher="t", method="logit")
    assert build_report([tmp_path], images=refuse).flipped == []
