"""The studies of a search in its storage: made, or found again and compared with the definition of the search."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.config.options import groups
from kdbench.errors import ConfigError, nearest, without_passwords
from kdbench.rundir.files import hash_of
from kdbench.runner.trials import build_pruner, cause_of, open_storage
from kdbench.search.options import Options
from kdbench.search.settings import SECTION, SearchKeys, build_sampler
from kdbench.search.space import Space
from kdbench.search.trials import Arm

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.study import Study

ATTRIBUTE = "kdbench"
"""Attribute of a study with what the search is."""
ROOT = "output_root"
"""Attribute of a study with the output root of its runs."""
NO_PART = (
    "hydra", "output_root", "on_busy", "overwrite", "report", "runtime", "checkpoint", "tracker", "trust", "objectives",
    "trial", "shared_roots",
)  # fmt: skip
"""First names of keys that do not belong to a setting: where and how its runs are executed."""


@dataclass(frozen=True)
class Definition:
    """Definition of a search: commands that have the same one work on the same search."""

    objectives: Sequence[str]
    directions: Sequence[str]
    space: Mapping[str, str]
    fixed: Sequence[str]
    per: Sequence[str]
    base: str
    """Run keys of the first setting of each combination of options: they cover files that the overrides only name."""

    @classmethod
    def of(
        cls, space: Space, per: Sequence[str], objectives: Sequence[str], directions: Sequence[str], base: str
    ) -> "Definition":
        fixed = sorted(one.text for one in space.fixed if one.key.partition(".")[0].partition("/")[0] not in NO_PART)
        return cls(list(objectives), list(directions), space.describe(), fixed, list(per), base)

    @property
    def content(self) -> dict[str, Any]:
        plain: dict[str, Any] = json.loads(json.dumps(vars(self)))
        return plain

    @property
    def name(self) -> str:
        """Name of a search that was given none."""
        return f"search_{hash_of(self.content)[:8]}"

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Return in words how another search of the same name differs."""
        lines = []
        for name, own in self.content.items():
            theirs = other.get(name)
            if theirs == own or name == "base":
                continue
            if name == "space" and isinstance(theirs, dict):
                keys = [key for key in {**theirs, **own} if theirs.get(key) != own.get(key)]
                lines += [f"{key} is {theirs.get(key, 'not searched')} there and {own.get(key, 'not searched')} here"
                          for key in keys]  # fmt: skip
            else:
                lines.append(f"{name} is {part_text(theirs)} there and {part_text(own)} here")
        if not lines and other.get("base") != self.base:
            lines.append("a file of settings, the precision or the version of kdbench has changed since")
        return lines


def part_text(value: Any) -> str:
    """Return a part of a definition for people."""
    return f"[{' '.join(map(str, value))}]" if isinstance(value, list) else str(value)


def open_arms(
    name: str, url: str, keys: SearchKeys, options: Options, definition: Definition, epochs: int
) -> list[Arm]:
    """Return the arms of a search, whose studies are made where they are missing.

    Args:
        name: name of the search.
        url: URL of the storage.
        keys: keys of the sweeper.
        options: the whole space.
        definition: definition of the search.
        epochs: number of epochs of a run.

    Raises:
        ConfigError: the storage cannot be used, or has another search of this name.
    """
    storage = open_storage(url)
    arms = []
    for label, space in divide(options.space, keys):
        own = Options(space, options.compose, options.node)
        try:
            study, is_new = open_study(storage, f"{name}/{label}" if label else name, keys, definition, epochs)
            arm = Arm(study, storage, own, keys, label)
            if is_new:
                if keys.defaults_first:
                    arm.enqueue_defaults()
                study.set_user_attr(ATTRIBUTE, definition.content)
        except ConfigError:
            raise
        except Exception as error:  # of the database: locked, read-only, damaged
            raise ConfigError(
                f"{SECTION}.storage is {without_passwords(url)}, which cannot be used: {cause_of(error)}",
                code="storage",
                key=f"{SECTION}.storage",
            ) from None
        arms.append(arm)
    return arms


def divide(space: Space, keys: SearchKeys) -> list[tuple[str, Space]]:
    """Return the arms of a space, each with its label: one for each combination of the groups that get equal trials.

    Raises:
        ConfigError: a group of `per` is not searched.
    """
    searched = {d.key: d for d in space.choosing}
    for group in keys.groups:
        if group not in searched:
            remedy = (
                f"which has one option here; give several, as in {group}=A,B (groups that have: "
                f"{', '.join(searched) or 'none'})"
                if group in groups()
                else f"which is not a group; {nearest(group, groups())}"
            )
            raise ConfigError(
                f"{SECTION}.per names {group}, {remedy}",
                code="mismatch",
                key=f"{SECTION}.per",
            )
    if not keys.groups:
        return [("", space)]
    arms: dict[str, Space] = {}
    for combination in space.combinations():
        own = {group: combination[group] for group in dict.fromkeys(keys.groups)}
        arms[",".join(f"{group}={option}" for group, option in own.items())] = space.within(own)
    return list(arms.items())


def open_study(
    storage: "BaseStorage", name: str, keys: SearchKeys, definition: Definition, epochs: int
) -> "tuple[Study, bool]":
    """Return a study, and whether it is new. Errors: see `open_arms`."""
    import optuna

    settings: dict[str, Any] = {"sampler": build_sampler(keys.sampler, 0), "pruner": build_pruner(keys.pruner, epochs)}
    try:
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            directions=[optuna.study.StudyDirection[direction.upper()] for direction in definition.directions],
            **settings,
        )
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(storage=storage, study_name=name, **settings)
    theirs = study.user_attrs.get(ATTRIBUTE)
    trials = study.get_trials(deepcopy=False)
    if theirs is None and all(t.state == optuna.trial.TrialState.WAITING for t in trials):  # or it was killed here
        return study, True
    remedy = f"give another name with {SECTION}.study_name=NAME"
    if not isinstance(theirs, dict):
        raise ConfigError(
            f"{SECTION}.study_name is {name}, a study of another program in this storage; {remedy}",
            code="other_study",
            key=f"{SECTION}.study_name",
        )
    if lines := definition.differences(theirs):
        raise ConfigError(
            f"{SECTION}.study_name is {name}, another search in this storage: {'; '.join(lines)}; {remedy}",
            code="other_study",
            key=f"{SECTION}.study_name",
        )
    return study, False


def check_root(study: "Study", root: Path) -> None:
    """Check that the processes of a search share an output root: their locks say who is alive.

    A root that was moved, or is mounted elsewhere on this host, is not there under its former name.

    Raises:
        ConfigError: the search has another one, which exists.
    """
    own, theirs = str(root.resolve()), study.user_attrs.get(ROOT)
    if theirs not in (None, own) and Path(theirs).is_dir():
        raise ConfigError(
            f"output_root is {root}, and search {study.study_name} has its runs in {theirs}; give that one, or another "
            f"{SECTION}.study_name",
            code="other_study",
            key="output_root",
        )
    if theirs != own:
        study.set_user_attr(ROOT, own)
