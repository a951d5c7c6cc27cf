"""From logits and weights to the files that make a run complete."""

import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from kdbench import metrics
from kdbench.config import ModelConfig, RunConfig
from kdbench.data.dataset import NUM_CLASSES, Dataset
from kdbench.models import Description, weights
from kdbench.runs import (
    SCHEMA_VERSION,
    RunDirectory,
    baseline_key,
    group_key,
    identity,
    model_identity,
    sha256,
)
from kdbench.runtime import device_name

PACKAGES = ("kdbench", "torch", "torchvision", "hydra-core", "omegaconf", "numpy", "pandas", "safetensors")


@dataclass(frozen=True)
class Predictions:
    """Logits [N, C] float32, on the CPU, of one set of weights."""

    val: Tensor
    test: Tensor


def write_result(
    directory: RunDirectory,
    config: RunConfig,
    dataset: Dataset,
    description: Description,
    best_weights: Mapping[str, Tensor],
    predictions: Predictions,
    training: Mapping[str, Any],
) -> None:
    """Write weights and logits, then summary.json, whose presence means complete.

    Args:
        directory: Exists.
        config: Resolved.
        dataset: What the predictions are of.
        description: Of the student.
        best_weights: By the architecture's own names.
        predictions: Of these weights.
        training: The summary's keys that tell of teacher and training.
    """
    metadata = weights_metadata(config.student, config)
    directory.write_with(directory.weights, lambda path: weights.save(best_weights, path, metadata))
    logits = {
        "val_logits": predictions.val,
        "test_logits": predictions.test,
        "val_labels": dataset.val.labels.cpu(),
        "test_labels": dataset.test.labels.cpu(),
    }
    directory.write_with(directory.logits, lambda path: save_file(logits, path))
    known = identity(config, training["teacher_key"])
    directory.write_summary(
        {
            "schema_version": SCHEMA_VERSION,
            "run_key": directory.key,
            "group_key": group_key(known),
            "baseline_key": baseline_key(known),
            "status": "complete",
            **restated(config),
            "num_params": description.num_params,
            "macs": description.macs,
            **quality(predictions, dataset),
            **training,
            "data_sha256": data_sha256(dataset),
            "config_sha256": sha256(directory.config) if directory.config.is_file() else None,
            "metrics_sha256": sha256(directory.metrics) if directory.metrics.is_file() else None,
            "weights_sha256": sha256(directory.weights),
            "logits_sha256": sha256(directory.logits),
            "environment": environment(config),
        }
    )


def restated(config: RunConfig) -> dict[str, Any]:
    """What a summary says again of its run's config, for readers that open nothing else."""
    return {
        "student": config.student.name,
        "teacher": config.teacher.model.name if config.teacher else None,
        "method": config.method.name,
        "dataset": config.data.name,
        "method_params": asdict(config.method.params),
        "recipe": asdict(config.recipe),
        "stem": config.student.stem,
        "precision": config.runtime.precision,
        "seed": config.seed,
        "init_seed": config.init_seed,
        "data_seed": config.data_seed,
        "teacher_table": config.teacher.table == "on" if config.teacher else None,
        "teacher_seed": config.teacher.seed if config.teacher and not config.teacher.checkpoint else None,
        "num_train": config.data.num_train,
        "num_val": config.data.num_val,
        "num_test": config.data.num_test,
    }


def data_sha256(dataset: Dataset) -> dict[str, str]:
    """Of each split: its images, labels, and which of the set they are."""
    return {name: getattr(dataset, name).sha256 for name in ("train", "val", "test")}


def quality(predictions: Predictions, dataset: Dataset) -> dict[str, Any]:
    """What the saved logits say of the labels."""
    val, test = predictions.val.numpy(), predictions.test.numpy()
    val_labels, test_labels = dataset.val.labels.cpu().numpy(), dataset.test.labels.cpu().numpy()
    return {
        "best_val_acc": metrics.accuracy(val, val_labels),
        **quality_on_test(test, test_labels),
    }


def quality_on_test(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> dict[str, Any]:
    return {
        "test_acc_best": metrics.accuracy(logits, labels),
        "test_nll": metrics.nll(logits, labels),
        "test_ece": metrics.expected_calibration_error(logits, labels),
        "per_class_acc": metrics.per_class_accuracy(logits, labels),
    }


def fidelity(student_test: Tensor, teacher_test: Tensor | None) -> dict[str, float | None]:
    """How the student's saved test logits compare to the teacher's; null without teacher."""
    if teacher_test is None:
        return {"agreement": None, "kl_t1": None, "kl_t4": None}
    student, teacher = student_test.numpy(), teacher_test.numpy()
    return {
        "agreement": metrics.agreement(student, teacher),
        "kl_t1": metrics.kl_divergence(teacher, student, temperature=1.0),
        "kl_t4": metrics.kl_divergence(teacher, student, temperature=4.0),
    }


def weights_metadata(model: ModelConfig, config: RunConfig) -> dict[str, Any]:
    """What weights are only right for; stored beside them, and checked when they serve as a teacher."""
    return {
        "architecture": model_identity(model),
        "number of classes": NUM_CLASSES,
        "normalisation": {"mean": config.data.mean, "std": config.data.std},
    }


def environment(config: RunConfig) -> dict[str, Any]:
    """Where the numbers were made."""
    return {
        **{name: installed(name) for name in PACKAGES},
        "python": platform.python_version(),
        "cuda": torch.version.cuda if config.runtime.device != "cpu" else None,
        "device": device_name(config.runtime.device),
        "threads": config.runtime.threads,
        "profile": config.runtime.profile,
        "compile": config.runtime.compile,
        **git_state(),
    }


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def git_state() -> dict[str, str | bool | None]:
    """Commit of the checkout that this code runs from, and whether files of it were changed since.

    Both are null where the code was installed.
    """

    def git(*arguments: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)  # an environment may lie in somebody else's checkout
        changed = git("status", "--porcelain", "--untracked-files=no")
        return {"git_revision": git("rev-parse", "HEAD"), "git_dirty": changed != ""}
    except (OSError, subprocess.SubprocessError):
        return {"git_revision": None, "git_dirty": None}
