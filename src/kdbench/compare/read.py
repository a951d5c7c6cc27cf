"""Reading the runs of a comparison: summary, test logits and labels, each checked. Imports no torch."""

import hashlib
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from kdbench.config.paths import is_file, is_folder
from kdbench.errors import ConfigError, first_line
from kdbench.metrics.probability import Distribution, Ints
from kdbench.rundir.load import check_unchanged, read_complete, run_folders
from kdbench.rundir.summary import SUMMARY_FILE, RunSummary, Status, read_unverified
from kdbench.rundir.unfinished import CONFIG_FILE, FAILURE_FILE, RecordedArm, read_failure

LOGITS, WEIGHTS = "logits.safetensors", "best.safetensors"
EXACT_BYTES = 4
"""Bytes per logit as a run writes them; fewer are a later rounding."""


@dataclass(frozen=True, eq=False)
class ComparedRun:
    """A complete run with its test logits."""

    argument: str
    """Argument of the command that names it: RUN_A, RUN_B or --teacher."""
    path: Path
    summary: RunSummary
    predictions: Distribution
    """Predictions of the test logits [N, C]."""
    labels: Ints
    """[N] int64, true classes in [0, C)."""

    @property
    def name(self) -> str:
        summary = self.summary
        return RecordedArm(summary.student, summary.teacher, summary.method, summary.seed).name

    @property
    def is_rounded(self) -> bool:
        """True if the logits were rounded after the run, as in its small form (scripts/keep_results.py)."""
        return self.predictions.logits.itemsize < EXACT_BYTES

    @property
    def labels_sha256(self) -> str:
        """SHA-256 of the labels as int64."""
        return hashlib.sha256(self.labels.tobytes()).hexdigest()

    @property
    def test_sha256(self) -> str | None:
        """Recorded SHA-256 of the test images."""
        return (self.summary.data_sha256 or {}).get("test")


def read_run(path: Path, argument: str) -> ComparedRun:
    """Return a complete run with its test logits.

    Args:
        path: run directory.
        argument: argument of the command that names it, for errors.

    Raises:
        ConfigError: it is no complete run, has no usable logits, or a file in it was changed.
    """
    check_complete(path, argument)
    summary = read_complete(path)
    logits, labels = read_logits(path, summary, argument)
    return ComparedRun(argument, path, summary, Distribution(logits), labels)


def check_complete(path: Path, argument: str) -> None:
    """Check that a path is the directory of a complete run.

    Raises:
        ConfigError: it is not.
    """
    if not is_folder(path):
        found = "which is a file" if is_file(path) else "and there is no such folder"
        raise ConfigError(
            f"{argument} is {path}, {found}; give a run directory, such as one in outputs/runs",
            code="not_found",
            key=argument,
        )
    if is_file(path / SUMMARY_FILE):
        status = read_unverified(path)[0].status
        if status in (None, Status.COMPLETE):
            return
        state = f"a run of status {status}; complete it, or give another run"
    elif failure := read_failure(path):
        state = f"a run that failed ({failure.code}: {failure.message}); give its command again, or another run"
    elif is_file(path / FAILURE_FILE):
        state = "a run that failed; give its command again, or another run"
    elif is_file(path / CONFIG_FILE):
        state = f"an unfinished run: there is no {SUMMARY_FILE}; complete it by the command that started it"
    elif inside := len(run_folders(path)):
        runs = f"{inside} run{'s' if inside > 1 else ''}"
        state = f"a folder that holds {runs}, and no run directory itself; give one of the folders in it"
    else:
        state = f"not a run directory: there is no {SUMMARY_FILE}; give one, such as a folder in outputs/runs"
    raise ConfigError(f"{argument} is {path}, which is {state}", code="no_run", key=argument)


def read_logits(path: Path, summary: RunSummary, argument: str) -> tuple[NDArray[Any], Ints]:
    """Return test logits [N, C] in the precision of the file, and labels [N] int64. Validation images are not read.

    Raises:
        ConfigError: there are none, the file was changed, or they are no finite logits with labels.
    """
    file = path / LOGITS
    again = how_to_repeat(path, summary)
    if not is_file(file):
        raise ConfigError(
            f"{argument} is {path}, which has no {LOGITS}; copy the file from where the run was trained, or {again}",
            code="not_found",
            key=argument,
        )
    try:
        with safe_open(file, "np") as tensors:
            logits, labels = tensors.get_tensor("test_logits"), tensors.get_tensor("test_labels")
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        fault = f"cannot be read ({first_line(error)})"
    else:
        fault = fault_of(logits, labels, summary)
        if not fault:
            if logits.itemsize >= EXACT_BYTES:  # the small form has no recorded hash
                check_unchanged(file, summary.logits_sha256)
            return logits, labels.astype(np.int64)
    code = "not_finite" if fault.endswith("not finite") else "damaged"
    raise ConfigError(f"{argument}: {file} {fault}; restore the file from a copy, or {again}", code=code, key=argument)


