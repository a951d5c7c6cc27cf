"""Where a study stands: the state of every run, and the time that is left at the speed measured so far."""

import csv
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench import run
from kdbench.config import RunConfig
from kdbench.errors import ConfigError
from kdbench.lockstep import asks_live, macs_of
from kdbench.runs import RunDirectory, read_summary

DONE, RESUMABLE, MISSING, REFUSED = "done", "resumable", "missing", "refused"


@dataclass
class Job:
    """One run of a study."""

    overrides: tuple[str, ...]
    config: RunConfig | None
    directory: RunDirectory | None
    error: str | None = None
    """Why it cannot run, if it cannot."""

    @property
    def title(self) -> str:
        return " ".join(self.overrides)

    @property
    def state(self) -> str:
        if self.directory is None:
            return REFUSED
        if self.directory.is_complete():
            return DONE
        return RESUMABLE if self.directory.checkpoint.is_file() else MISSING

    def refresh(self) -> None:
        """Look again where the run is: a folder may have been made by another name meanwhile."""
        if self.config is not None and self.directory is not None:
            self.directory = RunDirectory.of(self.config, self.directory.key)

    def summary(self) -> dict[str, Any] | None:
        """What a complete run says, or None if it cannot be read."""
        try:
            return read_summary(self.directory.path) if self.directory and self.directory.is_complete() else None
        except ConfigError:
            return None

    @property
    def epochs_left(self) -> float:
        assert self.config is not None
        assert self.directory is not None
        return self.config.recipe.epochs - (epochs_done(self.directory) if self.state == RESUMABLE else 0)


def located(overrides: tuple[str, ...], config: RunConfig) -> Job:
    """A job with the place of its run."""
    try:
        config, directory = run.located(config)
    except ConfigError as error:
        return Job(overrides, None, None, str(error))
    return Job(overrides, config, directory)


def epochs_done(directory: RunDirectory) -> int:
    """Rows of the metrics that a run has written so far."""
    try:
        with directory.metrics.open(newline="") as file:
            return sum(1 for _ in csv.DictReader(file))
    except OSError:
        return 0


class Speed:
    """Seconds that runs take, by those that have been finished under the same root on the same kind of device.

    A run like one that is finished (student, teacher, method) takes as long per training image; another as long as the
    multiply-accumulates of its student (three times, for forward and backward) and its teacher suggest.
    """

    def __init__(self, summaries: Iterable[Mapping[str, Any]], device: str) -> None:
        self.like: dict[tuple[Any, ...], list[float]] = {}
        self.per_mac: list[float] = []
        for s in summaries:
            size = (s.get("epochs") or 0) * (s.get("num_train") or 0)
            if not size or not s.get("train_seconds") or (s.get("environment") or {}).get("device") != device:
                continue
            seconds = s["train_seconds"] / size
            if s.get("lockstep") in (None, 1):  # others have asked their teacher together
                self.like.setdefault((s.get("student"), s.get("teacher"), s.get("method")), []).append(seconds)
            if not s.get("teacher") and s.get("macs"):
                self.per_mac.append(seconds / (3 * s["macs"]))

    def seconds(self, job: Job) -> float | None:
        """What is left of a run, or None if nothing has been measured here yet."""
        assert job.config is not None
        config = job.config
        teacher = config.teacher.model.name if config.teacher else None
        known = self.like.get((config.student.name, teacher, config.method.name))
        if known:
            per_image = statistics.median(known)
        elif self.per_mac:
            macs = 3 * macs_of(config.student) + (macs_of(config.teacher.model) if config.teacher else 0)
            per_image = statistics.median(self.per_mac) * macs
        else:
            return None
        return per_image * job.epochs_left * config.data.num_train

    def saved(self, groups: Iterable[Sequence[Job]]) -> float:
        """Seconds that jobs which train together save by asking their live teacher once; 0 if nothing was measured."""
        per_mac = statistics.median(self.per_mac) if self.per_mac else 0.0
        saved = 0.0
        for group in groups:
            asking = [job for job in group if job.config and asks_live(job.config)]
            for job in asking[1:]:
                assert job.config is not None
                assert job.config.teacher is not None
                images = job.epochs_left * job.config.data.num_train
                saved += per_mac * macs_of(job.config.teacher.model) * images
        return saved


def summaries_under(output_root: Path) -> list[dict[str, Any]]:
    """Of all complete and readable runs."""
    found = []
    for file in sorted((output_root / "runs").glob("*/summary.json")):
        try:
            found.append(read_summary(file.parent))
        except ConfigError:
            continue
    return found


def duration(seconds: float) -> str:
    """In words that are as exact as an estimate deserves."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
