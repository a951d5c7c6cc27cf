import math
import subprocess
import sys

import numpy as np
import pytest

from kdbench import metrics


def logs(*probabilities):
    return np.log(np.array(probabilities, dtype=np.float64))


def test_accuracy_by_hand_with_ties_for_the_first_class():
    logits, labels = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0], [2.0, 2.0]]), np.array([0, 0, 0, 1])
    assert metrics.accuracy(logits, labels) == 0.5
    assert metrics.per_class_accuracy(logits, labels) == [pytest.approx(2 / 3), 0.0]


def test_a_class_without_images_has_no_accuracy():
    assert metrics.per_class_accuracy(np.eye(3), np.array([0, 1, 1]))[2] is None


def test_nll_by_hand():
    assert metrics.nll(logs([0.5, 0.5], [0.25, 0.75]), np.array([0, 1])) == pytest.approx(
        -(math.log(0.5) + math.log(0.75)) / 2
    )


def test_nll_of_extreme_logits_is_finite():
    assert metrics.nll(np.array([[1000.0, -1000.0]], dtype=np.float32), np.array([1])) == pytest.approx(2000)


def test_calibration_error_by_hand():
    # Two images at confidence 0.8, one correct: |0.5 - 0.8| = 0.3; two at 0.6, both correct: |1 - 0.6| = 0.4.
    logits = logs([0.8, 0.2], [0.8, 0.2], [0.6, 0.4], [0.6, 0.4])
    assert metrics.expected_calibration_error(logits, np.array([0, 1, 0, 0])) == pytest.approx(0.35)


def test_certain_and_correct_predictions_have_no_calibration_error():
    logits = np.array([[100.0, 0.0], [0.0, 100.0]])
    assert metrics.expected_calibration_error(logits, np.array([0, 1])) == pytest.approx(0, abs=1e-12)


def test_calibration_error_equals_a_loop_over_bins():
    random = np.random.default_rng(0)
    logits, labels = 2 * random.normal(size=(500, 10)), random.integers(0, 10, 500)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confidence, correct = p.max(1), p.argmax(1) == labels
    expected = 0.0
    for i in range(15):
        inside = (confidence > i / 15) & (confidence <= (i + 1) / 15)
        if inside.any():
            expected += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert metrics.expected_calibration_error(logits, labels) == pytest.approx(expected)


def test_agreement_is_symmetric_and_1_with_itself():
    a, b = np.array([[1.0, 0], [1, 0], [0, 1]]), np.array([[2.0, 0], [0, 2], [0, 2]])
    assert metrics.agreement(a, b) == metrics.agreement(b, a) == pytest.approx(2 / 3)
    assert metrics.agreement(a, a) == 1


def test_kl_is_of_the_teacher_relative_to_the_student():
    teacher, student = logs([0.75, 0.25]), logs([0.5, 0.5])
    assert metrics.kl_divergence(teacher, student) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert metrics.kl_divergence(student, teacher) == pytest.approx(0.5 * math.log(2 / 3) + 0.5 * math.log(2))
    assert metrics.kl_divergence(teacher, teacher) == pytest.approx(0, abs=1e-15)


def test_kl_at_a_temperature_softens_both_without_the_square():
    teacher, student = np.array([[4.0, 0.0]]), np.array([[0.0, 0.0]])
    p = 1 / (1 + math.exp(-1))
    expected = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert metrics.kl_divergence(teacher, student, temperature=4.0) == pytest.approx(expected)


@pytest.mark.slow
def test_metrics_do_not_import_torch():
    code = "import sys, kdbench.metrics, kdbench.report.table; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
