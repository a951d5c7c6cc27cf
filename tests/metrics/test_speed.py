"""Time of the metrics on one core."""

import time
import tracemalloc

import numpy as np
import pytest

from kdbench import metrics
from tests.conftest import times_slower

pytestmark = [pytest.mark.slow, pytest.mark.alone]


def shortest(function, rounds=5):
    """Shortest processor time of several calls, seconds."""
    times = []
    for _ in range(rounds):
        started = time.process_time()
        function()
        times.append(time.process_time() - started)
    return min(times)


@pytest.mark.parametrize(("classes", "limit"), [(10, 0.05), (100, 0.2)])
def test_all_metrics_of_a_pair_are_quick(classes, limit):
    random = np.random.default_rng(0)
    a, b = (3 * random.normal(size=(2, 10_000, classes))).astype(np.float32)
    labels = random.integers(0, classes, 10_000)
    assert shortest(lambda: metrics.compare_logits(a, b, labels)) < limit * times_slower()


def test_agreement_of_a_hundred_models_is_quick():
    predicted = np.random.default_rng(0).integers(0, 10, size=(100, 10_000))
    assert shortest(lambda: metrics.agreement_matrix(predicted), rounds=1) < 5 * times_slower()


def test_alignment_is_quick_and_needs_no_kernel_of_all_images():
    a, b = np.random.default_rng(0).normal(size=(2, 10_000, 512)).astype(np.float32)
    assert shortest(lambda: metrics.linear_cka(a, b), rounds=2) < 2 * times_slower()
    tracemalloc.start()
    metrics.linear_cka(a, b)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000 * 10_000 * 8 / 4
