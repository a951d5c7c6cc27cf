"""A report of five hundred runs: its time and its size."""

import time

import numpy as np
import pytest

from kdbench.report.command import report as command
from tests.conftest import times_slower
from tests.report.conftest import write_run

STUDENTS = {f"student{place}": 100_000 * 2**place for place in range(5)}
METHODS = ("ce", *(f"method{number:02}" for number in range(19)))
IMAGES, CLASSES, SEEDS = 10_000, 10, 5


@pytest.mark.slow
@pytest.mark.alone
def test_five_hundred_runs_take_less_than_thirty_seconds_and_ten_megabytes(tmp_path):
    random = np.random.default_rng(0)
    labels = np.arange(IMAGES) % CLASSES
    for student, size in STUDENTS.items():
        for number, method in enumerate(METHODS):
            for seed in range(SEEDS):
                guesses = random.normal(size=(IMAGES, CLASSES)) + 3 * np.eye(CLASSES)[labels]
                write_run(
                    tmp_path / "runs", student=student, method=method, seed=seed, num_params=size, macs=100 * size,
                    teacher=None if method == "ce" else "teacher", accuracy=0.9 + random.normal() / 500 + number / 5000,
                    history=(0.9 - 0.5 / np.arange(1, 101)).tolist(),
                    logits=(guesses.astype(np.float16), labels) if number < 6 and student == "student0" else None,
                )  # fmt: skip
    started = time.process_time()  # unlike a clock, it does not grow with what else the machine does
    assert command([str(tmp_path / "runs"), "--out", str(tmp_path / "report")]) == 0
    assert time.process_time() - started < 30 * times_slower()
    assert (tmp_path / "report" / "report.html").stat().st_size < 10e6
    assert (tmp_path / "report" / "figures" / "gains.png").stat().st_size > 1e4
