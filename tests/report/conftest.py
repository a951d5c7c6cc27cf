"""Run directories for the report, written without training: the files of a run, with chosen numbers."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from safetensors.numpy import save_file

from kdbench.errors import KdbenchError
from kdbench.report.build import Report, build_report
from kdbench.report.command import report as command
from kdbench.report.select import read_selection
from kdbench.rundir.unfinished import Failure, write_failure

SIZES = {
    "resnet8": (78_042, 12_000_000),
    "resnet14": (175_258, 26_000_000),
    "resnet18": (11_173_962, 555_400_000),
    "resnet34": (21_282_122, 1_159_400_000),
}
"""Parameters and multiply-accumulates of students; REFERENCE.md, with rounded ones for the small."""
RECIPE = {"epochs": 100, "batch_size": 128, "lr": 0.1, "clip_norm": 1.0, "clip_projections": True}
ENVIRONMENT = {"torch": "2.9.0", "device": "a CPU", "threads": 1, "git_revision": "0" * 40}


def write_run(
    root: Path,
    *,
    student: str = "resnet8",
    teacher: str | None = None,
    method: str = "ce",
    seed: int = 0,
    accuracy: float = 0.9,
    method_params: dict[str, Any] | None = None,
    recipe: dict[str, Any] | None = None,
    teacher_seed: int | None = 0,
    logits: tuple[np.ndarray, np.ndarray] | None = None,
    history: Sequence[float] | None = None,
    **others: Any,
) -> Path:
    """Write the directory of a finished run, and return it.

    Args:
        root: folder that holds the run directories.
        accuracy: `test_acc_best`, a fraction; the last epoch's is 0.001 lower.
        recipe: keys that differ from `RECIPE`.
        teacher_seed: only for a run with a teacher.
        logits: test logits [N, C] in any precision and labels [N]; no file without them.
        history: `val_acc` of each epoch, for metrics.csv; no file without it.
        others: any other key of summary.json, or another value for one.
    """
    parameters, macs = SIZES.get(student, (1000, 2000))
    summary: dict[str, Any] = {
        "schema_version": 1, "status": "complete", "student": student, "teacher": teacher, "method": method,
        "role": {"ce": "baseline", "checkpoint": None}.get(method, "distilled"), "dataset": "cifar10",
        "method_params": method_params or {}, "recipe": RECIPE | (recipe or {}), "stem": None, "precision": "fp32",
        "seed": seed, "init_seed": seed, "data_seed": seed, "teacher_seed": teacher_seed if teacher else None,
        "num_train": 45000, "num_val": 5000, "num_test": 10000, "epochs": 100, "num_params": parameters, "macs": macs,
        "best_val_acc": accuracy, "best_val_epoch": 99, "test_acc_best": accuracy, "test_acc_final": accuracy - 0.001,
        "test_nll": 0.3, "test_ece": 0.02, "per_class_acc": [accuracy] * 10,
        "teacher_test_acc": 0.95 if teacher else None, "teacher_key": f"{teacher}{teacher_seed}" if teacher else None,
        "agreement": 0.93 if teacher else None, "kl_t1": 0.2 if teacher else None, "kl_t4": 0.1 if teacher else None,
        "train_seconds": 60.0, "images_per_second": 1000.0, "peak_memory_bytes": None, "environment": ENVIRONMENT,
    }  # fmt: skip
    summary |= others
    if "run_key" not in summary:
        counts = {key: value for key, value in summary.items() if key not in ("test_acc_best", "environment")}
        summary["run_key"] = hashlib.sha256(json.dumps(counts, sort_keys=True).encode()).hexdigest()[:16]
    folder = root / f"{method}_seed{seed}_{summary['run_key']}"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    if logits is not None:
        write_logits(folder, *logits)
    if history is not None:
        table = pd.DataFrame({"epoch": np.arange(1, len(history) + 1), "val_acc": history, "train_loss": 1.0})
        table.to_csv(folder / "metrics.csv", index=False)
    return folder


def write_logits(folder: Path, logits: np.ndarray, labels: np.ndarray) -> None:
    tensors = {"test_logits": logits, "test_labels": labels, "val_logits": logits, "val_labels": labels}
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, folder / "logits.safetensors")


def write_group(root: Path, percents: Sequence[float], seeds: Sequence[int] | None = None, **others: Any) -> list[Path]:
    """Write runs that differ in their seeds only, with test accuracies in per cent."""
    seeds = range(len(percents)) if seeds is None else seeds
    return [
        write_run(root, seed=seed, accuracy=percent / 100, **others)
        for seed, percent in zip(seeds, percents, strict=True)
    ]


def write_failed_run(
    root: Path, *, code: str = "not_finite", message: str = "epoch 2: it fails", **others: Any
) -> Path:
    """Write the directory of a run that failed, and return it; `others` as for `write_run`."""
    folder = write_run(root, **others)
    unknown = ("test_acc_best", "test_acc_final", "best_val_acc", "test_nll", "test_ece", "per_class_acc", "agreement")
    known = {k: v for k, v in json.loads((folder / "summary.json").read_text()).items() if k not in unknown}
    (folder / "summary.json").unlink()
    write_failure(folder, Failure(code, message, 2, known))
    return folder


def write_unfinished_run(root: Path, *, student: str, method: str, seed: int, teacher: str | None = None) -> Path:
    """Write the directory of a run that was interrupted, and return it."""
    folder = root / f"{student}_{method}_seed{seed}"
    folder.mkdir(parents=True)
    names = {"student": student, "teacher": teacher or "none", "method": method}
    config = {**{section: {"name": name} for section, name in names.items()}, "seed": seed}
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    (folder / "train.log").write_text("")
    return folder


def write_selected(
    path: Path, winners: Sequence[dict[str, Any]], selection_seeds: Sequence[int], final_seeds: Sequence[int]
) -> Path:
    """Write selected.yaml; winners give only the keys that differ from a usual one."""
    usual = {
        "pair": "resnet20_resnet8", "student": "resnet8", "teacher": "resnet20", "method": "logit", "overrides": [],
        "method_params": {}, "recipe": dict(RECIPE), "score": 90.0, "runner_up": None, "margin": None, "noise": None,
        "seed_std": None, "candidates": [],
    }  # fmt: skip
    content = {
        "study": "lab", "stage": "selection", "chosen_by": "best_val_acc", "selection_seeds": list(selection_seeds),
        "final_seeds": list(final_seeds), "winners": [usual | winner for winner in winners],
    }  # fmt: skip
    path.write_text(OmegaConf.to_yaml(OmegaConf.create(content)))
    return path


def report_of(root: Path, selected: Path | None = None, **others: Any) -> Report:
    """Return the report of all runs under a folder, before it is written."""
    return build_report([root], read_selection(selected) if selected else None, **others)


@dataclasses.dataclass
class CommandResult:
    """Exit code of the command, the error that the command line turns into one, its output, and the report."""

    code: int
    out: str
    err: str
    folder: Path
    error: KdbenchError | None

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / f"{name}.csv")

    def text(self, name: str) -> str:
        return (self.folder / name).read_text()


@pytest.fixture
def kdbench_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., CommandResult]:
    """Return the command, called in this process; it writes to `tmp_path / "report"`, without figures."""

    def call(*arguments: str | Path, figures: bool = False) -> CommandResult:
        folder, error = tmp_path / "report", None
        flags = [] if figures else ["--no-figures"]  # they take seconds
        try:
            code = command([*map(str, arguments), "--out", str(folder), *flags])
        except KdbenchError as refused:
            code, error = refused.exit_code, refused
        captured = capsys.readouterr()
        return CommandResult(code, captured.out, captured.err, folder, error)

    return call
