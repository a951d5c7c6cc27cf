"""Trials of a search, read from its files: trials.csv, best.yaml, or selected.yaml of a study, which is a grid."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from kdbench.config.paths import is_folder
from kdbench.errors import ConfigError
from kdbench.report.select import SelectedSetting, selected_setting
from kdbench.rundir.summary import KEY, Status

TRIALS_FILE, BEST_FILE = "trials.csv", "best.yaml"
DIVERGED = "diverged"
"""Status of a trial whose run failed since its loss was not finite; the others are those of runs."""
RESULTS = (Status.COMPLETE, Status.PRUNED, DIVERGED)
"""Status of the trials that count; others could not run."""
ArmNames = tuple[str, str | None, str]
"""Student, teacher and method."""


@dataclass(frozen=True)
class Trial:
    """Trial of a search with its validation accuracy, per cent."""

    student: str
    teacher: str | None
    method: str
    role: str
    """Role of the method; empty where it is not recorded."""
    status: str
    score: float
    is_default: bool | None = False
    """True for the default setting; None where that is not known."""
    run_key: str = ""
    records_default: bool = True
    """False if its file says nothing about the default setting, not even that it is not known."""

    @property
    def arm(self) -> ArmNames:
        return self.student, self.teacher, self.method


@dataclass(frozen=True)
class FoundSearch:
    """A search with its trials."""

    name: str
    sampler: str
    trials: tuple[Trial, ...]
    winners: tuple[SelectedSetting, ...] = ()
    """Settings that won, where they are recorded."""

    @property
    def arms(self) -> list[ArmNames]:
        """Arms, those without a teacher first."""
        return sorted(dict.fromkeys(trial.arm for trial in self.trials), key=lambda arm: arm[1] is not None)

    def of(self, arm: ArmNames) -> list[Trial]:
        return [trial for trial in self.trials if trial.arm == arm]


def search_beside(selection: Path) -> Path | None:
    """Return the file of a selection if a search has written it, else None."""
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(selection))
    except Exception:  # whoever reads the selection reports it
        return None
    return selection if isinstance(content, dict) and content.get("search") else None


def read_search(path: Path) -> FoundSearch:
    """Return a search.

    Args:
        path: folder of the search, its trials.csv or best.yaml, or selected.yaml of a study.

    Raises:
        ConfigError: it cannot be read, or holds no trial with a result.
    """
    if path.suffix in (".db", ".journal", ".log"):
        beside = path.with_suffix("")
        raise ConfigError(
            f"--search is {path}, the storage of a search; give the folder of its results, "
            f"{beside if is_folder(beside) else 'OUTPUT_ROOT/searches/NAME'}",
            code="wrong_type",
            key="--search",
        )
    try:
        file = path
        if is_folder(path):
            file = path / TRIALS_FILE
        if file.name == TRIALS_FILE and (best := file.with_name(BEST_FILE)).is_file():
            file = best
        found = from_csv(file, {}) if file.suffix == ".csv" else from_yaml(file)
    except OSError as error:
        raise ConfigError(
            f"--search is {path}, which cannot be read ({error.strerror or error}); give OUTPUT_ROOT/searches/NAME",
            code="not_found",
            key="--search",
        ) from None
    except Exception as error:  # whatever a file of another shape raises
        described = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"--search is {path}, which holds no search of kdbench ({described}); give OUTPUT_ROOT/searches/NAME",
            code="damaged",
            key="--search",
        ) from None
    if not found.trials:
        raise ConfigError(
            f"--search is {path}, and no trial of it has a result; give the same command of the search again",
            code="no_run",
            key="--search",
        )
    return found


def from_csv(file: Path, about: Mapping[str, Any]) -> FoundSearch:
    """Return the search of a trials.csv."""
    with file.open(newline="") as opened:
        rows = [row for row in csv.DictReader(opened) if row["status"] in RESULTS and row["val_acc"]]
    trials = distinct(
        Trial(
            row["student"], row["teacher"] or None, row["method"], row[KEY.role], row["status"], float(row["val_acc"]),
            row["default"] == "True", row[KEY.run_key],
        )
        for row in rows
    )  # fmt: skip
    return FoundSearch(str(about.get("study") or file.parent.name), sampler_of(about), trials, winners_in(about))


def distinct(trials: Iterable[Trial]) -> tuple[Trial, ...]:
    """Return trials of different runs, of one run the default setting or the first.

    An option that a run does not use, such as the teacher of plain training, is another setting but the same run.
    """
    found: dict[str | int, Trial] = {}
    for number, trial in enumerate(sorted(trials, key=lambda one: not one.is_default)):
        found.setdefault(trial.run_key or number, trial)
    return tuple(found.values())


def sampler_of(about: Mapping[str, Any]) -> str:
    search = about.get("search")
    return str(search.get("sampler", "")) if isinstance(search, Mapping) else ""


def from_yaml(file: Path) -> FoundSearch:
    """Return the search of a best.yaml or selected.yaml: of the trials beside it, else of its candidates."""
    content: Any = OmegaConf.to_container(OmegaConf.load(file))
    if sampler_of(content) and (beside := file.with_name(TRIALS_FILE)).is_file():
        return from_csv(beside, content)
    trials = [
        Trial(
            str(winner["student"]), winner["teacher"], str(winner["method"]), "", Status.COMPLETE,
            float(candidate["score"]), candidate.get("default"), str(candidate["run_keys"][0]),
            "default" in candidate,
        )
        for winner in content["winners"]
        for candidate in winner["candidates"]
    ]  # fmt: skip
    return FoundSearch(str(content["study"]), sampler_of(content) or "grid", tuple(trials), winners_in(content))


def winners_in(content: Mapping[str, Any]) -> tuple[SelectedSetting, ...]:
    return tuple(selected_setting(winner) for winner in content.get("winners", ()))
