"""Distilled groups with the controls that they are compared with: which run of a control stands for which student.

The unit is the seed of a student within its teacher, and each unit has one run of a control, trained without
that teacher:

- `SIDDO`: no teacher, the student's initialisation, another order of the images; of several the one with the smallest
  data seed.
- `baseline`: no teacher, both seeds of the student.
- `DIDDO`: no teacher, no seed in common with any student of the group; not paired.
- `other teacher`: students of the same method and setting whose teacher differs in its seed alone: of the next seed in
  order, and for the last seed of the first.
- control methods, such as `random_control` and `label_smoothing`, with both seeds of the student; where both have an
  `alpha`, those with the student's.

The teacher itself, and the teachers that it learned from, are no controls.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kdbench.report.baselines import share_training
from kdbench.report.columns import is_missing
from kdbench.report.fidelity import teacher_folder
from kdbench.report.gains import Seeds, settings
from kdbench.report.groups import BASELINE, CONTROL, DIDDO, DISTILLED, METHOD, SIDDO, STUDENT, RunGroup

OTHER_TEACHER = "other teacher"
FIRST_CONTROLS = (SIDDO, BASELINE, DIDDO, OTHER_TEACHER)
"""Order of the controls; control methods follow. The first that a condition has is its primary control."""
ALPHA_KEY = "method_params.alpha"
TEMPERATURE_KEY = "method_params.temperature"


@dataclass(frozen=True, eq=False)
class Control:
    """Runs that a group of students is compared with."""

    name: str
    runs: Mapping[Seeds, Any]
    """Run that stands for the student with these seeds; of a control that is not paired, each run by its own seeds."""
    is_paired: bool


@dataclass(frozen=True, eq=False)
class Condition:
    """Distilled group with one teacher, and its controls."""

    group: RunGroup
    teacher: Path
    """Directory of the teacher's run."""
    arm: str
    """Text that is equal for groups whose teachers differ in their seed alone."""
    controls: Sequence[Control]

    @property
    def runs(self) -> list[Any]:
        """Students and control runs, each once."""
        of_controls = [run for control in self.controls for run in control.runs.values()]
        return list({run.path: run for run in [*self.group.rows, *of_controls]}.values())


def find_conditions(runs: pd.DataFrame, groups: Sequence[RunGroup]) -> list[Condition]:
    """Return every distilled group whose teacher is found, in the order of the groups.

    Args:
        runs: runs of the report; teachers are searched among them, then beside the student's run directory.
        groups: groups of the report.
    """
    known = {run_key: place for place, run_key in enumerate(runs.run_key)}
    distilled = [group for group in groups if group.shared.role == DISTILLED and group.shared.teacher_key]
    arms = {id(group): arm_of(group, runs, known) for group in distilled}
    found = []
    for group in distilled:
        if folder := teacher_folder(group.shared, runs):
            alike = [other for other in distilled if arms[id(other)] == arms[id(group)]]
            controls = find_controls(group, groups, next_teacher(group, alike), ancestors(group, runs, known))
            found.append(Condition(group, folder, arms[id(group)], controls))
    return found


def arm_of(group: RunGroup, runs: pd.DataFrame, known: Mapping[str, int]) -> str:
    """Return what a distilled group is but for the seed of its teacher, with the settings of a teacher that is here."""
    own = settings(group, (*STUDENT, *METHOD))
    place = known.get(group.shared.teacher_key)
    return own if place is None else own + settings(RunGroup(runs.iloc[[place]]), (*STUDENT, *METHOD))


def ancestors(group: RunGroup, runs: pd.DataFrame, known: Mapping[str, int]) -> set[str]:
    """Return the keys of a group's teacher, of its teacher, and so on."""
    found: set[str] = set()
    key = group.shared.teacher_key
    while key and key not in found:
        found.add(key)
        key = runs.teacher_key.iloc[known[key]] if key in known else None
    return found


def next_teacher(group: RunGroup, alike: Sequence[RunGroup]) -> RunGroup | None:
    """Return the group of the next teacher seed, after the last one of the first; None without other seeds."""
    seeds = {other.shared.teacher_seed: other for other in alike}
    own = group.shared.teacher_seed
    if len(seeds) < 2 or len(seeds) < len(alike) or None in seeds:
        return None
    order = sorted(seeds)
    return seeds[order[(order.index(own) + 1) % len(order)]]


