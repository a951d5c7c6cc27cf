"""How a student's predictions relate to its teacher's and to those of its undistilled twin, from saved logits."""

import functools
import glob
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file

from kdbench import metrics
from kdbench.metrics.probability import Floats, Ints
from kdbench.report import statistics as st
from kdbench.report.gains import Gain
from kdbench.report.groups import Group
from kdbench.report.runs import Run, read, shown

FIDELITY = (
    "student", "teacher", "method", "setting", "n", "n_base", "agreement", "agreement_std", "base_agreement", "kl_t1",
    "base_kl_t1", "kl_t4", "base_kl_t4", "ece", "base_ece", "nll", "base_nll",
)  # fmt: skip
FLIPS = (
    "student", "teacher", "method", "setting", "seed", "images", "both_right", "only_distilled", "only_undistilled",
    "both_wrong", "p_mcnemar",
)  # fmt: skip


@dataclass
class Predictions:
    """Test logits [N, C] float64 and labels [N] of a run."""

    logits: Floats
    labels: Ints

    @property
    def right(self) -> Any:
        return self.logits.argmax(axis=1) == self.labels


@dataclass
class Fidelity:
    """The tables that need logits; empty where none are there."""

    groups: pd.DataFrame
    per_class: pd.DataFrame
    flips: pd.DataFrame
    remarks: list[str] = field(default_factory=list)


@functools.lru_cache(maxsize=512)
def predictions_of(file: Path) -> Predictions | str | None:
    """What a run's logits.safetensors holds (in any float precision); None without one, or what is wrong with it."""
    if not file.is_file():
        return None
    try:
        tensors = load_file(file)
        logits, labels = tensors["test_logits"].astype(np.float64), tensors["test_labels"].astype(np.int64)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        return f"{shown(file)} cannot be read ({type(error).__name__}: {error}); its run counts without logits"
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not np.isfinite(logits).all():
        return f"{shown(file)} holds no finite logits [N, C] with labels [N]; its run counts without logits"
    return Predictions(logits, labels)


def logits_of(run: Run | None) -> Predictions | None:
    found = predictions_of(run.logits) if run else None
    return found if isinstance(found, Predictions) else None


def fidelity(runs: Sequence[Run], groups: Sequence[Group], gains: Sequence[Gain]) -> Fidelity:
    """Everything that logits say of a report's runs.

    Args:
        runs: All of the report's; teachers are looked for among them, then beside the student's run directory.
        groups: All of the report's.
        gains: Of all distilled groups, for their undistilled students.
    """
    broken = [found for run in runs if isinstance(found := predictions_of(run.logits), str)]
    remarks = list(broken)
    if gains and not any(logits_of(run) for run in runs):
        remarks.append(
            "no logits here: agreement is that of the summaries, without undistilled students to compare it to"
        )
    rows, flips = [], []
    for gain in gains:
        if gain.is_pooled:
            continue
        teacher = teacher_of(gain.group.runs[0], runs)
        taught_by = logits_of(teacher)
        base = gain.base.runs if gain.base else []
        row = fidelity_row(gain, taught_by, base)
        if taught_by is None and any(logits_of(run) for run in gain.group.runs):
            remarks.append(
                f"{gain.group.name}: its teacher's logits are not here, so undistilled students are not compared to it"
            )
        rows.append(row)
        flips += flip_rows(gain)
    classes = [known for group in groups if (known := per_class_row(group))]
    return Fidelity(
        pd.DataFrame(rows, columns=list(FIDELITY)),
        pd.DataFrame(classes),
        pd.DataFrame(flips, columns=list(FLIPS)),
        remarks,
    )


def teacher_of(run: Run, runs: Sequence[Run]) -> Run | None:
    """The run that taught, by its key: among those given, or beside the student's."""
    key = run["teacher_key"]
    if not key or Path(key).name != key:
        return None
    for other in runs:
        if other["run_key"] == key:
            return other
    for folder in sorted(run.path.parent.glob(f"*_{glob.escape(key)}")):
        try:
            return Run(folder, read(folder / "summary.json"))
        except ValueError:
            continue
    return None


def fidelity_row(gain: Gain, teacher: Predictions | None, base: Sequence[Run]) -> dict[str, Any]:
    """Means over seeds: agreement in per cent, KL(teacher || student) in nats, ECE in per cent, NLL in nats."""
    row: dict[str, Any] = {
        "student": gain.group["student"],
        "teacher": gain.group["teacher"],
        "method": gain.group["method"],
        "setting": gain.setting,
        "n": len(gain.group.runs),
        "n_base": len(base),
        "agreement": mean([run.percent("agreement") for run in gain.group.runs]),
        "agreement_std": st.std([v for run in gain.group.runs if (v := run.percent("agreement")) is not None]),
        "kl_t1": mean([run["kl_t1"] for run in gain.group.runs]),
        "kl_t4": mean([run["kl_t4"] for run in gain.group.runs]),
        "ece": mean([run.percent("test_ece") for run in gain.group.runs]),
        "base_ece": mean([run.percent("test_ece") for run in base]),
        "nll": mean([run["test_nll"] for run in gain.group.runs]),
        "base_nll": mean([run["test_nll"] for run in base]),
    }
    compared = [p for run in base if (p := logits_of(run)) and teacher and same_images(p, teacher)]
    if teacher and compared:
        row["base_agreement"] = 100 * mean_of(metrics.agreement(p.logits, teacher.logits) for p in compared)
        for t in (1, 4):
            kls = (metrics.kl_divergence(teacher.logits, p.logits, temperature=float(t)) for p in compared)
            row[f"base_kl_t{t}"] = mean_of(kls)
    return row


def mean(values: Sequence[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return float(np.mean(known)) if known else None


def mean_of(values: Any) -> float:
    return float(np.mean(list(values)))


def same_images(a: Predictions, b: Predictions) -> bool:
    return a.logits.shape == b.logits.shape and bool((a.labels == b.labels).all())


def flip_rows(gain: Gain) -> list[dict[str, Any]]:
    """Per seed: test images that only the distilled student has right, and only its undistilled twin of that seed."""
    twins = {run.seeds: run for run in gain.base.runs} if gain.base else {}
    rows = []
    for run in gain.group.runs:
        ours, theirs = logits_of(run), logits_of(twins.get(run.seeds))
        if ours is None or theirs is None or not same_images(ours, theirs):
            continue
        gained, lost = int((ours.right & ~theirs.right).sum()), int((theirs.right & ~ours.right).sum())
        rows.append(
            {
                "student": run["student"],
                "teacher": run["teacher"],
                "method": run["method"],
                "setting": gain.setting,
                "seed": run["seed"],
                "images": len(ours.labels),
                "both_right": int((ours.right & theirs.right).sum()),
                "only_distilled": gained,
                "only_undistilled": lost,
                "both_wrong": int((~ours.right & ~theirs.right).sum()),
                "p_mcnemar": st.mcnemar_exact(gained, lost),
            }
        )
    return rows


def per_class_row(group: Group) -> dict[str, Any] | None:
    """Mean test accuracy of each class over seeds, per cent, from the summaries."""
    known = [run["per_class_acc"] for run in group.runs if run["per_class_acc"]]
    if not known or len({len(accuracies) for accuracies in known}) > 1:
        return None
    table = 100 * np.array([[np.nan if a is None else a for a in accuracies] for accuracies in known], dtype=float)
    named = {key: group[key] for key in ("student", "teacher", "method")} | {"setting": group.setting, "n": len(known)}
    return named | {f"class_{c}": float(value) for c, value in enumerate(table.mean(axis=0))}
