"""Transfer: how much closer to its own teacher a distilled student is than a control that never saw that teacher."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdbench.metrics import DISTANCES
from kdbench.report.columns import TRANSFER, row
from kdbench.report.functional.conditions import (
    ALPHA_KEY,
    TEMPERATURE_KEY,
    Condition,
    Control,
    number_of,
)
from kdbench.report.functional.inference import (
    FEWEST_FOR_INTERVAL,
    RankTest,
    Statistic,
    bootstrap_interval,
    choose_test,
    difference,
    p_of_less,
    smallest_p,
)
from kdbench.report.gains import POOLED, Seeds, are_replicates, group_by
from kdbench.report.groups import RunGroup, size_of
from kdbench.report.statistics import ALPHA, NAN, holm
from kdbench.rundir.summary import KEY

Floats = NDArray[np.float64]
PRIMARY, OTHER_CONTROL, ONE_TEACHER = "primary", "other control", "one teacher"
"""Families: rows of the primary control, of another control, and of one teacher that a pooled row summarises."""


@dataclass(frozen=True, eq=False)
class Arm:
    """Values of some runs, or of their means over teachers, by seeds."""

    values: Mapping[Seeds, Floats]
    """Vector of values of each unit."""
    runs: Mapping[Seeds, Any]
    """A run of each unit, to link to."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """Students of one condition beside a control; one vector of values for each student seed and control."""

    group: RunGroup
    teacher_seed: int | str | None
    setting: str
    control: str
    is_primary: bool
    """True for the first control that the condition has."""
    is_paired: bool
    students: Arm
    controls: Arm
    is_summarised: bool = False
    """True for one teacher's comparison that a pooled one summarises."""
    teachers: int = 1

    @property
    def is_pooled(self) -> bool:
        return self.teacher_seed == POOLED

    @property
    def seeds(self) -> list[Seeds]:
        """Seeds of the students that are compared: those with a control of their own, or all."""
        return [pair for pair in self.students.values if not self.is_paired or pair in self.controls.values]

    @property
    def values(self) -> Floats:
        """Values of the students [n, K]."""
        return np.array([self.students.values[pair] for pair in self.seeds])

    @property
    def control_values(self) -> Floats:
        """Values of the controls [m, K]; where they are paired, in the order of the students."""
        return np.array(
            [self.controls.values[pair] for pair in (self.seeds if self.is_paired else self.controls.values)]
        )

    @property
    def differences(self) -> Floats:
        """Student minus its control [n, K]; where they are not paired, minus the mean of the controls."""
        return self.values - (self.control_values if self.is_paired else self.control_values.mean(axis=0))

    @property
    def are_samples(self) -> bool:
        """True if the runs are independent samples: no seed is crossed with others."""
        of_control = self.seeds if self.is_paired else list(self.controls.values)
        return are_replicates(self.seeds) and are_replicates(of_control)

    def interval(self, statistic: Statistic) -> tuple[Floats, Floats]:
        """Return the bootstrap interval over seeds of statistics of both arms' means; NaN if runs are no samples."""
        low, high = bootstrap_interval(statistic, self.values, self.control_values, self.is_paired)
        return (low, high) if self.are_samples else (low * NAN, high * NAN)

    @property
    def family(self) -> str:
        if self.is_summarised:
            return ONE_TEACHER
        return PRIMARY if self.is_primary else OTHER_CONTROL

    @property
    def remark(self) -> str:
        """Reason why a test or an interval is missing, or nothing."""
        n, m = len(self.seeds), len(self.control_values)
        if not self.are_samples:
            return "seeds are crossed or repeated: no independent samples, no test and no interval"
        if min(n, m) < 2:
            return "one seed only: effect without test and interval"
        parts = [] if min(n, m) >= FEWEST_FOR_INTERVAL else [f"fewer than {FEWEST_FOR_INTERVAL} seeds: no interval"]
        if self.is_paired and len(self.students.values) > n:
            parts.append(
                f"{len(self.students.values) - n} of {len(self.students.values)} students have no such control"
            )
        return "; ".join(parts)


def compare(condition: Condition, control: Control, values: Mapping[Any, Floats | None], first: bool) -> Comparison:
    """Return the comparison of a condition with one of its controls.

    Args:
        condition: students of one teacher.
        control: control that stands beside them.
        values: vector of values of each run directory beside that teacher; None where it is not known.
        first: whether it is the primary control.
    """
    group = condition.group
    known = {path: vector for path, vector in values.items() if vector is not None}
    students = {run.seeds: run for run in group.rows if run.path in known}
    found = {pair: [run for run in runs if run.path in known] for pair, runs in control.runs.items()}
    controls = {pair: runs for pair, runs in found.items() if runs}
    return Comparison(
        group, group.shared.teacher_seed, group.setting, control.name, first, control.is_paired,
        Arm({pair: known[run.path] for pair, run in students.items()}, students),
        Arm(
            {pair: np.mean([known[run.path] for run in runs], axis=0) for pair, runs in controls.items()},
            {pair: runs[0] for pair, runs in controls.items()},
        ),
    )  # fmt: skip


