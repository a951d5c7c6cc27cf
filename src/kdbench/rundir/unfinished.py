"""Runs without a result: what they are, and how they ended. Imports no torch."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kdbench.errors import ConfigError
from kdbench.rundir.files import write_json
from kdbench.rundir.summary import KEYS, RunSummary, Status, from_content

FAILURE_FILE, CONFIG_FILE = "failure.json", "config.yaml"
NO_TEACHER = "none"
"""Name of the teacher in the config of a run without one."""


@dataclass(frozen=True)
class Failure:
    """Error that ended a run, the content of failure.json. It is no part of the run's identity."""

    code: str
    """Kind of error, such as `not_finite` or `out_of_memory`; `bug` for one that has none."""
    message: str
    epoch: int | None
    """Epoch that could not be finished, counted from 1."""
    run: Mapping[str, Any]
    """Keys of summary.json that are known without a result."""

    def summary(self, accuracy: float) -> RunSummary:
        """Return the summary that the run would have with a chosen accuracy, a fraction; its status is `failed`.

        Raises:
            ConfigError: its keys are damaged.
        """
        content = {**self.run, "status": Status.FAILED.value, "test_acc_best": accuracy, "test_acc_final": accuracy}
        return from_content(content, Path(FAILURE_FILE))


@dataclass(frozen=True)
class RecordedArm:
    """Names and seed of a run, as its config has them."""

    student: str
    teacher: str | None
    method: str
    seed: int | None

    @property
    def name(self) -> str:
        """Title of the run."""
        source = f" from {self.teacher}" if self.teacher else ""
        return f"{self.student} {self.method}{source}, seed {self.seed}"


def write_failure(folder: Path, failure: Failure) -> None:
    """Write failure.json into a run directory."""
    assert failure.run.keys() <= KEYS.keys(), failure.run.keys() - KEYS.keys()
    write_json(folder / FAILURE_FILE, dataclasses.asdict(failure))


def read_failure(folder: Path) -> Failure | None:
    """Return how a run failed; None if it did not, or if that file cannot be read."""
    try:
        content = json.loads((folder / FAILURE_FILE).read_text())
        failure = Failure(
            str(content["code"]), str(content["message"]), content["epoch"], dict(content.get("run") or {})
        )
        failure.summary(0.0)  # checks its keys
    except (OSError, ValueError, KeyError, TypeError, ConfigError, RecursionError):
        return None
    return failure


def read_arm(folder: Path) -> RecordedArm | None:
    """Return what an unfinished run is by its config.yaml, read as data; None if that cannot be read."""
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(folder / CONFIG_FILE), resolve=False)
        student, teacher, method = (str(content[section]["name"]) for section in ("student", "teacher", "method"))
    except Exception:  # damaged bytes raise many types
        return None
    seed = content.get("seed")
    return RecordedArm(
        student, None if teacher == NO_TEACHER else teacher, method, seed if isinstance(seed, int) else None
    )
