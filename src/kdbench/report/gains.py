"""Gains over the baseline: distilled and control groups beside their baselines."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kdbench.report import statistics as st
from kdbench.report.baselines import baseline_runs, find_baselines, runs_by_seeds
from kdbench.report.columns import GAINS, row
from kdbench.report.groups import COMPARED, METHOD, STUDENT, RunGroup, columns_of, key_text

POOLED = "pooled"
Seeds = tuple[int | None, int | None]
"""Initialisation and data seed of a run."""


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
    members: Sequence[RunGroup] = ()
    """Groups of a pooled gain, one for each teacher."""
    is_summarised: bool = False
    """True for one teacher's gain that a pooled one summarises."""

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
    def groups(self) -> Sequence[RunGroup]:
        """Groups of distilled runs that it is computed from."""
        return self.members or [self.group]

    @property
    def is_paired(self) -> bool:
        """True if both arms have exactly the same seeds."""
        return self.baseline is not None and not self.is_pooled and self.group.seeds == self.baseline.seeds

    @property
    def is_complete(self) -> bool:
        """True for a pooled gain that has a test: a table without gaps, or teachers that share no seed."""
        return self.crossed is not None or not share_seeds(self.members)

    @property
    def crossed(self) -> NDArray[np.float64] | None:
        """Gain of each combination of teacher, initialisation seed and data seed, an axis for each that varies; None
        unless every combination is there, with the baseline run of its seeds, and two factors or more vary."""
        if self.baseline is None or any(group.seeds != self.baseline.seeds for group in self.groups):
            return None
        levels = crossing(self.baseline.seeds)
        if levels is None and not are_replicates(self.baseline.seeds):
            return None
        shape = ([len(self.members)] if self.members else []) + (levels or [len(self.base_values)])
        if len(shape) < 2 or min(shape) < 2:
            return None
        differences = [np.subtract(group.accuracies, self.base_values) for group in self.groups]
        return np.array(differences, dtype=np.float64).reshape(shape)

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


def crossing(seeds: Sequence[tuple[int | None, int | None]]) -> list[int] | None:
    """Return the numbers of initialisation and data seeds if each of one stands with each of the other, else None."""
    levels = [len({pair[which] for pair in seeds}) for which in (0, 1)]
    return levels if min(levels) > 1 and len(set(seeds)) == len(seeds) == levels[0] * levels[1] else None


def are_replicates(seeds: Sequence[tuple[int | None, int | None]]) -> bool:
    """Return whether runs are independent samples: each initialisation and data seed once, or one for all of them."""
    numbers = [len({pair[which] for pair in seeds}) for which in (0, 1)]
    return len(set(seeds)) == len(seeds) and all(number in (1, len(seeds)) for number in numbers)


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
        seeds = {group.shared.teacher_seed for group in members}
        bases = {key_text(gain.baseline and gain.baseline.runs.run_key.tolist()) for gain in own}
        if len(members) > 1 and len(seeds) == len(members) and None not in seeds and len(bases) == 1:
            pooled = pool_teachers(members, own[0])
            summarised = {group.shared.teacher_seed for group in pooled.members} if pooled.is_complete else set()
            own = [replace(gain, is_summarised=gain.teacher_seed in summarised) for gain in own]
            own.append(pooled)
        gains += own
    return gains


def pool_teachers(members: Sequence[RunGroup], first: Gain) -> Gain:
    """Return the gain over several teachers.

    Runs of one seed are alike for all teachers, so only a complete table of teachers and seeds has a test, or teachers
    that share no seed. Where runs are missing, it is over the largest complete table.

    Args:
        members: group of each teacher.
        first: gain of the first teacher.
    """
    baseline, remark = first.baseline, "n is the number of teachers"
    if baseline and any(group.seeds != baseline.seeds for group in members) and share_seeds(members):
        kept, common = largest_table(members, baseline)
        if common:
            left_out = [f"teacher_seed={g.shared.teacher_seed}" for g in members if g not in kept]
            members = [with_seeds(group, common) for group in kept]
            baseline = with_seeds(baseline, common)
            remark += f"; over seeds {name_seeds(common)} alone, since runs are missing"
            remark += f", and without {', '.join(left_out)}" if left_out else ""
        else:
            remark += "; no independent samples: they share seeds, and fewer than two that the baseline has"
    means = [float(np.mean(group.accuracies)) for group in members]
    setting = " ".join(part for part in first.setting.split() if not part.startswith("teacher_"))
    pooled = f"{setting} {len(members)} teachers pooled".strip()
    return Gain(members[0], baseline, means, POOLED, pooled, remark, members)


def largest_table(members: Sequence[RunGroup], baseline: RunGroup) -> tuple[Sequence[RunGroup], Sequence[Seeds]]:
    """Return the teachers and seeds of the largest table without gaps: two or more of each, the seeds replicates or a
    complete crossing; of equal ones that with more teachers. No seeds if there is none."""
    best: tuple[Sequence[RunGroup], Sequence[Seeds]] = members, []
    by_seeds = sorted(members, key=lambda group: -len(set(group.seeds) & set(baseline.seeds)))
    for count in range(len(members), 1, -1):
        kept = [group for group in members if group in by_seeds[:count]]
        common = [pair for pair in baseline.seeds if all(pair in group.seeds for group in kept)]
        is_table = len(common) > 1 and (are_replicates(common) or crossing(common) is not None)
        if is_table and count * len(common) > len(best[0]) * len(best[1]):
            best = kept, common
    return best


def with_seeds(group: RunGroup, seeds: Sequence[Seeds]) -> RunGroup:
    """Return the runs of a group that have some seeds."""
    return replace(group, runs=group.runs[group.runs.seeds.isin(seeds)])


def name_seeds(seeds: Sequence[Seeds]) -> str:
    """Return seeds as text: a number where initialisation and data seed are equal, else both."""
    return ", ".join(str(init) if init == data else f"{init}/{data}" for init, data in seeds)


def share_seeds(groups: Sequence[RunGroup]) -> bool:
    """Return whether runs of several groups have equal seeds: both, or one of two that vary."""
    pairs = [pair for group in groups for pair in set(group.seeds)]
    if len(set(pairs)) < len(pairs):
        return True
    for which in (0, 1):
        numbers = [number for group in groups for number in {pair[which] for pair in group.seeds}]
        if 1 < len(set(numbers)) < len(numbers):
            return True
    return False


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
    return key_text(group.shared[columns_of(group.runs.columns, wanted)].to_dict())


def group_by(items: Sequence[Any], key: Callable[[Any], Any]) -> list[tuple[Any, list[Any]]]:
    """Return items with the same key together, in the order of their first."""
    together: dict[Any, list[Any]] = {}
    for item in items:
        together.setdefault(key(item), []).append(item)
    return list(together.items())


def gains_table(gains: Sequence[Gain], std: float, margin: float) -> pd.DataFrame:
    """Return the content of gains.csv without the columns of the primary analysis.

    Args:
        gains: gains of all groups.
        std: standard deviation within groups, pooled over the report, points.
        margin: margin of equivalence, points.
    """
    table = pd.DataFrame([gain_row(gain, std, margin) for gain in gains], columns=GAINS)
    table = table.assign(p_holm=holm_by_role(table, table.p_welch))
    whole = "n n_base seeds_for_0p1 seeds_for_0p2 seeds_for_equivalence".split()
    return table.astype(dict.fromkeys(whole, "Int64") | {"equivalent": "boolean"})


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
