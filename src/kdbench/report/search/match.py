"""Connection of a search with the reported runs: the same data, and the setting that won."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdbench.errors import ConfigError
from kdbench.report.gains import Gain
from kdbench.report.groups import BASELINE, COMPARED, METHOD, STUDENT, columns_of
from kdbench.report.search.read import ArmNames, FoundSearch
from kdbench.report.select import SelectedSetting
from kdbench.rundir.summary import DATA, KEY, Status

SPLIT = (KEY.validation, KEY.num_train)
"""Keys of the data that the final runs of a search may change, for example to train on the validation images too."""
SAME_DATA = [key for key in DATA if key not in SPLIT]
"""Keys of the data that a search and the runs that report its winners share."""


@dataclass(frozen=True, eq=False)
class Chosen:
    """Setting that won an arm, as far as it is known: recorded by the search, or that of the best trial's run."""

    setting: SelectedSetting | None
    run: "pd.Series[Any] | None"
    """Run of the best trial, if it was read."""

    @property
    def data(self) -> Mapping[str, Any]:
        """Keys that say on what data the trials were; empty where it is not known."""
        recorded = self.setting.data if self.setting else None
        return recorded or ({} if self.run is None else {key: self.run[key] for key in DATA})

    def is_setting(self, run: "pd.Series[Any]") -> bool:
        """Return whether a run has this setting; False where the setting is not known."""
        if self.setting:
            return self.setting.is_setting(run)
        shared = [key for key in (*STUDENT, *METHOD) if key not in SPLIT]
        return self.run is not None and not differing(run, self.run, columns_of(run.index, shared))

    def has_data_of(self, run: "pd.Series[Any]") -> bool:
        return not differing(run, self.data, SAME_DATA)

    def split_changes(self, run: "pd.Series[Any]") -> list[str]:
        """Return the keys of the split that a run has another value of, each with both values."""
        return changes(run, self.data, SPLIT)

    def recipe_changes(self, run: "pd.Series[Any]") -> list[str]:
        """Return the keys of the recipe that a run has another value of, each with both values."""
        if self.setting is None:
            return []
        recorded = {f"{KEY.recipe}.{key}": value for key, value in self.setting.recipe.items()}
        return changes(run, recorded, recorded)


def differing(a: Any, b: Any, keys: Iterable[str]) -> list[str]:
    """Return the keys of which two runs both have a value, and not the same one."""
    return [key for key in keys if a.get(key) is not None and b.get(key) is not None and a[key] != b[key]]


def changes(run: "pd.Series[Any]", recorded: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """Return the keys of which a run has another value than was recorded, each with both values."""
    return [f"{key}={recorded[key]} (now {run[key]})" for key in differing(run, recorded, keys)]


def chosen_settings(found: FoundSearch, read: pd.DataFrame) -> dict[ArmNames, Chosen]:
    """Return the setting that won each arm of a search.

    Args:
        found: the search.
        read: every run that was read, those that chose among them.
    """
    by_key = {run.run_key: run for _, run in read.iterrows()}
    chosen = {}
    for arm in found.arms:
        complete = [trial for trial in found.of(arm) if trial.status == Status.COMPLETE]
        best = max(complete, key=lambda trial: trial.score, default=None)
        setting = next((own for own in found.winners if (own.student, own.teacher, own.method) == arm), None)
        chosen[arm] = Chosen(setting, by_key.get(best.run_key) if best else None)
    return chosen


def check_belongs(found: FoundSearch, chosen: Mapping[ArmNames, Chosen], runs: pd.DataFrame) -> None:
    """Check that a search may be one for the reported runs.

    Raises:
        ConfigError: it is of other students, teachers and methods, or of other data.
    """
    reported = [run for _, run in runs.iterrows() if run.role in (BASELINE, *COMPARED)]
    of_arm = {arm: [run for run in reported if (run.student, run.teacher, run.method) == arm] for arm in chosen}
    if reported and not any(of_arm.values()):
        raise ConfigError(
            f"--search is of {found.name}, and none of its students, teachers and methods is among these runs; give "
            "the search by which they were chosen",
            code="mismatch",
            key="--search",
        )
    for arm, own in of_arm.items():
        if own and not any(chosen[arm].has_data_of(run) for run in own):
            keys = differing(own[0], chosen[arm].data, SAME_DATA)
            trials, now = (", ".join(f"{key}={one[key]}" for key in keys) for one in (chosen[arm].data, own[0]))
            raise ConfigError(
                f"--search is of {found.name}, whose trials have {trials}, and these runs have {now}; give the search "
                "by which they were chosen",
                code="mismatch",
                key="--search",
            )


def gains_of(arm: ArmNames, chosen: Chosen, gains: Sequence[Gain]) -> tuple[list[Gain], bool]:
    """Return the gains of the setting that won an arm, and whether the arm has gains at all.

    Gains of single teachers that a pooled one summarises are left out.
    """
    own = [gain for gain in gains if gain.baseline and arm_of_gain(gain) == arm and not gain.is_summarised]
    of_setting = [g for g in own if chosen.is_setting(g.group.shared) and chosen.has_data_of(g.group.shared)]
    return of_setting, bool(own)


def arm_of_gain(gain: Gain) -> ArmNames:
    shared = gain.group.shared
    return shared.student, shared.teacher, shared.method


def remark_match(
    found: FoundSearch, chosen: Mapping[ArmNames, Chosen], gains: Sequence[Gain], names: Mapping[ArmNames, str]
) -> list[str]:
    """Remark on arms whose gains cannot stand beside the search, and on another recipe or training set.

    Args:
        found: the search.
        chosen: see `chosen_settings`.
        gains: gains of the report.
        names: name of each arm.
    """
    unknown, absent, unsure, split, recipe = list[str](), list[str](), list[str](), list[str](), list[str]()
    for arm, own in chosen.items():
        of_setting, any_gain = gains_of(arm, own, gains)
        if any_gain and own.setting is None and own.run is None:
            unknown.append(names[arm])
        elif any_gain and not of_setting:
            absent.append(names[arm])
        elif any_gain and not own.data:
            unsure.append(names[arm])
        split += [change for gain in of_setting for change in own.split_changes(gain.group.shared)]
        recipe += [change for gain in of_setting for change in own.recipe_changes(gain.group.shared)]
    reasons = {
        f"the settings and data of search {found.name} are not known (no best.yaml is beside its trials, and their "
        "runs are not among these), so no gain on the test images stands beside it": unknown,
        f"the setting that won in search {found.name} is not among the reported runs, so no gain on the test images "
        "stands beside it": absent,
        f"search {found.name} does not record its data, and its runs are not among these, so whether it was on the "
        "same data is not known": unsure,
        f"the trials of search {found.name} had other training images than the runs that report its winners": split,
        f"the trials of search {found.name} had another recipe than the runs that report its winners": recipe,
    }
    return [f"{reason}: {'; '.join(dict.fromkeys(concerned))}" for reason, concerned in reasons.items() if concerned]
