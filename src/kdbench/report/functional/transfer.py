"""Transfer: distance of a student to its teacher, minus that of a control that was trained without the teacher."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdbench.metrics import DISTANCES
from kdbench.report.columns import row
from kdbench.report.functional.conditions import (
    ALPHA_KEY,
    FIRST_CONTROLS,
    OTHER_TEACHER,
    TEMPERATURE_KEY,
    Condition,
    Control,
    number_of,
)
from kdbench.report.functional.inference import (
    DIGITS,
    FEWEST_FOR_INTERVAL,
    RankTest,
    Statistic,
    bootstrap_interval,
    choose_test,
    difference,
    p_of_less,
    smallest_p,
)
from kdbench.report.functional_columns import TRANSFER
from kdbench.report.gains import POOLED, Seeds, are_replicates, group_by, name_seeds
from kdbench.report.groups import RunGroup, size_of
from kdbench.report.runs import first_lines
from kdbench.report.statistics import ALPHA, NAN, holm
from kdbench.rundir.summary import KEY

Floats = NDArray[np.float64]
PRIMARY, OTHER_CONTROL, ONE_TEACHER = "primary", "other control", "one teacher"
"""Families: rows of the primary control, of another control, and of one teacher that a pooled row summarises."""
MOST_TEACHERS = 8
"""Largest number of teachers of which every choice is tried."""
LEAST_UNITS = 2
"""Fewest units per side for a test."""


@dataclass(frozen=True, eq=False)
class Units:
    """Students, or control runs, by their seeds."""

    values: Mapping[Seeds, Floats]
    """Vector of values of each unit."""
    runs: Mapping[Seeds, Any]
    """Run of each unit; of a mean over teachers, that of the first teacher."""
    accuracies: Mapping[Seeds, float]
    """Test accuracy of each unit, per cent; NaN where a run has none."""


@dataclass(frozen=True, eq=False)
class ControlComparison:
    """Students of one condition beside a control; a vector of values for each student and each control run."""

    group: RunGroup
    arm: str
    """Text that is equal for groups whose teachers differ in their seed alone."""
    teacher_seed: int | str | None
    setting: str
    control: str
    is_paired: bool
    students: Units
    controls: Units
    without_control: int = 0
    """Number of students that have no such control."""
    is_primary: bool = False
    """True for the primary control of the condition."""
    is_summarised: bool = False
    """True for one teacher's comparison that a pooled one summarises."""
    note: str = ""
    """Seeds and teachers that a pooled comparison leaves out."""

    @property
    def name(self) -> str:
        """Name of the condition."""
        shared = self.group.shared
        setting = f", {self.setting}" if self.setting else ""
        return f"{shared.student} {shared.method} from {shared.teacher}{setting}"

    @property
    def is_pooled(self) -> bool:
        return self.teacher_seed == POOLED

    @property
    def seeds(self) -> list[Seeds]:
        """Seeds of the students that are compared."""
        return list(self.students.values)

    @property
    def control_seeds(self) -> list[Seeds]:
        """Keys of the control units that are compared; where they are paired, in the order of the students."""
        return self.seeds if self.is_paired else list(self.controls.values)

    @property
    def values(self) -> Floats:
        """Values of the students [n, K]."""
        return np.array([self.students.values[pair] for pair in self.seeds])

    @property
    def control_values(self) -> Floats:
        """Values of the control runs [m, K]; where they are paired, in the order of the students."""
        return np.array([self.controls.values[pair] for pair in self.control_seeds])

    @property
    def differences(self) -> Floats:
        """Student minus its control [n, K]; where they are not paired, minus the mean of the control runs."""
        return self.values - (self.control_values if self.is_paired else self.control_values.mean(axis=0))

    @property
    def accuracy_change(self) -> float:
        """Mean accuracy of the students minus that of the control runs, in points."""
        ours = [self.students.accuracies[pair] for pair in self.seeds]
        return float(np.mean(ours) - np.mean([self.controls.accuracies[pair] for pair in self.control_seeds]))

    @property
    def are_samples(self) -> bool:
        """True if runs are independent samples: no seed is crossed or repeated, and no control run counts twice."""
        runs = [self.controls.runs[pair] for pair in self.control_seeds]
        is_distinct = len({run.path for run in runs}) == len(runs)
        return is_distinct and are_replicates(self.seeds) and are_replicates([run.seeds for run in runs])

    @property
    def can_be_tested(self) -> bool:
        return self.are_samples and min(len(self.seeds), len(self.control_seeds)) >= LEAST_UNITS

    @property
    def family(self) -> str:
        if self.is_summarised:
            return ONE_TEACHER
        return PRIMARY if self.is_primary else OTHER_CONTROL

    def interval(self, statistic: Statistic) -> tuple[Floats, Floats]:
        """Return the bootstrap interval over seeds of statistics of both sides' means; NaN if runs are no samples."""
        low, high = bootstrap_interval(statistic, self.values, self.control_values, self.is_paired)
        return (low, high) if self.are_samples else (low * NAN, high * NAN)

    @property
    def remark(self) -> str:
        """Reasons why a test, an interval or some students are missing, or nothing."""
        fewest = min(len(self.seeds), len(self.control_seeds))
        parts = [self.note] if self.note else []
        if self.without_control:
            students = len(self.seeds) + self.without_control
            parts.append(f"{self.without_control} of {students} students have no such control")
        if not self.are_samples:
            parts.append(
                "seeds are crossed or repeated, or one control run stands for several students "
                f"({', '.join(first_lines([name_seeds([pair]) for pair in self.seeds], 4))}): no independent "
                "samples, no test and no interval"
            )
        elif fewest < LEAST_UNITS:
            parts.append("one seed only: effect without test and interval")
        elif fewest < FEWEST_FOR_INTERVAL:
            parts.append(f"fewer than {FEWEST_FOR_INTERVAL} seeds: no interval")
        if self.is_summarised:
            parts.append("in no family: the pooled row summarises it")
        return "; ".join(parts)


