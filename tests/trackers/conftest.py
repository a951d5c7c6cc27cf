"""Fixtures: runs with trackers, in this process and as a command of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdbench.config import RunConfig
from kdbench.config.parse_tracker import parse_tracker
from kdbench.trackers import sender
from tests.conftest import NARROW, SMALL

ALONE = (*SMALL, NARROW[0], "teacher=none", "method=ce")
"""A run of seconds without a teacher."""


@pytest.fixture(autouse=True)
def trackers_end() -> Iterator[None]:
    """End the process of the trackers, so that no test has that of another."""
    yield
    close()


def close() -> None:
    """End the process of the trackers of this process, if there is one."""
    process = sender._process
    sender.close()
    if process:
        process.process.kill()
        process.process.wait()


@pytest.fixture
def track(small: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    """Compose a small run with a tracker: `track(overrides..., lines={...})`."""

    def make(*overrides: str, **trackers: dict[str, Any]) -> RunConfig:
        config = small("teacher=none", "method=ce", *overrides)
        config.trackers = [parse_tracker(name, node) for name, node in trackers.items()]
        return config

    return make


def own(folder: Path, cls: str = "Lines", **keys: Any) -> dict[str, Any]:
    """Return the section of a tracker of tests/trackers/own.py."""
    return {"_target_": f"tests.trackers.own.{cls}", "folder": str(folder), **keys}


def lines_in(folder: Path) -> list[dict[str, Any]]:
    """Return the lines that the only run of a folder has, once the trackers have written them."""
    (file,) = folder.glob("*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Wait until a condition has a true value, and return it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("the condition did not become true")


class Command:
    """`kdbench` as a process of its own.

    Args:
        folder: working directory.
        arguments: overrides.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kdbench", *arguments],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        )

    def rows(self) -> int:
        """Return the number of rows of metrics.csv."""
        files = list(self.folder.glob("outputs/runs/*/metrics.csv"))
        return len(files[0].read_text().splitlines()) - 1 if files else 0

    def stop_after(self, rows: int, number: signal.Signals) -> str:
        """Send a signal after some epochs, and return the output."""
        wait_for(lambda: self.rows() >= rows)
        self.process.send_signal(number)
        return self.process.communicate(timeout=120)[0]

    def end(self, code: int = 0) -> str:
        """Return the output of a command that ends with an exit code."""
        out = self.process.communicate(timeout=300)[0]
        assert self.process.returncode == code, out
        return out


def said_of_trackers(out: str) -> list[str]:
    """Return the lines of an output about trackers."""
    return [line for line in out.splitlines() if "tracker" in line]
