"""Comparison of a student's predictions with those of its teacher and of its baseline, from saved logits."""

import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdbench import metrics
from kdbench.errors import KdbenchError
from kdbench.report import statistics as st
from kdbench.report.class_gains import class_accuracies, class_names
from kdbench.report.columns import FIDELITY, FLIPS, OF_CLASS, row
from kdbench.report.equal_accuracy import Arm, Slope, agreement_rates, excess_row, slope_of
from kdbench.report.gains import Gain
from kdbench.report.groups import BASELINE, RunGroup, percents
from kdbench.report.predictions import Predictions, logits_in, predictions_in, read_predictions, same_images
from kdbench.report.runs import first_lines
from kdbench.rundir.summary import read_summary


@dataclass(frozen=True)
class Fidelity:
    """Tables that need logits; empty where there are none."""

    groups: pd.DataFrame
    per_class: pd.DataFrame
    flips: pd.DataFrame
    remarks: list[str]


@dataclass(frozen=True)
class Teacher:
    """Run that is the teacher of others, with its predictions and the slope of undistilled runs for it."""

    folder: Path
    predictions: Predictions
    slope: Slope | None


def compute_fidelity(runs: pd.DataFrame, groups: Sequence[RunGroup], gains: Sequence[Gain]) -> Fidelity:
    """Return everything that is computed from logits.

    Args:
        runs: runs of the report; teachers are searched among them, then beside the student's run directory.
        groups: groups of the report.
        gains: their gains, for the baselines.
    """
    gains = [gain for gain in gains if not gain.is_pooled]
    remarks = [found for folder in runs.path if isinstance(found := read_predictions(folder), str)]
    remarks += [*remark_missing(groups, gains), *remark_other_images(groups), *remark_contradictions(groups)]
    alone: dict[str, list[str]] = {}
    teachers: dict[str, Teacher | None] = {}
    far, rows = [], []
    divergence = cache(base_divergence)  # methods share their baselines, and so these comparisons
    for gain in gains:
        key = gain.group.shared.teacher_key
        if key and key not in teachers:
            teachers[key] = find_teacher(gain.group.shared, runs, groups)
        teacher = teachers.get(key)
        if key and teacher is None and any(predictions_in(folder) for folder in gain.group.runs.path):
            name = f"{gain.group.shared.teacher} (seed {gain.group.shared.teacher_seed})"
            alone.setdefault(name, []).append(gain.group.name)
        rows.append(fidelity_row(gain, teacher, divergence))
        if teacher and teacher.slope and is_far(gain, teacher.slope):
            far.append(gain.group.name)
    remarks += [
        f"the logits of the teacher {teacher} are not here, so that baselines have no agreement with it beside "
        f"{len(names)} group{'s' if len(names) > 1 else ''}: {'; '.join(first_lines(names))}"
        for teacher, names in alone.items()
    ]
    if far:
        remarks.append(
            "agreement at equal accuracy goes beyond the undistilled networks, whose accuracies do not reach so far: "
            f"{'; '.join(far)}"
        )
    classes = [known for group in groups if (known := per_class_row(group))]
    flips = [flips for gain in gains for flips in flip_rows(gain)]
    return Fidelity(
        pd.DataFrame(rows, columns=FIDELITY), pd.DataFrame(classes), pd.DataFrame(flips, columns=FLIPS), remarks
    )


def remark_missing(groups: Sequence[RunGroup], gains: Sequence[Gain]) -> list[str]:
    """Remark on runs without logits: on all of them in a sentence, on some of them by name."""
    missing, total = [], 0
    for group in groups:
        lacking = [run for run in group.rows if read_predictions(run.path) is None]
        total += len(lacking)
        if lacking:
            seeds = ", ".join(str(run.seed) for run in lacking)
            missing.append(f"{group.name} ({'seeds' if len(lacking) > 1 else 'seed'} {seeds})")
    if total and total == sum(len(group.rows) for group in groups):
        text = (
            "no logits here: agreement is that of the summaries, the baseline's is not known, and no transfer "
            "is computed; train these runs again (overwrite=true) for logits.safetensors"
        )
        return [text] if gains else []
    if not total:
        return []
    return [
        f"{total} run{'s have' if total > 1 else ' has'} no logits.safetensors: {'; '.join(missing)}; flips, flipped "
        "images, agreement of the baseline, agreement by correctness and transfer are of the other runs alone, and "
        "gains with such a run have no interval for other test images; their commands with overwrite=true write logits"
    ]


