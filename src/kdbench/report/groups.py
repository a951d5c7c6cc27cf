"""Groups of runs that differ in their seeds alone, and which of them is whose undistilled student."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.errors import ConfigError
from kdbench.report.runs import UNDISTILLED, Run
from kdbench.runs import SCHEMA_VERSION

PROTOCOL = ("dataset", "num_train", "num_val", "num_test", "schema_version")
"""What all runs of one report share: numbers of different data sets or splits do not compare."""
STUDENT = (*PROTOCOL, "student", "stem", "recipe", "epochs", "precision", "num_params")
LESSON = ("method", "method_params", "teacher", "teacher_seed", "teacher_key")


def plain(value: Any) -> str:
    """A value that compares and sorts."""
    return json.dumps(value, sort_keys=True)


def flat(run: Run, keys: Sequence[str]) -> dict[str, Any]:
    """Some of a summary's keys, sections opened."""
    values: dict[str, Any] = {}
    for key in keys:
        value = run[key]
        values |= {f"{key}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {key: value}
    return values


@dataclass
class Group:
    """Runs that are equal in everything but their seeds, in the order of these."""

    runs: list[Run]
    setting: str = ""
    """What tells it apart from others of its student, teacher and method."""

    def __getitem__(self, key: str) -> Any:
        return self.runs[0][key]

    @property
    def seeds(self) -> list[tuple[int, int]]:
        return [run.seeds for run in self.runs]

    @property
    def accuracies(self) -> list[float]:
        """Test accuracy at the best validation epoch, per cent, one for each run."""
        return self.percents("test_acc_best")

    def percents(self, key: str) -> list[float]:
        return [100 * float(run[key]) for run in self.runs if run[key] is not None]

    @property
    def is_distilled(self) -> bool:
        return self.runs[0].is_distilled

    @property
    def name(self) -> str:
        """In words, without its seeds."""
        source = f" from {self['teacher']}" if self["teacher"] else ""
        return f"{self['student']} {self['method']}{source}" + (f", {self.setting}" if self.setting else "")


def check_alike(runs: Sequence[Run]) -> None:
    """That runs may stand in one report.

    Raises:
        ConfigError: they are of different data sets, splits or protocol versions; says which keys differ.
    """
    unknown = {run["schema_version"] for run in runs} - {None, SCHEMA_VERSION}
    if unknown:
        said = ", ".join(sorted(map(str, unknown)))
        raise ConfigError(
            f"runs have schema_version {said}, this kdbench knows {SCHEMA_VERSION}; leave them out, or "
            "--allow-mixed to read them as if it were the same"
        )
    keys = differing(runs)
    if keys:
        said = "; ".join(f"{key}: {values}" for key, values in keys.items())
        raise ConfigError(
            f"these runs do not compare, they differ in {said}; give the paths of runs that belong together, "
            "or --allow-mixed to have them in one report, compared only with their like"
        )


def differing(runs: Sequence[Run]) -> dict[str, str]:
    """Keys of the protocol in which runs differ, with their values in words."""
    found = {}
    for key in PROTOCOL:
        values = {plain(run[key]): run[key] for run in runs if run[key] is not None}
        if len(values) > 1:
            found[key] = " and ".join(str(value) for _, value in sorted(values.items()))
    return found


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Groups of runs by everything but seeds, sorted by student's size, teacher and method."""
    by_identity: dict[str, list[Run]] = {}
    for run in runs:
        identity = flat(run, STUDENT + LESSON) | {"group_key": run["group_key"]}
        by_identity.setdefault(plain(identity), []).append(run)
    groups = [Group(sorted(members, key=lambda run: run.seeds)) for members in by_identity.values()]
    groups.sort(key=order)
    name_settings(groups)
    return groups


def order(group: Group) -> tuple[Any, ...]:
    """Small students first, the undistilled before what their teachers make of them."""
    return (
        group["num_params"] or 0, group["student"], group.is_distilled, group["method"], group["teacher"] or "",
        plain(group["teacher_seed"]), plain(flat(group.runs[0], STUDENT + LESSON)),
    )  # fmt: skip


def name_settings(groups: Sequence[Group]) -> None:
    """Say of each group the method's keys that differ among its method, and all others that differ among its like."""
    for group in groups:
        own = told_apart_by(group)
        alike = [g for g in groups if g["method"] == group["method"]]
        like = [g for g in alike if (g["student"], g["teacher"]) == (group["student"], group["teacher"])]
        varying = {key for key in own if key.startswith("method_params.") and differs(key, own[key], alike)}
        varying |= {key for key in own if differs(key, own[key], like)}
        varying |= {key for key in PROTOCOL if differs(key, own[key], groups)}
        for weaker, stronger in (("epochs", "recipe.epochs"), ("teacher_key", "teacher_seed")):
            if stronger in varying:
                varying.discard(weaker)
        group.setting = " ".join(f"{short(key)}={own[key]}" for key in own if key in varying)
    for group in groups:  # what the summary's keys do not tell apart still is apart
        twins = [g for g in groups if g.name == group.name]
        if len(twins) > 1:
            for number, twin in enumerate(twins, 1):
                twin.setting = f"{twin.setting} variant={number}".strip()


def told_apart_by(group: Group) -> dict[str, Any]:
    return flat(group.runs[0], ("method_params", *STUDENT, "teacher_seed", "teacher_key"))


def differs(key: str, value: Any, groups: Sequence[Group]) -> bool:
    return any(told_apart_by(g).get(key) != value for g in groups)


def short(key: str) -> str:
    return key.rpartition(".")[2]


def undistilled_of(group: Group, groups: Sequence[Group]) -> Group | None:
    """The same student without a teacher: equal in all but method and teacher.

    `clip_projections` is the method's affair too: without projections it changes nothing. Where undistilled students
    with
    both values are there, the one with the same value is taken.
    """
    same = [g for g in groups if g["method"] == UNDISTILLED and base_of(g) == base_of(group) and compatible(g, group)]
    same.sort(key=lambda g: g["recipe"] != group["recipe"])
    return same[0] if same else None


def base_of(group: Group) -> dict[str, Any]:
    """What a distilled group shares with its undistilled student."""
    return {key: value for key, value in flat(group.runs[0], STUDENT).items() if key != "recipe.clip_projections"}


def compatible(group: Group, other: Group) -> bool:
    """Whether runs of equal seeds agree in `baseline_key`, which covers what the summary's other keys do not say."""
    keys = {run.seeds: run["baseline_key"] for run in group.runs}
    return all(keys.get(run.seeds) in (None, run["baseline_key"]) or run["baseline_key"] is None for run in other.runs)
