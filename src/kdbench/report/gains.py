"""Gains over the baseline, and differences between the gains of two students: the report's two tables of tests."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kdbench.report import statistics as st
from kdbench.report.baselines import baseline_runs, find_baselines, runs_by_seeds
from kdbench.report.columns import GAINS, INTERACTIONS, row
from kdbench.report.groups import COMPARED, METHOD, STUDENT, RunGroup, columns_of, plain
from kdbench.rundir.summary import KEY

POOLED = "pooled"


@dataclass(frozen=True, eq=False)
class Gain:
    """Group of distilled (or control) runs beside its baseline; accuracies in per cent."""

    group: RunGroup
    baseline: RunGroup | None
    values: list[float]
    """Accuracy of each run; of a pooled gain, mean accuracy of each teacher's students."""
    teacher_seed: int | str | None
    setting: str
    remark: str = ""

    @property
    def base_values(self) -> list[float]:
        return self.baseline.accuracies if self.baseline else []

    @property
    def delta(self) -> float:
        return float(np.mean(self.values) - np.mean(self.base_values)) if self.baseline else math.nan

    @property
    def is_pooled(self) -> bool:
        return self.teacher_seed == POOLED

    @property
    def is_paired(self) -> bool:
        """True if both arms have exactly the same seeds."""
        return self.baseline is not None and not self.is_pooled and self.group.seeds == self.baseline.seeds

    @property
    def single(self) -> list[float]:
        """Gain of every run in points (of every teacher, if pooled): over the baseline run of the same seeds where all
        seeds match, else over the mean of the baseline."""
        if self.is_paired:
            return [value - base for value, base in zip(self.values, self.base_values, strict=True)]
        return [value - float(np.mean(self.base_values)) for value in self.values] if self.baseline else []

    @property
    def pairs(self) -> list[tuple[Any, Any]]:
        """Each run with the baseline run of the same seeds, where there is one."""
        base = runs_by_seeds(self.baseline) if self.baseline and not self.is_pooled else {}
        return [(run, base[run.seeds]) for run in self.group.rows if run.seeds in base]


def compute_gains(groups: Sequence[RunGroup]) -> list[Gain]:
    """Return the gain of every distilled and control group; after those of teachers that differ in their seeds alone,
    all of them pooled.

    Args:
        groups: all groups of the report.
    """
    gains = []
    compared = [group for group in groups if group.shared.role in COMPARED]
    for _, members in group_by(compared, lambda group: settings(group, (*STUDENT, *METHOD))):
        own = [compute_gain(group, groups) for group in members]
        gains += own
        seeds = {group.shared.teacher_seed for group in members}
        bases = {plain(gain.baseline and gain.baseline.runs.run_key.tolist()) for gain in own}
        if len(members) > 1 and len(seeds) == len(members) and None not in seeds and len(bases) == 1:
            means = [float(np.mean(group.accuracies)) for group in members]
            setting = " ".join(part for part in own[0].setting.split() if not part.startswith("teacher_"))
            pooled = f"{setting} {len(members)} teachers pooled".strip()
            gains.append(Gain(members[0], own[0].baseline, means, POOLED, pooled, "n is the number of teachers"))
    return gains


def compute_gain(group: RunGroup, groups: Sequence[RunGroup]) -> Gain:
    """Return the gain of a group over its baseline; without a baseline, the remark says so."""
    found, remark = find_baselines(group, groups), ""
    if not found:
        tuned = "with the selected recipe" if group.shared.tuned else "equal in all but method and teacher"
        remark = f"no baseline ({tuned}): no gain"
    if len(found) > 1:
        remark = f"several baselines ({', '.join(base.name for base in found)}): compared with the first"
    baseline = baseline_runs(group, found[0]) if found else None
    return Gain(group, baseline, group.accuracies, group.shared.teacher_seed, group.setting, remark)


def settings(group: RunGroup, wanted: Sequence[str]) -> str:
    """Return what a group is, in the given keys, as text to compare."""
    return plain(group.shared[columns_of(group.runs.columns, wanted)].to_dict())


def group_by(items: Sequence[Any], key: Callable[[Any], Any]) -> list[tuple[Any, list[Any]]]:
    """Return items with the same key together, in the order of their first."""
    together: dict[Any, list[Any]] = {}
    for item in items:
        together.setdefault(key(item), []).append(item)
    return list(together.items())


def gains_table(gains: Sequence[Gain], std: float, margin: float) -> pd.DataFrame:
    """Return the content of gains.csv.

    Args:
        gains: gains of all groups.
        std: standard deviation within groups, pooled over the report, points.
        margin: margin of equivalence, points.
    """
    table = pd.DataFrame([gain_row(gain, std, margin) for gain in gains], columns=GAINS)
    corrected = holm_by_role(table, table.p_welch)
    table = table.assign(p_holm=corrected, significant=corrected.map(decide))
    whole = "n n_base seeds_for_0p1 seeds_for_0p2 seeds_for_equivalence".split()
    return table.astype(dict.fromkeys(whole, "Int64") | dict.fromkeys(("significant", "equivalent"), "boolean"))


def holm_by_role(table: pd.DataFrame, ps: "pd.Series[float]") -> "pd.Series[float]":
    """Return Holm's adjusted p, each role a family of its own: controls do not weaken the tests of distillation."""
    adjusted = np.full(len(table), math.nan)
    for role in COMPARED:
        of_role = (table.role == role).to_numpy()
        adjusted[of_role] = st.holm(ps[of_role].astype(float).tolist())
    return pd.Series(adjusted, index=table.index)


