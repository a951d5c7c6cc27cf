"""Fixtures: runs with trackers, in this process and in one of their own."""

import json
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from kdbench.config import RunConfig
from kdbench.config.parse_tracker import parse_tracker
from kdbench.trackers import sender
from tests.conftest import NARROW, SMALL
from tests.faults.processes import fork_server

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
    """Return the lines that the only run of a folder has so far."""
    files = list(folder.glob("*.jsonl"))
    assert len(files) < 2
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def statuses(folder: Path) -> list[str]:
    """Return how the attempts of the only run of a folder ended."""
    return [line["status"] for line in lines_in(folder) if "status" in line]


def still_at_work(name: str) -> str:
    """Return the line of a tracker that is not done a second after the end of the run."""
    return f"tracker {name}: still at work in the background; the same command sends what is then missing"


def wait_for(condition: Callable[[], Any], seconds: float = 120.0) -> Any:
    """Wait until a condition has a true value, and return it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("the condition did not become true")


@pytest.fixture(scope="session")
def context() -> ForkServerContext:
    return fork_server()


def rows_in(folder: Path) -> int:
    """Return the number of rows of metrics.csv of the only run under a working directory."""
    files = list(folder.glob("outputs/runs/*/metrics.csv"))
    return len(files[0].read_text().splitlines()) - 1 if files else 0


def said_of_trackers(out: str) -> list[str]:
    """Return the lines of an output about trackers."""
    return [line for line in out.splitlines() if "tracker" in line]
