"""Distilled groups with the controls that they are compared with: which run of a control stands for which student.

The unit is the seed of a student within its teacher. A control is a set of runs that never saw that teacher:

- `SIDDO`: no teacher, the student's initialisation, another order of the images.
- `baseline`: no teacher, both seeds of the student.
- `DIDDO`: no teacher, no seed in common with any student of the group.
- `other teacher`: students of the same method and setting whose teacher differs in its seed alone.
- control methods, such as `random_control` and `label_smoothing`, with both seeds of the student; where both have an
  `alpha`, those with the student's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.report.baselines import share_training
from kdbench.report.columns import is_missing
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
    runs: Mapping[Seeds, Sequence[Any]]
    """Runs that stand for the student with these seeds (their mean counts), or, not paired, for all."""
    is_paired: bool
    """True if each run stands for one student."""


@dataclass(frozen=True, eq=False)
class Condition:
    """Distilled group with one teacher, and its controls."""

    group: RunGroup
    controls: Sequence[Control]

    @property
    def family(self) -> str:
        """Text that is equal for groups that differ in their teacher's seed alone."""
        return settings(self.group, (*STUDENT, *METHOD))


def find_conditions(groups: Sequence[RunGroup]) -> list[Condition]:
    """Return every distilled group that has a teacher, in the order of the groups."""
    distilled = [group for group in groups if group.shared.role == DISTILLED and group.shared.teacher_key]
    return [Condition(group, find_controls(group, groups)) for group in distilled]


def find_controls(group: RunGroup, groups: Sequence[RunGroup]) -> list[Control]:
    """Return the controls of a group that have runs, in the order of `FIRST_CONTROLS`."""
    alike = [other for other in groups if other is not group and share_training(other, group)]
    undistilled = [run for other in alike if other.shared.role == BASELINE for run in other.rows]
    found = [
        Control(SIDDO, siddo_runs(group.seeds, undistilled), True),
        Control(BASELINE, runs_of_seeds(group.seeds, undistilled), True),
        Control(DIDDO, diddo_runs(group.seeds, undistilled), False),
        Control(OTHER_TEACHER, runs_of_seeds(group.seeds, students_of_others(group, alike)), True),
    ]
    for other in alike:
        if other.shared.role == CONTROL and has_weight_of(group, other):
            found.append(Control(name_of_method(group, other), runs_of_seeds(group.seeds, other.rows), True))
    return [control for control in found if control.runs]


def siddo_runs(seeds: Sequence[Seeds], undistilled: Sequence[Any]) -> dict[Seeds, list[Any]]:
    """Return, for each student, the undistilled runs with its initialisation and an order that no student has."""
    orders = {data for _, data in seeds}
    found = {
        (init, data): [run for run in undistilled if run.init_seed == init and run.data_seed not in orders]
        for init, data in seeds
    }
    return {pair: runs for pair, runs in found.items() if runs and None not in pair}


def diddo_runs(seeds: Sequence[Seeds], undistilled: Sequence[Any]) -> dict[Seeds, list[Any]]:
    """Return the undistilled runs that share neither seed with any student, by their own seeds."""
    inits, orders = ({pair[which] for pair in seeds} for which in (0, 1))
    runs = [run for run in undistilled if None not in run.seeds]
    return {run.seeds: [run] for run in runs if run.init_seed not in inits and run.data_seed not in orders}


def runs_of_seeds(seeds: Sequence[Seeds], runs: Sequence[Any]) -> dict[Seeds, list[Any]]:
    """Return, for each student, the runs with both of its seeds."""
    found = {pair: [run for run in runs if run.seeds == pair] for pair in seeds}
    return {pair: of_seeds for pair, of_seeds in found.items() if of_seeds}


def students_of_others(group: RunGroup, alike: Sequence[RunGroup]) -> list[Any]:
    """Return the students that differ from a group's in the seed of their teacher alone."""
    own, seed = settings(group, (*STUDENT, *METHOD)), group.shared.teacher_seed
    others = [
        other
        for other in alike
        if other.shared.teacher_seed not in (None, seed) and settings(other, (*STUDENT, *METHOD)) == own
    ]
    return [run for other in others for run in other.rows] if seed is not None else []


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