def with_pooled(comparisons: Sequence[tuple[str, Comparison]]) -> list[Comparison]:
    """Return comparisons, those of teachers that differ in their seeds alone followed by their mean over teachers.

    The unit stays the student's seed: its values are averaged over the teachers, since its students share first weights
    and order of the images. Only seeds that all teachers have count.

    Args:
        comparisons: each with the family of its condition.
    """
    found = []
    for _, of_family in group_by(comparisons, lambda item: (item[0], item[1].control)):
        members = [comparison for _, comparison in of_family]
        seeds = {member.teacher_seed for member in members}
        pooled = pool(members) if len(seeds) == len(members) > 1 and None not in seeds else None
        found += [replace(member, is_summarised=pooled is not None) for member in members]
        found += [pooled] if pooled else []
    return found


def pool(members: Sequence[Comparison]) -> Comparison | None:
    """Return the mean over teachers of some comparisons; None without a seed that all of them have."""
    first = members[0]
    students, controls = (mean_arm([getattr(m, arm) for m in members]) for arm in ("students", "controls"))
    setting = " ".join(word for word in first.setting.split(" ") if not word.startswith("teacher_"))
    pooled = replace(
        first, teacher_seed=POOLED, setting=f"{setting} {len(members)} teachers pooled".strip(), students=students,
        controls=controls, teachers=len(members),
    )  # fmt: skip
    return pooled if len(pooled.seeds) and len(pooled.control_values) else None


def mean_arm(arms: Sequence[Arm]) -> Arm:
    """Return the mean over teachers of each unit that all of them have."""
    common = [pair for pair in arms[0].values if all(pair in arm.values for arm in arms)]
    return Arm(
        {pair: np.mean([arm.values[pair] for arm in arms], axis=0) for pair in common},
        {pair: arms[0].runs[pair] for pair in common},
    )


def transfer_table(comparisons: Sequence[Comparison]) -> pd.DataFrame:
    """Return the content of transfer.csv: a row for each comparison and distance.

    Holm's correction is over the rows of one control that no pooled row summarises: each control is a question of its
    own, and the primary one is the verdict's.
    """
    comparisons = [own for own in comparisons if len(own.seeds) and len(own.control_values)]
    rows: list[dict[str, Any]] = []
    for _, of_control in group_by(comparisons, lambda own: (own.control, own.is_summarised)):
        tested = [own for own in of_control if not own.remark.startswith(("seeds are", "one seed"))]
        sizes = [(len(own.seeds), len(own.control_values), own.is_paired) for own in tested for _ in DISTANCES]
        test = choose_test(sizes)
        own_rows = [cells for own in of_control for cells in transfer_rows(own, test if own in tested else None)]
        if not of_control[0].is_summarised:
            adjusted, best = (holm([cells[key] for cells in own_rows]) for key in ("p", "p_smallest"))
            for cells, p, smallest in zip(own_rows, adjusted, best, strict=True):
                cells |= row(p_adjusted=p, p_smallest_adjusted=smallest, significant=decide(p, smallest))
                if smallest >= ALPHA:
                    words = f"these seeds cannot reach 0.05 after correction (smallest: {smallest:.2g})"
                    cells["remarks"] = "; ".join(part for part in (cells["remarks"], words) if part)
        rows += own_rows
    order = {id(own): place for place, own in enumerate(comparisons)}
    rows.sort(key=lambda cells: order[cells.pop("place")])
    return pd.DataFrame(rows, columns=TRANSFER).astype({"n": "Int64", "n_control": "Int64", "params": "Int64"})


def decide(p: float, smallest: float) -> bool | None:
    """Return whether an adjusted p is below 0.05; None without a test, or where the design cannot get there."""
    return None if math.isnan(p) or smallest >= ALPHA else p < ALPHA


def transfer_rows(own: Comparison, test: RankTest | None) -> list[dict[str, Any]]:
    """Return the rows of a comparison, one for each distance, without Holm's correction."""
    shared, values, controls = own.group.shared, own.values, own.control_values
    lows, highs = own.interval(difference)
    rows = []
    for place, metric in enumerate(DISTANCES):
        ours, theirs = values[:, place], controls[:, place]
        value, control_value = float(ours.mean()), float(theirs.mean())
        cells = row(
            student=shared.student, teacher=shared.teacher, method=shared.method, setting=own.setting,
            control=own.control, metric=metric, n=len(ours), n_control=len(theirs), value=value,
            control_value=control_value, transfer=value - control_value, transfer_low=float(lows[place]),
            transfer_high=float(highs[place]),
            relative=100 * (value / control_value - 1) if control_value else NAN, test=test.value if test else None,
            p=p_of_less(test, ours, theirs) if test else NAN,
            p_smallest=smallest_p(test, len(ours), len(theirs)) if test else NAN,
            p_adjusted=NAN, p_smallest_adjusted=NAN, significant=None, family=own.family,
            teacher_seed=own.teacher_seed, params=size_of(shared, KEY.num_params),
            alpha=number_of(own.group, ALPHA_KEY), temperature=number_of(own.group, TEMPERATURE_KEY),
            remarks=own.remark,
        )  # fmt: skip
        rows.append(cells | {"place": id(own)})
    return rows