def remark_other_images(groups: Sequence[RunGroup]) -> list[str]:
    """Remark on runs whose logits are of other labels, images or classes than those of most runs of their data."""
    found: dict[str | None, list[tuple[Predictions, list[str]]]] = {}
    for group in groups:
        for run in group.rows:
            own = predictions_in(run.path)
            if own is None:
                continue
            kinds = found.setdefault(run.dataset, [])
            name = f"{group.name}, seed {run.seed}"
            alike = next((names for other, names in kinds if same_images(own, other)), None)
            if alike is None:
                kinds.append((own, [name]))
            else:
                alike.append(name)
    others = [
        name
        for kinds in found.values()
        for _, names in sorted(kinds, key=lambda kind: -len(kind[1]))[1:]
        for name in names
    ]
    if not others:
        return []
    return [
        f"the logits of {len(others)} run{'s' if len(others) > 1 else ''} have other labels, or another number of "
        f"images or classes, than those of the other runs: {'; '.join(first_lines(others))}; they are compared with "
        "none of these, so that flips, agreement and intervals for other test images are without them"
    ]


def remark_contradictions(groups: Sequence[RunGroup]) -> list[str]:
    """Remark on runs whose logits have another accuracy than their summary, beyond what rounded logits leave open."""
    found = []
    for group in groups:
        for run in group.rows:
            own = predictions_in(run.path)
            if own is None or run.test_acc_best is None:
                continue
            right, recorded = int(own.correct.sum()), run.test_acc_best * len(own.labels)
            if not right - 0.5 <= recorded <= right + int(own.tied.sum()) + 0.5:
                accuracies = f"{100 * right / len(own.labels):.2f} % by its logits, {100 * run.test_acc_best:.2f} %"
                found.append(f"{group.name}, seed {run.seed} ({accuracies})")
    if not found:
        return []
    return [
        f"CONTRADICTION: the logits of {len(found)} run{'s' if len(found) > 1 else ''} have another accuracy than "
        f"summary.json: {'; '.join(first_lines(found))}; their flips, agreement and intervals for other test images "
        "are not to be trusted (kdbench-verify checks such runs)"
    ]


def find_teacher(run: Any, runs: pd.DataFrame, groups: Sequence[RunGroup]) -> Teacher | None:
    """Return the teacher of a run; None where it or its logits are not here."""
    folder = teacher_folder(run, runs)
    predictions = predictions_in(folder)
    if folder is None or predictions is None:
        return None
    arms = [
        agreement_arm([own for own in group.rows if own.run_key != run.teacher_key], predictions)
        for group in groups
        if group.shared.role == BASELINE
    ]
    return Teacher(folder, predictions, slope_of(arms))


def agreement_arm(runs: Sequence[Any], teacher: Predictions) -> Arm:
    """Return accuracy and agreement with a teacher, per cent, of the runs that have logits of the same images."""
    compared = [(run, own) for run in runs if (own := predictions_in(run.path)) and same_images(own, teacher)]
    return (
        [100 * run.test_acc_best for run, _ in compared],
        [100 * float((own.predicted == teacher.predicted).mean()) for _, own in compared],
    )


def is_far(gain: Gain, slope: Slope) -> bool:
    """Return whether a group's accuracy is beyond those of the undistilled runs by more than half their range."""
    accuracy, margin = float(np.mean(gain.values)), (slope.highest - slope.lowest) / 2
    return not slope.lowest - margin <= accuracy <= slope.highest + margin


def teacher_folder(run: Any, runs: pd.DataFrame) -> Path | None:
    """Return the directory of the run that is a run's teacher: among those given, or beside the student's."""
    key = run.teacher_key
    if not key or Path(key).name != key:
        return None
    given = runs.path[runs.run_key == key]
    if len(given):
        return given.iloc[0]
    for folder in sorted(run.path.parent.glob(f"*_{glob.escape(key)}")):
        try:
            read_summary(folder)
        except KdbenchError:
            continue
        return folder
    return None


