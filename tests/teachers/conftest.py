"""Fixtures of the logit cache: teachers beforehand, log lines, and a disk without space."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kdbench.rundir.directory import RunDirectory

PLAIN = ("data.augment=false", "teacher.cache=on")
"""One view per image, so that a cache takes no time."""

LogLines = Callable[[], list[str]]


@pytest.fixture
def log_lines(caplog: pytest.LogCaptureFixture) -> LogLines:
    """Return the lines that kdbench has logged so far, details included."""
    caplog.set_level(logging.DEBUG, "kdbench")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def fill_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return a function after which no byte is free in the folders of teachers."""

    def usage(path: Path) -> Any:
        return SimpleNamespace(free=0 if "_ce_" in Path(path).name else 10**12)

    return lambda: monkeypatch.setattr(shutil, "disk_usage", usage)


def cache_of(run: RunDirectory) -> Path:
    """Return the file of the logit cache of a complete run's teacher."""
    return next(run.path.parent.glob(f"*_{run.read_summary().teacher_key}")) / "logits-cpu.npy"
