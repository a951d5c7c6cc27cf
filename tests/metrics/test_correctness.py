"""Agreement by correctness, its gains, shared mistakes by class, the Brier score, and the alignment of features."""

import math

import numpy as np
import pytest

from kdbench import metrics


def predict(*classes, of=3):
    return np.eye(of)[list(classes)]


def test_agreement_by_correctness_by_hand():
    labels = np.array([0, 0, 1, 1, 2, 2])
    teacher = predict(0, 0, 1, 2, 0, 1)  # right, right, right, wrong, wrong, wrong
    student = predict(0, 1, 1, 2, 0, 0)  # same, other, same, same mistake, same mistake, other mistake
    found = metrics.agreement_by_correctness(student, teacher, labels)
    assert (found.teacher_right, found.teacher_wrong, found.correct, found.incorrect) == (3, 3, 2, 2)
    assert (found.correct_rate, found.incorrect_rate) == (2 / 3, 2 / 3)


def test_counts_equal_a_loop_over_images():
    random = np.random.default_rng(0)
    student, teacher, labels = random.normal(size=(500, 5)), random.normal(size=(500, 5)), random.integers(0, 5, 500)
    counts = {"correct": 0, "incorrect": 0, "teacher_right": 0}
    for s, t, label in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        s, t = s.index(max(s)), t.index(max(t))
        counts["teacher_right"] += t == label
        counts["correct"] += s == t == label
        counts["incorrect"] += s == t != label
    found = metrics.agreement_by_correctness(student, teacher, labels)
    assert {name: getattr(found, name) for name in counts} == counts
    assert found.teacher_right + found.teacher_wrong == 500


def test_agreement_is_the_sum_of_both_kinds():
    random = np.random.default_rng(1)
    student, teacher, labels = random.normal(size=(500, 5)), random.normal(size=(500, 5)), random.integers(0, 5, 500)
    found = metrics.agreement_by_correctness(student, teacher, labels)
    assert (found.correct + found.incorrect) / 500 == pytest.approx(metrics.agreement(student, teacher))


def test_a_teacher_without_mistakes_has_no_rate_of_them():
    labels = np.array([0, 1, 2])
    found = metrics.agreement_by_correctness(predict(0, 1, 1), predict(0, 1, 2), labels)
    assert math.isnan(found.incorrect_rate)
    assert found.correct_rate == 2 / 3


@pytest.mark.parametrize(
    ("rate", "control", "gain"), [(0.95, 0.9, 0.5), (0.55, 0.5, 0.1), (1.0, 0.5, 1.0), (0.4, 0.5, -0.2), (0.7, 0.7, 0)]
)
def test_gains_are_shares_of_the_room_that_the_control_leaves(rate, control, gain):
    assert metrics.headroom_gain(rate, control) == pytest.approx(gain)


def test_without_room_there_is_no_share():
    assert math.isnan(metrics.headroom_gain(1.0, 1.0))


@pytest.mark.parametrize("labels", [np.array([0, 1]), np.array([0, 1, 3]), np.array([0, 1, -1]), np.zeros(3)])
def test_labels_that_are_no_classes_of_the_images_are_refused(labels):
    with pytest.raises(ValueError, match="labels are"):
        metrics.agreement_by_correctness(predict(0, 1, 2), predict(0, 1, 2), labels)
    with pytest.raises(ValueError, match="labels are"):
        metrics.brier(predict(0, 1, 2), labels)


def test_shared_mistakes_by_class_by_hand():
    labels, teacher = np.array([0, 0, 1, 1, 2]), np.array([1, 0, 2, 0, 2])
    shared, wrong = metrics.shared_mistakes_by_class(np.array([1, 1, 0, 0, 2]), teacher, labels, 4)
    assert shared.tolist() == [1, 1, 0, 0]
    assert wrong.tolist() == [1, 2, 0, 0]


def test_brier_score_by_hand():
    logits = np.log(np.array([[0.8, 0.2], [0.5, 0.5]]))
    assert metrics.brier(logits, np.array([0, 1])) == pytest.approx((2 * 0.2**2 + 2 * 0.5**2) / 2)


def test_brier_score_equals_a_loop_and_keeps_its_bounds():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(300, 7)) * 3, random.integers(0, 7, 300)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = sum(((own - np.eye(7)[label]) ** 2).sum() for own, label in zip(p, labels, strict=True)) / 300
    assert metrics.brier(logits, labels) == pytest.approx(expected)
    certain = 1e4 * np.eye(7)
    assert metrics.brier(certain, np.arange(7)) == pytest.approx(0)
    assert metrics.brier(certain, (np.arange(7) + 1) % 7) == pytest.approx(2)
    assert metrics.brier(np.zeros((7, 7)), np.arange(7)) == pytest.approx(1 - 1 / 7)


def gram_alignment(a, b):
    """Return linear CKA by centred N x N kernels."""
    centre = np.eye(len(a)) - 1 / len(a)
    k, kernel_b = centre @ a @ a.T @ centre, centre @ b @ b.T @ centre
    return np.trace(k @ kernel_b) / math.sqrt(np.trace(k @ k) * np.trace(kernel_b @ kernel_b))


@pytest.mark.parametrize(("images", "a", "b"), [(200, 16, 16), (100, 8, 30), (20, 50, 3)])
def test_alignment_equals_that_of_kernels(images, a, b):
    random = np.random.default_rng(0)
    first = random.normal(size=(images, a)) + 5
    second = np.tanh(first[:, :3] @ random.normal(size=(3, b))) + 0.1 * random.normal(size=(images, b))
    assert metrics.linear_cka(first, second) == pytest.approx(gram_alignment(first, second))
    assert metrics.linear_cka(first, second) == pytest.approx(metrics.linear_cka(second, first))


def test_alignment_ignores_rotation_scale_shift_and_the_order_of_images():
    random = np.random.default_rng(1)
    a, b = random.normal(size=(300, 10)), random.normal(size=(300, 6))
    rotation = np.linalg.qr(random.normal(size=(10, 10)))[0]
    assert metrics.linear_cka(a, -1e20 * (a @ rotation) + 3e20) == pytest.approx(1)
    order = random.permutation(300)
    assert metrics.linear_cka(a[order], b[order]) == pytest.approx(metrics.linear_cka(a, b))
    assert 0 <= metrics.linear_cka(a, b) < 0.2


def test_alignment_by_hand():
    a, b = np.array([[1.0], [-1.0], [1.0], [-1.0]]), np.array([[1.0], [1.0], [-1.0], [-1.0]])
    assert metrics.linear_cka(a, b) == 0
    assert metrics.linear_cka(a, np.hstack([a, b])) == pytest.approx(1 / math.sqrt(2))


def test_float32_features_of_any_size_have_the_alignment_of_their_values():
    random = np.random.default_rng(2)
    a, b = random.normal(size=(100, 4)), random.normal(size=(100, 4))
    huge, tiny = (a * 1e37).astype(np.float32), (b * 1e-30).astype(np.float32)
    assert metrics.linear_cka(huge, tiny) == pytest.approx(metrics.linear_cka(a, b), rel=1e-5)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((4, 2, 2)), "floats"),
        (np.ones((4, 2)), "do not vary"),
        (np.full((4, 2), np.nan), "not finite"),
        (np.eye(3), "3 images"),
        (np.zeros((0, 2)), "floats"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        metrics.linear_cka(np.eye(4), bad)