def fidelity_row(gain: Gain, teacher: Teacher | None, divergence: Any) -> dict[str, Any]:
    """Return means over seeds: agreement in per cent, KL(teacher || student) in nats, ECE in per cent, NLL in nats.

    Args:
        gain: gain of the group.
        teacher: teacher of the group, if it has logits.
        divergence: `base_divergence`, with a memory.
    """
    shared, runs = gain.group.shared, gain.group.runs
    agreements = percents(runs.agreement)
    cells = row(
        student=shared.student, teacher=shared.teacher, method=shared.method, role=shared.role, setting=gain.setting,
        n=len(runs), n_base=len(gain.base_values), agreement=mean(agreements), agreement_std=st.std(agreements),
        kl_t1=mean(runs.kl_t1), kl_t4=mean(runs.kl_t4), ece=mean(percents(runs.test_ece)), nll=mean(runs.test_nll),
    )  # fmt: skip
    if teacher:
        right, mistakes = by_correctness(gain.group.rows, teacher)
        cells |= row(agreement_right=right, same_mistake=mistakes)
    if gain.baseline is None:
        return cells
    base = gain.baseline.runs
    cells |= row(base_ece=mean(percents(base.test_ece)), base_nll=mean(base.test_nll))
    if teacher is None:
        return cells
    compared = agreement_arm(gain.baseline.rows, teacher.predictions)
    if not compared[0]:
        return cells
    divergences = [d for folder in base.path if (d := divergence(teacher, folder))]
    right, mistakes = by_correctness(gain.baseline.rows, teacher)
    cells |= row(
        base_agreement=mean(compared[1]), base_kl_t1=mean(d[0] for d in divergences),
        base_kl_t4=mean(d[1] for d in divergences), base_agreement_right=right, base_same_mistake=mistakes,
    )  # fmt: skip
    # The summaries' agreement is of the logits before any rounding.
    known = [run for run in gain.group.rows if run.agreement is not None]
    distilled = [100 * run.test_acc_best for run in known], [100 * run.agreement for run in known]
    return cells | excess_row(distilled, compared, teacher.slope)


def by_correctness(runs: Sequence[Any], teacher: Teacher) -> tuple[float | None, float | None]:
    """Return the means over runs of agreement where the teacher is right, and of equal mistakes where it is wrong."""
    own = [found for run in runs if (found := predictions_in(run.path)) and same_images(found, teacher.predictions)]
    shares = [agreement_rates(found, teacher.predictions) for found in own]
    return mean(right for right, _ in shares), mean(mistakes for _, mistakes in shares)


def base_divergence(teacher: Teacher, folder: Path) -> tuple[float, float] | None:
    """Return KL(teacher || run) in nats at temperatures 1 and 4; None without logits of the same images."""
    own = predictions_in(folder)
    if own is None or not same_images(own, teacher.predictions):
        return None
    ours, theirs = logits_in(teacher.folder), logits_in(folder)
    return metrics.kl_divergence(ours, theirs, temperature=1.0), metrics.kl_divergence(ours, theirs, temperature=4.0)


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the known values; None if there are none."""
    known = [float(value) for value in values if value is not None]
    return float(np.mean(known)) if known else None


def flip_rows(gain: Gain) -> list[dict[str, Any]]:
    """Return, per seed, how many test images only the run, and only the baseline run of that seed, gets right.

    Images whose class the kept logits leave open, in either run, are counted apart.
    """
    rows = []
    for run, base in gain.pairs:
        ours, theirs = predictions_in(run.path), predictions_in(base.path)
        if ours is None or theirs is None or not same_images(ours, theirs):
            continue
        known = ~(ours.tied | theirs.tied)
        a, b = ours.correct[known], theirs.correct[known]
        gained, lost = int((a & ~b).sum()), int((b & ~a).sum())
        rows.append(
            row(
                student=run.student, teacher=run.teacher, method=run.method, role=run.role, setting=gain.setting,
                seed=run.seed, images=len(known), both_right=int((a & b).sum()), only_method=gained,
                only_baseline=lost, both_wrong=int((~a & ~b).sum()), ties=int((~known).sum()),
                p_mcnemar=st.mcnemar_exact(gained, lost),
            )
        )  # fmt: skip
    return rows


def per_class_row(group: RunGroup) -> dict[str, Any] | None:
    """Return the mean test accuracy of each class over seeds, per cent, from the summaries."""
    table = class_accuracies(group)
    if table is None:
        return None
    shared = group.shared
    cells = row(
        student=shared.student, teacher=shared.teacher, method=shared.method, role=shared.role, setting=group.setting,
        n=len(table),
    )  # fmt: skip
    names = class_names(shared, table.shape[1])
    return cells | {f"{OF_CLASS}{name}": float(v) for name, v in zip(names, table.mean(axis=0), strict=True)}
