"""Comparison of a student's predictions with those of its teacher and of its baseline, from saved logits."""

import functools
import glob
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file

from kdbench import metrics
from kdbench.errors import KdbenchError
from kdbench.metrics.probability import Floats, Ints
from kdbench.report import statistics as st
from kdbench.report.columns import FIDELITY, FLIPS, row
from kdbench.report.gains import Gain
from kdbench.report.groups import RunGroup, percents
from kdbench.report.runs import LOGITS, display_path
from kdbench.rundir.summary import read_summary


@dataclass(frozen=True, eq=False)
class SavedLogits:
    """Test logits [N, C] float64 and labels [N] of a run."""

    logits: Floats
    labels: Ints

    @property
    def correct(self) -> Any:
        """Correctness of each image's predicted class, bool [N]."""
        return self.logits.argmax(axis=1) == self.labels


@dataclass(frozen=True)
class Fidelity:
    """Tables that need logits; empty where there are none."""

    groups: pd.DataFrame
    per_class: pd.DataFrame
    flips: pd.DataFrame
    remarks: list[str]


@functools.lru_cache(maxsize=512)
def read_logits(file: Path) -> SavedLogits | str | None:
    """Return the content of logits.safetensors, in any float precision; None without one, or what is wrong with it."""
    if not file.is_file():
        return None
    try:
        tensors = load_file(file)
        logits, labels = tensors["test_logits"].astype(np.float64), tensors["test_labels"].astype(np.int64)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        return f"{display_path(file)} cannot be read ({type(error).__name__}: {error}); its run counts without logits"
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not np.isfinite(logits).all():
        return f"{display_path(file)} holds no finite logits [N, C] with labels [N]; its run counts without logits"
    return SavedLogits(logits, labels)


def logits_in(folder: Path | None) -> SavedLogits | None:
    """Return the logits of a run directory, if they are there and usable."""
    found = read_logits(folder / LOGITS) if folder else None
    return found if isinstance(found, SavedLogits) else None


def compute_fidelity(runs: pd.DataFrame, groups: Sequence[RunGroup], gains: Sequence[Gain]) -> Fidelity:
    """Return everything that is computed from logits.

    Args:
        runs: runs of the report; teachers are searched among them, then beside the student's run directory.
        groups: groups of the report.
        gains: their gains, for the baselines.
    """
    remarks = [found for folder in runs.path if isinstance(found := read_logits(folder / LOGITS), str)]
    gains = [gain for gain in gains if not gain.is_pooled]
    if gains and not any(logits_in(folder) for folder in runs.path):
        remarks.append("no logits here: agreement is that of the summaries, and the baseline's is not known")
    rows = []
    for gain in gains:
        teacher = logits_in(teacher_folder(gain.group.shared, runs))
        has_logits = any(logits_in(folder) for folder in gain.group.runs.path)
        if gain.group.shared.teacher_key and teacher is None and has_logits:
            remarks.append(f"{gain.group.name}: the teacher's logits are not here, so the baseline has no agreement")
        rows.append(fidelity_row(gain, teacher))
    classes = [known for group in groups if (known := per_class_row(group))]
    flips = [flips for gain in gains for flips in flip_rows(gain)]
    return Fidelity(
        pd.DataFrame(rows, columns=FIDELITY), pd.DataFrame(classes), pd.DataFrame(flips, columns=FLIPS), remarks
    )


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


def fidelity_row(gain: Gain, teacher: SavedLogits | None) -> dict[str, Any]:
    """Return means over seeds: agreement in per cent, KL(teacher || student) in nats, ECE in per cent, NLL in nats."""
    shared, runs = gain.group.shared, gain.group.runs
    agreements = percents(runs.agreement)
    cells = row(
        student=shared.student, teacher=shared.teacher, method=shared.method, role=shared.role, setting=gain.setting,
        n=len(runs), n_base=len(gain.base_values), agreement=mean(agreements), agreement_std=st.std(agreements),
        kl_t1=mean(runs.kl_t1), kl_t4=mean(runs.kl_t4), ece=mean(percents(runs.test_ece)), nll=mean(runs.test_nll),
    )  # fmt: skip
    if gain.baseline is None:
        return cells
    base = gain.baseline.runs
    cells |= row(base_ece=mean(percents(base.test_ece)), base_nll=mean(base.test_nll))
    compared = [own for folder in base.path if (own := logits_in(folder)) and teacher and same_images(own, teacher)]
    if teacher and compared:

        def kl(temperature: float) -> float | None:
            return mean([metrics.kl_divergence(teacher.logits, p.logits, temperature=temperature) for p in compared])

        agreement = mean([metrics.agreement(p.logits, teacher.logits) for p in compared])
        cells |= row(base_agreement=100 * (agreement or 0), base_kl_t1=kl(1.0), base_kl_t4=kl(4.0))
    return cells


def mean(values: Iterable[float | None]) -> float | None:
    """Return the mean of the known values; None if there are none."""
    known = [float(value) for value in values if value is not None]
    return float(np.mean(known)) if known else None


def same_images(a: SavedLogits, b: SavedLogits) -> bool:
    return a.logits.shape == b.logits.shape and bool((a.labels == b.labels).all())


def flip_rows(gain: Gain) -> list[dict[str, Any]]:
    """Return, per seed, how many test images only the run, and only the baseline run of that seed, gets right."""
    rows = []
    for run, base in gain.pairs:
        ours, theirs = logits_in(run.path), logits_in(base.path)
        if ours is None or theirs is None or not same_images(ours, theirs):
            continue
        gained, lost = int((ours.correct & ~theirs.correct).sum()), int((theirs.correct & ~ours.correct).sum())
        rows.append(
            row(
                student=run.student, teacher=run.teacher, method=run.method, role=run.role, setting=gain.setting,
                seed=run.seed, images=len(ours.labels), both_right=int((ours.correct & theirs.correct).sum()),
                only_method=gained, only_baseline=lost, both_wrong=int((~ours.correct & ~theirs.correct).sum()),
                p_mcnemar=st.mcnemar_exact(gained, lost),
            )
        )  # fmt: skip
    return rows


def per_class_row(group: RunGroup) -> dict[str, Any] | None:
    """Return the mean test accuracy of each class over seeds, per cent, from the summaries."""
    known = [accuracies for accuracies in group.runs.per_class_acc if accuracies]
    if not known or len({len(accuracies) for accuracies in known}) > 1:
        return None
    table = 100 * np.array([[np.nan if a is None else a for a in accuracies] for accuracies in known], dtype=float)
    shared = group.shared
    cells = row(
        student=shared.student, teacher=shared.teacher, method=shared.method, role=shared.role, setting=group.setting,
        n=len(known),
    )  # fmt: skip
    names = shared.class_names
    if not names or len(set(names)) != table.shape[1]:  # of an earlier version, or from elsewhere
        names = range(table.shape[1])
    return cells | {f"class_{name}": float(value) for name, value in zip(names, table.mean(axis=0), strict=True)}
