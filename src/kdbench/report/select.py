"""Selection of settings by a study (`--select selected.yaml`), applied to the runs before anything is computed."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from kdbench.errors import ConfigError
from kdbench.report.groups import BASELINE, COMPARED, columns_of
from kdbench.rundir.summary import KEY, Status


@dataclass(frozen=True, kw_only=True)
class SelectedSetting:
    """Setting that won for a student, teacher and method, and the choice that it won."""

    student: str
    teacher: str | None
    method: str
    method_params: Mapping[str, Any]
    recipe: Mapping[str, Any]
    overrides: Sequence[str]
    margin: float | None
    """Points ahead of the next best; None where there was none."""
    noise: float | None
    candidates: Sequence[Mapping[str, Any]]
    noise_images: float | None = None
    """Standard error of the margin that comes from the validation images, both settings on the same ones, points."""
    noise_seeds: float | None = None
    """The part that comes from the seeds beyond that, where several seeds chose."""
    seed_scores: Sequence[Sequence[float]] = ()
    """Scores of each candidate's runs, per cent, in the order of `candidates`."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """Keys of summary.json that say on what data the choice was made; empty where it is not recorded."""

    @property
    def varied(self) -> tuple[str, ...]:
        """Columns of the recipe's keys that were selected."""
        return tuple(o.partition("=")[0] for o in self.overrides if o.startswith("recipe."))

    def is_subject(self, run: Any) -> bool:
        """Return whether the choice was made for this run's student, teacher and method."""
        return (run.student, run.teacher, run.method) == (self.student, self.teacher, self.method)

    def is_setting(self, run: Any) -> bool:
        """Return whether a run has these parameters of the method, and of the recipe those that were selected."""
        params = columns_of(run.index, (KEY.method_params,))
        own = {c.partition(".")[2]: run[c] for c in params if run[c] is not None}
        chosen = {key: value for key, value in self.method_params.items() if value is not None}
        return own == chosen and all(run.get(c) == self.recipe.get(c.partition(".")[2]) for c in self.varied)


@dataclass(frozen=True)
class Selection:
    """Content of selected.yaml."""

    study: str
    chosen_by: str
    selection_seeds: tuple[int, ...]
    final_seeds: tuple[int, ...]
    winners: Sequence[SelectedSetting]

    @property
    def candidates(self) -> set[str]:
        """Keys of the runs by which the settings were chosen."""
        return {key for winner in self.winners for c in winner.candidates for key in c["run_keys"]}

    def is_final(self, seed: int | None) -> bool:
        """Return whether a seed is meant to report; a search names none, and all but those that chose are."""
        return seed in self.final_seeds if self.final_seeds else seed not in self.selection_seeds

    def is_left_out(self, run: Any) -> bool:
        """Return whether a run chose and is not meant to report, or has a setting that lost."""
        took_part = run.run_key in self.candidates or (
            run.status == Status.FAILED and run.seed in self.selection_seeds  # of a candidate, or of its winner's arm
        )
        if took_part and run.seed not in self.final_seeds:
            return True
        subject = [winner for winner in self.winners if winner.is_subject(run)]
        return run.role in COMPARED and bool(subject) and not any(winner.is_setting(run) for winner in subject)