def gain_row(gain: Gain, std: float, margin: float) -> dict[str, Any]:
    """Return a row of gains.csv without Holm's correction."""
    base, values, shared = gain.base_values, gain.values, gain.group.shared
    cells = row(
        student=shared.student, teacher=shared.teacher, method=shared.method, role=shared.role, setting=gain.setting,
        n=len(values), n_base=len(base), mean=float(np.mean(values)), std=st.std(values),
        teacher_seed=gain.teacher_seed, remarks=gain.remark, p_welch=math.nan,
    )  # fmt: skip
    if not gain.is_pooled:  # teachers' means vary differently from runs
        cells |= row(
            seeds_for_0p1=st.seeds_for(0.1, std),
            seeds_for_0p2=st.seeds_for(0.2, std),
            seeds_for_equivalence=st.seeds_for_equivalence(margin, std),
        )
    if gain.baseline is None:
        return cells
    test, p_equivalence = st.welch(values, base), st.equivalence(values, base, margin)
    return cells | row(
        base_mean=float(np.mean(base)),
        base_setting=gain.baseline.setting,
        delta=test.difference,
        ci_low=test.low,
        ci_high=test.high,
        p_welch=test.p,
        p_paired=st.paired(values, base) if gain.is_paired else math.nan,
        mde80=math.nan if gain.is_pooled else st.smallest_detectable(std, (len(values), len(base))),
        p_equivalence=p_equivalence,
        equivalent=decide(p_equivalence),
        remarks="; ".join(part for part in (gain.remark, untested(values, base) or unmatched(gain)) if part),
    )


def decide(p: float) -> bool | None:
    """Return whether a p is below 0.05; None where there is no test."""
    return None if math.isnan(p) else p < st.ALPHA


def unmatched(gain: Gain) -> str:
    """Return the seeds of the two arms as text if they differ."""
    if gain.is_paired or gain.is_pooled or gain.baseline is None:
        return ""
    ours, theirs = (", ".join(map(str, group.runs.seed)) for group in (gain.group, gain.baseline))
    return f"seeds {ours} against {theirs}: no paired test"


def untested(values: Sequence[float], base: Sequence[float]) -> str:
    """Return why a gain has no test, or nothing."""
    if min(len(values), len(base)) < 2:
        return "one seed only: means without tests"
    return "" if st.varies(values) or st.varies(base) else "no variation over seeds: no test"


def interactions_table(gains: Sequence[Gain], std: float) -> tuple[pd.DataFrame, list[str]]:
    """Return interactions.csv: for every method and teacher of two students, the larger one's gain minus the other's.

    Returns:
        The table, and a line for each pair of students whose groups cannot be matched.
    """
    rows, remarks = [], []
    for _, comparable in group_by([gain for gain in gains if gain.baseline], interaction_key):
        students = group_by(comparable, lambda gain: gain.group.shared.student)
        measure = next((k for k in (KEY.num_params, KEY.macs) if all(size(of, k) is not None for of in students)), None)
        if measure is None and len(students) > 1:
            remarks.append(f"no interaction of {', '.join(name for name, _ in students)}: their sizes are not known")
            continue
        by_size = sorted(students, key=lambda of: (size(of, measure) if measure else 0, of[0]), reverse=True)
        for (name_a, of_a), (name_b, of_b) in itertools.combinations(by_size, 2):
            matched = match_gains(of_a, of_b)
            rows += [interaction_row(a, b, std) for a, b in matched]
            if not matched:
                first = of_a[0].group.shared
                remarks.append(
                    f"no interaction of {name_a} and {name_b} by {first.method} from {first.teacher}: several "
                    "settings, none that both have (choose one each: --select)"
                )
    table = pd.DataFrame(rows, columns=INTERACTIONS)
    return table.assign(p_holm=holm_by_role(table, table.p)), remarks


def size(student: tuple[str, list[Gain]], key: str) -> Any:
    """Return the size of a student with its gains."""
    return student[1][0].group.shared[key]


def interaction_key(gain: Gain) -> str:
    """Return what two students share whose gains may be compared: everything but student and setting."""
    student = [key for key in STUDENT if key not in (KEY.student, KEY.num_params)]
    method = [key for key in METHOD if key != KEY.method_params]
    teacher = (gain.teacher_seed, None if gain.is_pooled else gain.group.shared.teacher_key)
    return plain([settings(gain.group, (*student, *method)), teacher])


def match_gains(of_a: Sequence[Gain], of_b: Sequence[Gain]) -> list[tuple[Gain, Gain]]:
    """Return the gains of two students that belong together: the only ones, or those with equal method parameters."""
    if len(of_a) == len(of_b) == 1:
        return [(of_a[0], of_b[0])]
    params = (KEY.method_params,)
    return [(a, b) for a in of_a for b in of_b if settings(a.group, params) == settings(b.group, params)]


def interaction_row(a: Gain, b: Gain, std: float) -> dict[str, Any]:
    """Return a row of interactions.csv without Holm's correction."""
    arms, shared = (a.values, a.base_values, b.values, b.base_values), a.group.shared
    test = st.contrast(arms, (1.0, -1.0, -1.0, 1.0))
    return row(
        method=shared.method, teacher=shared.teacher, role=shared.role, teacher_seed=a.teacher_seed,
        student_a=shared.student, student_b=b.group.shared.student, gain_a=a.delta, gain_b=b.delta,
        difference=test.difference, se=test.se, df=test.df, ci_low=test.low, ci_high=test.high, p=test.p,
        mde80=math.nan if a.is_pooled else st.smallest_detectable(std, tuple(len(arm) for arm in arms)),
        n_a=len(a.values), n_base_a=len(a.base_values), n_b=len(b.values), n_base_b=len(b.base_values),
        setting_a=a.setting, setting_b=b.setting,
    )  # fmt: skip