def name_of_control(control: str) -> str:
    """Return the name of a control in sentences."""
    return "students of another teacher seed" if control == OTHER_TEACHER else control


def compare(condition: Condition, control: Control, values: Mapping[Any, Floats | None]) -> ControlComparison:
    """Return the comparison of a condition with one of its controls.

    Args:
        condition: students of one teacher.
        control: control that stands beside them.
        values: vector of values of each run directory beside that teacher; None where it is not known.
    """
    group = condition.group
    known = {path: vector for path, vector in values.items() if vector is not None}
    students = {run.seeds: run for run in group.rows if run.path in known}
    controls = {pair: run for pair, run in control.runs.items() if run.path in known}
    total = len(students)
    if control.is_paired:
        students = {pair: run for pair, run in students.items() if pair in controls}
        controls = {pair: controls[pair] for pair in students}
    ours, theirs = (units_of(runs, known) for runs in (students, controls))
    return ControlComparison(
        group, condition.arm, group.shared.teacher_seed, group.setting, control.name, control.is_paired, ours, theirs,
        total - len(students),
    )  # fmt: skip


def units_of(runs: Mapping[Seeds, Any], values: Mapping[Any, Floats]) -> Units:
    """Return runs as units, with the vectors of their directories."""
    accuracies = {pair: NAN if run.test_acc_best is None else 100 * run.test_acc_best for pair, run in runs.items()}
    return Units({pair: values[run.path] for pair, run in runs.items()}, runs, accuracies)


