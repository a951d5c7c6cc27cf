"""Finding runs and reading their summaries, by the files of the contract alone."""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from kdbench.errors import ConfigError
from kdbench.runs import changed_since, seal_fits, sha256

UNDISTILLED = "ce"
GIVEN = "checkpoint"
"""Method of a teacher whose weights were given: how it was trained is unknown."""
REQUIRED = ("run_key", "student", "method", "seed", "test_acc_best")


@dataclass(frozen=True)
class Run:
    """A complete run: where it lies and what its summary says. An absent key is null."""

    path: Path
    summary: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.summary.get(key)

    @property
    def seeds(self) -> tuple[int, int]:
        """Initialisation and data seed: what tells the runs of one group apart."""
        seed = self["seed"]
        init, data = self["init_seed"], self["data_seed"]
        return (seed if init is None else init, seed if data is None else data)

    @property
    def is_distilled(self) -> bool:
        return self["method"] not in (UNDISTILLED, GIVEN)

    @property
    def logits(self) -> Path:
        return self.path / "logits.safetensors"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.csv"

    def percent(self, key: str) -> float | None:
        """A fraction of the summary in per cent."""
        value = self[key]
        return None if value is None else 100 * float(value)


@dataclass
class Found:
    """What some paths hold."""

    runs: list[Run] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    """A line for each summary that cannot be used."""
    remarks: list[str] = field(default_factory=list)
    """What was left out for other reasons."""


def find(paths: Sequence[Path]) -> Found:
    """Every complete run under some folders, in the order of their paths, each key once.

    Raises:
        ConfigError: a path does not exist, or there is no run at all.
    """
    found, unfinished = Found(), 0
    by_key: dict[str, Run] = {}
    folders = dict.fromkeys(folder.resolve() for path in paths for folder in run_folders(path))
    for folder in folders:
        if not (folder / "summary.json").is_file():
            unfinished += 1
            continue
        try:
            run = Run(folder, read(folder / "summary.json"))
            check_files(run)
        except ValueError as error:
            found.damaged.append(f"{shown(folder / 'summary.json')}: {error}; left out")
            continue
        if run["status"] not in (None, "complete"):
            unfinished += 1
            continue
        known = by_key.setdefault(run["run_key"], run)
        if known is not run:
            found.remarks.append(duplicate(known, run))
    found.runs = list(by_key.values())
    found.remarks += other_teachers(by_key)
    if unfinished:
        found.remarks.append(f"{unfinished} unfinished run{'s were' if unfinished > 1 else ' was'} left out")
    if not found.runs:
        raise ConfigError(
            f"no complete run under {', '.join(map(str, paths))}; give run directories, or a folder that holds them "
            "such as outputs/runs" + "".join(f"\n  {line}" for line in (*found.damaged, *found.remarks))
        )
    return found


def run_folders(path: Path) -> list[Path]:
    """Folders at or below a path that are run directories, finished or not.

    Raises:
        ConfigError: there is no such folder.
    """
    if not path.is_dir():
        kind = "a file; give the run directory that it lies in" if path.exists() else "missing"
        raise ConfigError(f"{path} is {kind}")
    found, visited = [], set()
    for folder, below, files in os.walk(path, followlinks=True):
        real = os.path.realpath(folder)
        if real in visited:  # links may lead in circles
            below.clear()
            continue
        visited.add(real)
        below.sort()
        if "summary.json" in files or {"config.yaml", "train.log"} <= set(files):
            found.append(Path(folder))
            below.clear()
    return found


def read(file: Path) -> dict[str, Any]:
    """A summary that holds what no report can do without.

    Raises:
        ValueError: what is wrong with it.
    """
    try:
        summary = json.loads(file.read_text())
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise ValueError(f"no valid JSON ({error})") from None
    if not isinstance(summary, dict):
        raise ValueError("holds no object")
    if not seal_fits(summary):
        raise ValueError("was changed since it was written")
    lacking = [key for key in REQUIRED if summary.get(key) is None]
    if lacking:
        raise ValueError(f"lacks {', '.join(lacking)}")
    for allowed, description, keys in KINDS:
        for key in keys:
            if summary.get(key) is not None and not allowed(summary[key]):
                raise ValueError(f"{key} is {summary[key]!r}, no {description}")
    return summary


def check_files(run: Run) -> None:
    """That config, metrics and logits, where they are, are those that the summary tells of.

    Raises:
        ValueError: which one is not.
    """
    changed = changed_since(run.path, run.summary)
    recorded = run["logits_sha256"]
    if not changed and recorded and run.logits.is_file() and not in_half_precision(run.logits):
        changed = "logits.safetensors" if sha256(run.logits) != recorded else None
    if changed:
        raise ValueError(f"tells of another {changed} than lies beside it")


def in_half_precision(logits: Path) -> bool:
    """Whether logits were kept in their small form (scripts/keep_results.py)."""
    try:
        with safe_open(logits, "np") as file:
            return str(file.get_slice("test_logits").get_dtype()) == "F16"
    except (OSError, SafetensorError):
        return False


def other_teachers(runs: Mapping[str, Run]) -> list[str]:
    """A remark for each student whose teacher was trained anew since, or replaced."""
    remarks = []
    for run in runs.values():
        teacher, taught_by = runs.get(str(run["teacher_key"])), run["teacher_weights_sha256"]
        if teacher and taught_by and teacher["weights_sha256"] not in (None, taught_by):
            remarks.append(f"{shown(run.path)} learned from other weights than those of {shown(teacher.path)} now")
    return remarks


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_fraction(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 1


KINDS: tuple[tuple[Callable[[Any], bool], str, tuple[str, ...]], ...] = (
    (
        lambda v: isinstance(v, str),
        "text",
        (
            "run_key", "student", "teacher", "method", "dataset", "stem", "precision", "teacher_key", "group_key",
            "baseline_key",
        ),
    ),
    (
        is_whole,
        "whole number",
        (
            "seed", "init_seed", "data_seed", "teacher_seed", "num_params", "macs", "epochs", "num_train", "num_val",
            "num_test", "best_val_epoch",
        ),
    ),
    (is_fraction, "fraction in [0, 1]", ("test_acc_best", "test_acc_final", "best_val_acc", "agreement", "test_ece")),
    (is_number, "finite number", ("test_nll", "kl_t1", "kl_t4", "train_seconds", "images_per_second")),
    (lambda v: isinstance(v, dict), "section", ("method_params", "recipe", "environment")),
    (
        lambda v: isinstance(v, list) and all(a is None or is_fraction(a) for a in v),
        "list of fractions in [0, 1]",
        ("per_class_acc",),
    ),
)  # fmt: skip
"""What keys of a summary must be where they are not null: a check, its name, the keys."""


def duplicate(first: Run, second: Run) -> str:
    same = all(first[key] == second[key] for key in ("test_acc_best", "test_acc_final", "best_val_acc"))
    what = "the same run" if same else "by its key the same run, but with other numbers,"
    return f"{shown(second.path)} is {what} as {shown(first.path)}; counted once, the first"


def shown(path: Path) -> str:
    """A path as a person would give it: relative to the working directory if it lies below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