def fault_of(logits: NDArray[Any], labels: NDArray[Any], summary: RunSummary) -> str:
    """Return what is wrong with the tensors of a file, to be read after its name; empty if nothing is."""
    classes = len(summary.class_names) if summary.class_names else None
    are_floats = logits.ndim == 2 and np.issubdtype(logits.dtype, np.floating)
    if not are_floats or len(logits) < 1 or logits.shape[1] < 2:
        return f"holds test_logits {logits.dtype} {list(logits.shape)}, which must be floats [N, C]"
    if classes not in (None, logits.shape[1]):
        return f"holds logits of {logits.shape[1]} classes, and summary.json names {classes}"
    if labels.shape != logits.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        return f"holds test_labels {labels.dtype} {list(labels.shape)}, which must be integers [{len(logits)}]"
    if labels.min() < 0 or labels.max() >= logits.shape[1]:
        return f"holds labels from {labels.min()} to {labels.max()}, which must be from 0 to {logits.shape[1] - 1}"
    if wrong := int((~np.isfinite(logits)).sum()):
        return f"holds {logits.size} test logits, of which {wrong} are not finite"
    return ""


def how_to_repeat(path: Path, summary: RunSummary) -> str:
    """Return how a run's logits and weights can be made again, for errors."""
    if summary.is_given:
        return f"delete {path} and repeat one of its students: the command of that run with overwrite=true"
    if not is_file(path / CONFIG_FILE):
        return "train the run again: its command with overwrite=true"
    folder = path.resolve()
    words = ["kdbench", "--config-path", str(folder), "--config-name", Path(CONFIG_FILE).stem]
    if folder.parent.name == "runs":
        words.append(f"output_root={folder.parents[1]}")
    return f"train the run again: {shlex.join([*words, 'overwrite=true'])}"


def check_same_images(a: ComparedRun, b: ComparedRun) -> None:
    """Check that two runs have logits for the same classes and images, in the same order.

    Raises:
        ConfigError: they have not. Its key is the argument of the second run.
    """
    first, second = f"{a.argument} ({a.path})", f"{b.argument} ({b.path})"
    rule = "runs of the same data can be compared; give one of those as " + b.argument
    classes, images = ([run.predictions.logits.shape[axis] for run in (a, b)] for axis in (1, 0))
    if classes[0] != classes[1]:
        fault = f"{first} has {classes[0]} classes, and {second} has {classes[1]}"
    elif a.summary.class_names and b.summary.class_names and a.summary.class_names != b.summary.class_names:
        names = zip(a.summary.class_names, b.summary.class_names, strict=True)
        number, (one, other) = next((number, pair) for number, pair in enumerate(names) if pair[0] != pair[1])
        fault = f"class {number} is {one!r} in {first} and {other!r} in {second}"
    elif a.labels_sha256 != b.labels_sha256:
        fault = (
            f"{first} and {second} have logits of other test images, or in another order: {images[0]} labels with "
            f"SHA-256 {a.labels_sha256[:12]} and {images[1]} with {b.labels_sha256[:12]}{recorded_hashes(a, b)}"
        )
    elif a.test_sha256 and b.test_sha256 and a.test_sha256 != b.test_sha256:
        fault = f"{first} and {second} have logits of other test images with equal labels{recorded_hashes(a, b)}"
    elif not (a.test_sha256 and b.test_sha256) and a.summary.dataset != b.summary.dataset:
        fault = f"{first} is of data set {a.summary.dataset}, and {second} of {b.summary.dataset}"
    else:
        return
    raise ConfigError(f"{fault}; {rule}", code="mismatch", key=b.argument)


def recorded_hashes(a: ComparedRun, b: ComparedRun) -> str:
    """Return the recorded hashes of the test images for an error; empty unless both are known."""
    if not (a.test_sha256 and b.test_sha256):
        return ""
    return f"; data_sha256.test is {a.test_sha256[:12]} and {b.test_sha256[:12]}"


def check_has_weights(run: ComparedRun) -> None:
    """Check that the files from which features are computed are there.

    Raises:
        ConfigError: one is missing.
    """
    missing = [name for name in (CONFIG_FILE, WEIGHTS) if not is_file(run.path / name)]
    if missing:
        raise ConfigError(
            f"--features needs the weights of both runs: {run.argument} ({run.path}) lacks {' and '.join(missing)}; "
            f"copy them from where the run was trained, or {how_to_repeat(run.path, run.summary)}",
            code="not_found",
            key=run.argument,
        )