def with_pooled(comparisons: Sequence[ControlComparison]) -> list[ControlComparison]:
    """Return the comparisons that have runs on both sides, those of teachers that differ in their seeds alone followed
    by their mean over teachers, with the primary control of each arm marked.

    The unit stays the student's seed: its values are averaged over the teachers, since its students share first weights
    and order of the images.
    """
    found = []
    able = [own for own in comparisons if own.seeds and own.control_seeds]
    for _, of_arm in group_by(able, lambda own: own.arm):
        teachers = {own.teacher_seed for own in of_arm}
        by_control = group_by(of_arm, lambda own: own.control)
        by_control.sort(key=lambda item: control_order(item[0]))  # stable: control methods keep their order
        everywhere = [control for control, members in by_control if len(members) == len(teachers)]
        first = dict[Any, str]()
        for control, members in by_control:
            for own in members:
                first.setdefault(own.teacher_seed, everywhere[0] if everywhere else control)
        for control, members in by_control:
            marked = [replace(own, is_primary=control == first[own.teacher_seed]) for own in members]
            found += [own for _, alike in group_by(marked, lambda own: own.is_primary) for own in with_mean(alike)]
    return found


def control_order(control: str) -> int:
    """Return the place of a control among those of a condition."""
    return FIRST_CONTROLS.index(control) if control in FIRST_CONTROLS else len(FIRST_CONTROLS)


def with_mean(members: Sequence[ControlComparison]) -> list[ControlComparison]:
    """Return comparisons of several teachers with one control, and their mean over the largest table without gaps.

    That is the number of teachers, two or more, times the number of seeds that all of them have: all seeds of one of
    them and two at least, or as many as an interval needs. Teachers outside of it, and all of them where there is none,
    are rows of their own.
    """
    seeds = [own.teacher_seed for own in members]
    if len(set(seeds)) < len(seeds) or None in seeds:
        return list(members)
    best, best_size = list[ControlComparison](), (False, 0, 0)
    for kept in subsets(members):
        sides = [[own.students for own in kept], [own.controls for own in kept]]
        common = min(len(common_keys(side)) for side in sides)
        least = min(FEWEST_FOR_INTERVAL, *(len(own.seeds) for own in kept))
        size = common >= FEWEST_FOR_INTERVAL, len(kept) * common, common
        if common >= max(LEAST_UNITS, least) and size > best_size:
            best, best_size = kept, size
    if not best:
        return list(members)
    return [*(replace(own, is_summarised=own in best) for own in members), pool(best, members)]


def subsets(members: Sequence[ControlComparison]) -> Iterator[list[ControlComparison]]:
    """Yield every choice of two teachers or more, large ones first; of many teachers only those with most seeds."""
    if len(members) <= MOST_TEACHERS:
        for count in range(len(members), 1, -1):
            yield from map(list, combinations(members, count))
        return
    by_seeds = sorted(members, key=lambda own: -len(own.seeds))
    for count in range(len(members), 1, -1):
        yield [own for own in members if own in by_seeds[:count]]


def pool(kept: Sequence[ControlComparison], members: Sequence[ControlComparison]) -> ControlComparison:
    """Return the mean over some teachers, of the units that all of them have; `members` are those that there are."""
    first = kept[0]
    students, controls = mean_units([own.students for own in kept]), mean_units([own.controls for own in kept])
    setting = " ".join(word for word in first.setting.split(" ") if not word.startswith("teacher_"))
    parts = []
    if any(len(own.students.values) > len(students.values) for own in kept):
        parts.append(f"over seeds {name_seeds(list(students.values))} alone, since runs are missing")
    if left_out := [f"teacher_seed={own.teacher_seed}" for own in members if own not in kept]:
        parts.append(f"without {', '.join(left_out)}")
    return replace(
        first, teacher_seed=POOLED, setting=f"{setting} {len(kept)} teachers pooled".strip(), students=students,
        controls=controls, note="; ".join(parts), without_control=max(own.without_control for own in kept),
    )  # fmt: skip


def common_keys(sides: Sequence[Units]) -> list[Seeds]:
    """Return the units that all have."""
    return [pair for pair in sides[0].values if all(pair in side.values for side in sides)]


