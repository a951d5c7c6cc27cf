"""What distillation gained, and whether one student gained more than another: the report's two tables of tests."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kdbench.report import statistics as st
from kdbench.report.groups import LESSON, STUDENT, Group, flat, plain, undistilled_of
from kdbench.report.select import Selection

POOLED = "pooled"
GAINS = (
    "student", "teacher", "method", "setting", "n", "n_base", "mean", "std", "base_mean", "delta", "ci_low", "ci_high",
    "p_welch", "p_paired", "p_holm", "significant", "mde80", "seeds_for_0p1", "seeds_for_0p2", "p_equivalence",
    "equivalent", "seeds_for_equivalence", "teacher_seed", "base_setting", "remarks",
)  # fmt: skip
INTERACTIONS = (
    "method", "teacher", "student_a", "student_b", "gain_a", "gain_b", "difference", "se", "df", "ci_low", "ci_high",
    "p", "p_holm", "mde80", "n_a", "n_base_a", "n_b", "n_base_b", "setting_a", "setting_b", "teacher_seed",
)  # fmt: skip


@dataclass(frozen=True)
class Gain:
    """A distilled group beside its undistilled student; accuracies in per cent."""

    group: Group
    base: Group | None
    values: list[float]
    teacher_seed: int | str | None
    setting: str
    remark: str = ""

    @property
    def base_values(self) -> list[float]:
        return self.base.accuracies if self.base else []

    @property
    def delta(self) -> float:
        return float(np.mean(self.values) - np.mean(self.base_values)) if self.base else math.nan

    @property
    def is_pooled(self) -> bool:
        return self.teacher_seed == POOLED

    @property
    def by_seed(self) -> list[tuple[str, float]]:
        """The gain of every seed (of every teacher, if pooled), in points: against the same seed's undistilled student
        where all seeds match, else against their mean."""
        if not self.base:
            return []
        if self.is_pooled or self.group.seeds != self.base.seeds:
            names = (
                [f"{i}" for i in range(len(self.values))]
                if self.is_pooled
                else [str(r["seed"]) for r in self.group.runs]
            )
            mean = float(np.mean(self.base_values))
            return [(name, value - mean) for name, value in zip(names, self.values, strict=True)]
        pairs = zip(self.group.runs, self.values, self.base_values, strict=True)
        return [(str(run["seed"]), value - base) for run, value, base in pairs]


def gains_of(groups: Sequence[Group], selection: Selection | None = None) -> list[Gain]:
    """Every distilled group beside its undistilled student; where several teachers taught alike, all of them pooled.

    Args:
        groups: All of the report's.
        selection: Where it chose the undistilled students' recipe, these take the place of the equal ones.
    """
    gains = []
    distilled = [group for group in groups if group.is_distilled]
    for _, members in grouped_by(distilled, but_teacher_seed):
        own = [gain_of(group, groups, selection) for group in members]
        gains += own
        seeds = {group["teacher_seed"] for group in members}
        bases = {id(undistilled_of(group, groups)) for group in members}
        if len(members) > 1 and len(seeds) == len(members) and None not in seeds and len(bases) == 1:
            means = [float(np.mean(group.accuracies)) for group in members]
            setting = " ".join(part for part in own[0].setting.split() if not part.startswith("teacher_"))
            pooled = f"{setting} {len(members)} teachers pooled".strip()
            gains.append(Gain(members[0], own[0].base, means, POOLED, pooled, "n is the number of teachers"))
    return gains


def gain_of(group: Group, groups: Sequence[Group], selection: Selection | None) -> Gain:
    """A distilled group beside the undistilled one that it compares with."""
    remark = ""
    if selection and selection.selects_undistilled(group["student"]):
        base = selection.base_for(group, groups)
        if base is None:
            remark = "the selected undistilled student is not here: no gain"
    else:
        base = undistilled_of(group, groups)
        if base is None:
            remark = "no undistilled student (ce, equal in all but method and teacher): no gain"
    if base and selection and selection.competed(group):
        base = selection.base_runs(base)
    return Gain(group, base, group.accuracies, group["teacher_seed"], group.setting, remark)


def but_teacher_seed(group: Group) -> str:
    keys = (*STUDENT, *(key for key in LESSON if key not in ("teacher_seed", "teacher_key")))
    return plain(flat(group.runs[0], keys))


def grouped_by(items: Sequence[Any], key: Any) -> list[tuple[Any, list[Any]]]:
    """Items with the same key together, in the order of their first."""
    together: dict[Any, list[Any]] = {}
    for item in items:
        together.setdefault(key(item), []).append(item)
    return list(together.items())


def gains_table(gains: Sequence[Gain], std: float, margin: float) -> pd.DataFrame:
    """gains.csv.

    Args:
        gains: Of all distilled groups.
        std: Within groups, pooled over the report, points.
        margin: Of equivalence, points.
    """
    rows = [gain_row(gain, std, margin) for gain in gains]
    for row, p in zip(rows, st.holm([row["p_welch"] for row in rows]), strict=True):
        row["p_holm"], row["significant"] = p, decided(p)
    table = pd.DataFrame(rows, columns=list(GAINS))
    whole = ["n", "n_base", "seeds_for_0p1", "seeds_for_0p2", "seeds_for_equivalence"]
    return table.astype(dict.fromkeys(whole, "Int64") | dict.fromkeys(("significant", "equivalent"), "boolean"))


def gain_row(gain: Gain, std: float, margin: float) -> dict[str, Any]:
    base, values = gain.base_values, gain.values
    row: dict[str, Any] = {
        "student": gain.group["student"],
        "teacher": gain.group["teacher"],
        "method": gain.group["method"],
        "setting": gain.setting,
        "n": len(values),
        "n_base": len(base),
        "mean": float(np.mean(values)),
        "std": st.std(values),
        "teacher_seed": gain.teacher_seed,
        "remarks": gain.remark,
        "p_welch": math.nan,
    }
    if not gain.is_pooled:  # a teacher's mean varies otherwise than a run does
        row["seeds_for_0p1"], row["seeds_for_0p2"] = st.seeds_for(0.1, std), st.seeds_for(0.2, std)
        row["seeds_for_equivalence"] = st.seeds_for_equivalence(margin, std)
    if gain.base is None:
        return row
    test = st.welch(values, base)
    matched = not gain.is_pooled and gain.group.seeds == gain.base.seeds
    p_equivalence = st.equivalence(values, base, margin)
    return row | {
        "base_mean": float(np.mean(base)),
        "base_setting": gain.base.setting,
        "delta": test.difference,
        "ci_low": test.low,
        "ci_high": test.high,
        "p_welch": test.p,
        "p_paired": st.paired(values, base) if matched else math.nan,
        "mde80": math.nan if gain.is_pooled else st.smallest_detectable(std, (len(values), len(base))),
        "p_equivalence": p_equivalence,
        "equivalent": decided(p_equivalence),
        "remarks": gain.remark or untested(values, base) or unmatched(gain),
    }


def decided(p: float) -> bool | None:
    """Whether a p is below 0.05; None where there is no test."""
    return None if math.isnan(p) else p < st.ALPHA


def unmatched(gain: Gain) -> str:
    """That the two arms have different seeds, in words, or nothing."""
    assert gain.base is not None
    ours, theirs = (", ".join(str(run["seed"]) for run in group.runs) for group in (gain.group, gain.base))
    return "" if gain.group.seeds == gain.base.seeds else f"seeds {ours} against {theirs}: no paired test"


def untested(values: Sequence[float], base: Sequence[float]) -> str:
    """Why a gain has no test, or nothing."""
    if min(len(values), len(base)) < 2:
        return "one seed only: means without tests"
    return "" if st.varies(values) or st.varies(base) else "no variation over seeds: no test"


def interactions_table(gains: Sequence[Gain], std: float) -> tuple[pd.DataFrame, list[str]]:
    """interactions.csv: for every method and teacher that taught two students, the larger one's gain minus the other's.

    Returns:
        The table, and a line for each pair of students whose groups cannot be matched.
    """
    rows, remarks = [], []
    able = [gain for gain in gains if gain.base]
    for _, lessons in grouped_by(able, lesson_of):
        students = grouped_by(lessons, lambda gain: gain.group["student"])
        measure = next(
            (k for k in ("num_params", "macs") if all(of[0].group[k] is not None for _, of in students)), None
        )
        if measure is None and len(students) > 1:
            remarks.append(f"no interaction of {', '.join(name for name, _ in students)}: their sizes are not known")
            continue
        sized = sorted(students, key=lambda item: (item[1][0].group[measure or "seed"], item[0]), reverse=True)
        for (name_a, of_a), (name_b, of_b) in itertools.combinations(sized, 2):
            matched = matches(of_a, of_b)
            rows += [interaction_row(a, b, std) for a, b in matched]
            if not matched:
                first = of_a[0].group
                remarks.append(
                    f"no interaction of {name_a} and {name_b} by {first['method']} from {first['teacher']}: "
                    f"several settings, "
                    "none that both have (choose one each: --select)"
                )
    for row, p in zip(rows, st.holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
    return pd.DataFrame(rows, columns=list(INTERACTIONS)), remarks


def lesson_of(gain: Gain) -> str:
    """What the gains of two students share that may be compared: everything but the student and the setting."""
    run = gain.group.runs[0]
    hidden = ("student", "num_params")
    shared = flat(run, [key for key in STUDENT if key not in hidden])
    teacher = None if gain.is_pooled else run["teacher_key"]
    return plain(
        shared | {"method": run["method"], "teacher": run["teacher"], "key": teacher, "seed": gain.teacher_seed}
    )


def matches(of_a: Sequence[Gain], of_b: Sequence[Gain]) -> list[tuple[Gain, Gain]]:
    """Gains of two students that belong together: the only ones, or those with equal parameters of the method."""
    if len(of_a) == len(of_b) == 1:
        return [(of_a[0], of_b[0])]
    return [(a, b) for a in of_a for b in of_b if a.group["method_params"] == b.group["method_params"]]


def interaction_row(a: Gain, b: Gain, std: float) -> dict[str, Any]:
    arms = (a.values, a.base_values, b.values, b.base_values)
    test = st.contrast(arms, (1.0, -1.0, -1.0, 1.0))
    return {
        "method": a.group["method"],
        "teacher": a.group["teacher"],
        "student_a": a.group["student"],
        "student_b": b.group["student"],
        "gain_a": a.delta,
        "gain_b": b.delta,
        "difference": test.difference,
        "se": test.se,
        "df": test.df,
        "ci_low": test.low,
        "ci_high": test.high,
        "p": test.p,
        "mde80": math.nan if a.is_pooled else st.smallest_detectable(std, tuple(len(arm) for arm in arms)),
        "n_a": len(a.values),
        "n_base_a": len(a.base_values),
        "n_b": len(b.values),
        "n_base_b": len(b.base_values),
        "setting_a": a.setting,
        "setting_b": b.setting,
        "teacher_seed": a.teacher_seed,
    }
