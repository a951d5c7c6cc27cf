"""Run directories with known predictions, and the command in this process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdbench.compare.command import compare
from tests.report.conftest import write_run

CLASSES = 5


def logits_for(predicted: np.ndarray, seed: int = 0, classes: int = CLASSES) -> np.ndarray:
    """Return random logits [N, C] float32 whose largest entries are at the given classes [N]."""
    logits = np.random.default_rng(seed).normal(size=(len(predicted), classes)).astype(np.float32)
    logits[np.arange(len(predicted)), predicted] = logits.max(axis=1) + 1
    return logits


def random_run(root: Path, seed: int = 0, images: int = 300, **others: Any) -> Path:
    """Write a run with random predictions; runs of all seeds have the same labels."""
    labels = np.random.default_rng(99).integers(0, CLASSES, images)
    predicted = np.random.default_rng(seed).integers(0, CLASSES, images)
    return write_run(root, seed=seed, logits=(logits_for(predicted, seed), labels), **others)


@pytest.fixture
def as_dict(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Return the content of the command's JSON."""

    def call(*arguments: Any) -> dict[str, Any]:
        compare([*map(str, arguments), "--json"])
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return call


@pytest.fixture
def as_lines(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Return the lines of the command's tables."""

    def call(*arguments: Any) -> list[str]:
        compare([*map(str, arguments)])
        return capsys.readouterr().out.splitlines()

    return call
