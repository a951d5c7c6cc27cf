"""The contract of a tracker, and what it gets: a run, its rows of metrics.csv, and how it ended.

A tracker works in a process beside the run (`kdbench.trackers.process`), in a thread of its own. It may take its time,
raise, hang, print, or end the process: the run does not notice. Everything that it gets comes from the run directory.
"""

import csv
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import OmegaConf

from kdbench.config.schema import added, optional, setting
from kdbench.rundir.directory import RunDirectory

SUMMARY = "summary/"
"""Beginning of the names of the values of summary.json, some of which are also names of columns of metrics.csv."""
LONGEST_VALUE = 500
"""Number of characters of a setting's value that are sent."""


@dataclass(frozen=True)
class TrackedRun:
    """A run as a tracker sees it."""

    key: str
    """Run key: the identity of the record. A resumed run has the same."""
    title: str
    path: Path
    """Run directory."""
    output_root: Path
    group: str | None
    """Name of the study or sweep that the run is part of."""
    started: float
    """Time at which the training started, in seconds since 1970."""

    @property
    def name(self) -> str:
        """Name of the run directory."""
        return self.path.name

    @property
    def files(self) -> RunDirectory:
        return RunDirectory(self.path, self.key)

    @property
    def is_complete(self) -> bool:
        """True if the run has its summary. A record that is finished while the run is not belongs to an earlier run."""
        return self.files.is_complete()

    def settings(self) -> dict[str, str]:
        """Return the recorded config as texts: `recipe.lr` is the name of the key `lr` of the section `recipe`."""
        tree = OmegaConf.to_container(OmegaConf.load(self.files.config)) if self.files.config.is_file() else {}
        return {name: as_text(value)[:LONGEST_VALUE] for name, value in flattened(tree)}

    def rows(self) -> list[dict[str, float]]:
        """Return the rows of metrics.csv by `epoch` (from 1) and the other columns, all of them numbers."""
        if not self.files.metrics.is_file():
            return []
        with self.files.metrics.open(newline="") as file:
            return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]

    def summary(self) -> dict[str, float]:
        """Return the numbers of summary.json of a complete run, such as `summary/test_acc_best`; else none."""
        return {
            f"{SUMMARY}{name}": float(value)
            for name, value in self.summary_content().items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }

    def summary_content(self) -> dict[str, Any]:
        """Return the content of summary.json; empty before the run is complete."""
        return json.loads(self.files.summary.read_text()) if self.is_complete else {}


class Tracker(ABC):
    """The record of one run in a tracker. Every method may raise: one line is printed, and the next epoch tries again.

    After an error, a new object begins with `start` again. Its YAML file has one section, named as the file, with
    `_target_` and the keys of `Config`.
    """

    package: ClassVar[str] = ""
    """Package that must be installed; it is imported in `start` at the earliest."""
    extra: ClassVar[str] = ""
    """Extra of kdbench that installs it."""

    @dataclass
    class Config:
        """The keys of every tracker."""

        group: str | None = added(optional(setting(lambda text: text.strip() != "", "a name", identity=False)), None)
        """Name of the group of the run; None: that of the study or sweep."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def check(cls, config: Any, name: str, output_roots: Sequence[Path]) -> None:
        """Check keys that depend on where the runs are. Called before anything starts.

        Args:
            config: the keys.
            name: name of the tracker: the keys are those of `tracker.NAME`.
            output_roots: own output root and the shared ones.

        Raises:
            ConfigError: a key does not fit.
        """
        return

    @abstractmethod
    def start(self, run: TrackedRun) -> Collection[int]:
        """Open the record of a run, or find it where the run was started before.

        Returns:
            The epochs that it has already. The others are logged, from metrics.csv.
        """

    @abstractmethod
    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        """Log an epoch, counted from 1.

        Args:
            epoch: the epoch.
            values: columns of metrics.csv without `epoch`.
        """

    @abstractmethod
    def finish(self, status: str, summary: Mapping[str, float], error: str) -> None:
        """Close the record.

        Args:
            status: complete, failed, interrupted or pruned (by a search). A run that is not complete may be continued
                by another `start`.
            summary: numbers of summary.json, such as `summary/test_acc_best`; empty for a run that is not complete.
            error: message of the error that ended a failed run; else empty, or the cause of an interruption.
        """


def flattened(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield name and value of each leaf of a config; an empty section is a leaf."""
    if isinstance(tree, dict) and (tree or not prefix):
        for name, inner in tree.items():
            yield from flattened(inner, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, tree


def as_text(value: Any) -> str:
    """Return a value as YAML writes it in one line."""
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, list | dict) else {None: "null"}.get(value, str(value).lower())