def with_selection(runs: pd.DataFrame, selection: Selection | None = None) -> pd.DataFrame:
    """Return the runs that report, with three columns that say what the selection means for their comparison.

    - `is_selected`: a choice was made for the run's student, teacher and method.
    - `is_final`: the run has a seed that is meant to report. Teachers and other studies leave baselines with others.
    - `tuned`: keys of the recipe that were selected for the baseline too; none for a baseline that lost. A run is
      compared with a baseline that has the same `tuned`, and equals it in all other keys.

    Without a selection every run is final.

    Raises:
        ConfigError: the selection leaves no run, is of other runs, or of runs without validation.
    """
    if selection is None:
        return runs.assign(is_selected=False, is_final=True, tuned=pd.Series([()] * len(runs), index=runs.index))
    chose_on_trained = [run.run_key for _, run in runs.iterrows() if not run.validation]
    if selection.candidates.intersection(chose_on_trained):
        raise ConfigError(
            f"--select is of the study {selection.study}, which chose among runs with data.validation=false: their "
            "validation images were trained on, so nothing may be selected by them",
            code="no_validation",
            key="--select",
        )
    winners = selection.winners
    # The role of a winner is that of its runs; those that chose are among them.
    tuned = {
        run.student: winner
        for winner in reversed(winners)
        for _, run in runs[runs.role == BASELINE].iterrows()
        if winner.is_subject(run)
    }
    baselines = [run for _, run in runs[runs.role == BASELINE].iterrows()]
    only_baselines = all(any(winner.is_subject(run) for run in baselines) for winner in winners)
    runs = runs[[not selection.is_left_out(run) for _, run in runs.iterrows()]]
    if not len(runs):
        raise ConfigError(
            "--select leaves no run to report: every run took part in the selection, or has a setting that was not "
            "selected",
            code="no_run",
            key="--select",
        )
    rows = [run for _, run in runs.iterrows()]
    marks = pd.DataFrame(
        {
            "is_selected": [any(winner.is_subject(run) for winner in winners) for run in rows],
            "is_final": [selection.is_final(run.seed) for run in rows],
            "tuned": [tuned_keys(run, tuned.get(run.student)) for run in rows],
        },
        index=runs.index,
    )
    runs = runs.join(marks)
    compared = runs.is_selected & runs.role.isin(COMPARED)
    if not reporting_seeds(runs) or not (compared.any() or only_baselines):
        raise ConfigError(
            f"--select is of the study {selection.study}, and none of its winners is among these runs",
            code="mismatch",
            key="--select",
        )
    return runs


def tuned_keys(run: Any, baseline: SelectedSetting | None) -> tuple[str, ...]:
    """Return the value of `tuned` for a run.

    Args:
        run: row of the table of runs.
        baseline: setting that was selected for the baseline of the run's student, if any was.
    """
    if baseline is None:
        return ()
    lost = run.role == BASELINE and not (baseline.is_subject(run) and baseline.is_setting(run))
    return () if lost else baseline.varied


def reporting_seeds(runs: pd.DataFrame) -> list[int]:
    """Return the seeds of the runs that report what was chosen."""
    chosen = runs[runs.is_selected & runs.role.isin(COMPARED)]
    if not len(chosen):  # a search of baselines alone
        chosen = runs[runs.is_selected & runs.is_final & (runs.role == BASELINE)]
    return sorted(set(chosen.seed))


def read_selection(path: Path) -> Selection:
    """Return a selection from its file.

    Raises:
        ConfigError: it cannot be read, or holds something else.
    """
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))
        winners = [selected_setting(winner) for winner in content["winners"]]
        selection = Selection(
            str(content["study"]),
            str(content["chosen_by"]),
            whole_numbers(content["selection_seeds"]),
            whole_numbers(content["final_seeds"]),
            winners,
        )
        assert all(isinstance(key, str) for key in selection.candidates)
    except OSError as error:
        raise ConfigError(
            f"--select is {path}, which cannot be read ({error.strerror or error})", code="not_found", key="--select"
        ) from None
    except Exception as error:  # whatever YAML of another shape raises
        described = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"--select is {path}, which is not a selected.yaml of kdbench-study ({described})",
            code="damaged",
            key="--select",
        ) from None
    return selection


def selected_setting(winner: Mapping[str, Any]) -> SelectedSetting:
    """Return a winner of a selection's file.

    Raises:
        ValueError: it lacks a key.
    """
    fields = dataclasses.fields(SelectedSetting)
    required = [f.name for f in fields if f.default is dataclasses.MISSING is f.default_factory]
    lacking = [name for name in required if name not in winner]
    if lacking:
        raise ValueError(f"a winner lacks {', '.join(lacking)}")
    given = {f.name: winner[f.name] for f in fields if f.name in winner}
    return SelectedSetting(**given | {"candidates": [dict(candidate) for candidate in winner["candidates"]]})


def whole_numbers(seeds: Any) -> tuple[int, ...]:
    if not isinstance(seeds, list) or not all(isinstance(seed, int) for seed in seeds):
        raise ValueError(f"seeds are {seeds!r}, no list of whole numbers")
    return tuple(seeds)