def mean_units(sides: Sequence[Units]) -> Units:
    """Return the mean over teachers of each unit that all of them have."""
    common = common_keys(sides)
    means = {pair: np.mean([side.values[pair] for side in sides], axis=0) for pair in common}
    accuracies = {pair: float(np.mean([side.accuracies[pair] for side in sides])) for pair in common}
    return Units(means, {pair: sides[0].runs[pair] for pair in common}, accuracies)


def transfer_table(comparisons: Sequence[ControlComparison]) -> pd.DataFrame:
    """Return the content of transfer.csv: for each comparison in turn, a row for each distance.

    Holm's correction is over all rows of the primary controls, which are the verdict's, and for each other control over
    its rows: each is a question of its own. Rows that a pooled row summarises belong to no family.
    """
    rows: dict[int, list[dict[str, Any]]] = {}
    for _, of_control in group_by(comparisons, lambda own: (own.family, "" if own.family == PRIMARY else own.control)):
        tested = [own for own in of_control if own.can_be_tested]
        sizes = [(len(own.seeds), len(own.control_seeds), own.is_paired) for own in tested for _ in DISTANCES]
        test = choose_test(sizes)
        rows |= {id(own): transfer_rows(own, test if own.can_be_tested else None) for own in of_control}
        if not of_control[0].is_summarised:
            correct([cells for own in of_control for cells in rows[id(own)]])
    content = [cells for own in comparisons for cells in rows[id(own)]]
    return pd.DataFrame(content, columns=TRANSFER).astype({"n": "Int64", "n_control": "Int64", "params": "Int64"})


def correct(rows: Sequence[dict[str, Any]]) -> None:
    """Add Holm's adjusted p to the rows of one family, the smallest that could be reached, and the decision."""
    adjusted, best = (holm([cells[key] for cells in rows]) for key in ("p", "p_smallest"))
    for cells, p, smallest in zip(rows, adjusted, best, strict=True):
        cells |= row(p_adjusted=p, p_smallest_adjusted=smallest, significant=decide(p, smallest))
        if smallest >= ALPHA:
            words = f"these seeds cannot reach 0.05 after correction (smallest: {smallest:.2g})"
            cells["remarks"] = "; ".join(part for part in (cells["remarks"], words) if part)


def decide(p: float, smallest: float) -> bool | None:
    """Return whether an adjusted p is below 0.05; None without a test, or where the design cannot get there."""
    return None if math.isnan(p) or smallest >= ALPHA else p < ALPHA


def transfer_rows(own: ControlComparison, test: RankTest | None) -> list[dict[str, Any]]:
    """Return the rows of a comparison, one for each distance, without Holm's correction."""
    shared, values, controls = own.group.shared, own.values, own.control_values
    lows, highs = own.interval(difference)
    rows = []
    for place, metric in enumerate(DISTANCES):
        ours, theirs = values[:, place], controls[:, place]
        value, control_value = float(ours.mean()), float(theirs.mean())
        rows.append(
            row(
                student=shared.student, teacher=shared.teacher, method=shared.method, setting=own.setting,
                control=own.control, metric=metric, n=len(ours), n_control=len(theirs), value=value,
                control_value=control_value, transfer=round(value - control_value, DIGITS),
                transfer_low=float(lows[place]), transfer_high=float(highs[place]),
                relative=100 * (value / control_value - 1) if control_value else NAN, test=test.value if test else None,
                p=p_of_less(test, ours, theirs) if test else NAN,
                p_smallest=smallest_p(test, len(ours), len(theirs)) if test else NAN,
                p_adjusted=NAN, p_smallest_adjusted=NAN, significant=None, family=own.family,
                accuracy_change=own.accuracy_change, teacher_seed=own.teacher_seed,
                params=size_of(shared, KEY.num_params),
                alpha=number_of(own.group, ALPHA_KEY), temperature=number_of(own.group, TEMPERATURE_KEY),
                remarks=own.remark,
            )
        )  # fmt: skip
    return rows