def find_controls(
    group: RunGroup, groups: Sequence[RunGroup], next_group: RunGroup | None, excluded: set[str]
) -> list[Control]:
    """Return the controls of a group that have runs, in the order of `FIRST_CONTROLS`.

    Args:
        group: distilled group.
        groups: groups of the report.
        next_group: students of the next teacher seed.
        excluded: keys of runs that are no controls.
    """
    alike = [o for o in groups if o.shared.role in (BASELINE, CONTROL) and share_training(o, group)]
    undistilled = [o for o in alike if o.shared.role == BASELINE]
    runs = {kind: usable(group, [o for o in undistilled if o.seed_control == kind], excluded)
            for kind in ("", SIDDO, DIDDO)}  # fmt: skip
    others = next_group.rows if next_group else []
    found = [
        Control(SIDDO, siddo_runs(group.seeds, runs[SIDDO] or runs[""]), True),
        Control(BASELINE, runs_of_seeds(group.seeds, [run for of_kind in runs.values() for run in of_kind]), True),
        Control(DIDDO, diddo_runs(group.seeds, runs[DIDDO] or runs[""]), False),
        Control(OTHER_TEACHER, runs_of_seeds(group.seeds, others), True),
    ]
    for other in alike:
        if other.shared.role == CONTROL and has_weight_of(group, other):
            found.append(Control(name_of_method(group, other), runs_of_seeds(group.seeds, other.rows), True))
    return [control for control in found if control.runs]


def usable(group: RunGroup, others: Sequence[RunGroup], excluded: set[str]) -> list[Any]:
    """Return the undistilled runs that may be controls: after a selection, those with the seeds that report."""
    runs = [run for other in others for run in other.rows if run.run_key not in excluded]
    final = [run for run in runs if run.is_final]
    return final if group.shared.is_selected and final else runs


def siddo_runs(seeds: Sequence[Seeds], undistilled: Sequence[Any]) -> dict[Seeds, Any]:
    """Return, for each student, the undistilled run with its initialisation and an order that no student has."""
    orders = {data for _, data in seeds}
    found = {}
    for init, data in seeds:
        own = [run for run in undistilled if run.seeds[0] == init and run.seeds[1] not in (None, *orders)]
        if own and None not in (init, data):
            found[init, data] = min(own, key=lambda run: run.seeds[1])
    return found


def diddo_runs(seeds: Sequence[Seeds], undistilled: Sequence[Any]) -> dict[Seeds, Any]:
    """Return the undistilled runs that share neither seed with any student, by their own seeds."""
    inits, orders = ({pair[which] for pair in seeds} for which in (0, 1))
    runs = [run for run in undistilled if None not in run.seeds]
    return {run.seeds: run for run in runs if run.seeds[0] not in inits and run.seeds[1] not in orders}


def runs_of_seeds(seeds: Sequence[Seeds], runs: Sequence[Any]) -> dict[Seeds, Any]:
    """Return, for each student, the run with both of its seeds; the first of several."""
    by_seeds = {run.seeds: run for run in reversed(runs)}
    return {pair: by_seeds[pair] for pair in seeds if pair in by_seeds}


def name_of_method(group: RunGroup, other: RunGroup) -> str:
    """Return the name of a control method with its setting, without an `alpha` that is the group's own."""
    own = number_of(other, ALPHA_KEY)
    is_own = own is not None and own == number_of(group, ALPHA_KEY)
    words = [word for word in other.setting.split(" ") if not (is_own and word.startswith("alpha="))]
    return " ".join([other.shared.method, *words]).strip()


def has_weight_of(group: RunGroup, other: RunGroup) -> bool:
    """Return whether a control method has the group's `alpha`, as far as both have one."""
    ours, theirs = number_of(group, ALPHA_KEY), number_of(other, ALPHA_KEY)
    return ours is None or theirs is None or ours == theirs


def number_of(group: RunGroup, column: str) -> float | None:
    """Return a numeric key of a group's method, or None where it has none."""
    value = group.shared.get(column)
    return None if is_missing(value) or isinstance(value, bool | str) else float(value)
