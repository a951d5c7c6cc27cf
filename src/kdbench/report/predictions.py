"""Predicted classes of a run on the test images, and its correctness on those for validation, from saved logits."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from kdbench.metrics.probability import Floats, Ints
from kdbench.report.runs import LOGITS, display_path

EXACT_BYTES = 4
"""Bytes per logit of the precision in which a run computes its accuracies; fewer are a later rounding."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of a run on the test images, without its logits: small enough to keep those of hundreds of runs."""

    labels: Ints
    """[N], true classes."""
    predicted: Ints
    """[N], classes with the largest logit; of equal logits the first."""
    tied: NDArray[np.bool_]
    """[N], True where rounding to half precision made the largest logits equal, so that the class is open."""
    num_classes: int

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Correctness of each image's predicted class, [N]; an open one counts as wrong."""
        return (self.predicted == self.labels) & ~self.tied


def read_predictions(folder: Path) -> Predictions | str | None:
    """Return the predictions in a run directory; None without logits, or what is wrong with them."""
    file = folder / LOGITS
    if not file.is_file():
        return None
    stat = file.stat()
    return read_file(file, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=2048)
def read_file(file: Path, mtime_ns: int, size: int) -> Predictions | str:
    """Return the predictions in logits.safetensors, in any float precision, or what is wrong with the file.

    Args:
        file: path of the file.
        mtime_ns: time of its last change, so that a file that is written anew is read anew.
        size: number of bytes of the file, for the same reason.
    """
    try:
        logits, labels = read_tensors(file)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        return f"{display_path(file)} cannot be read ({type(error).__name__}: {error}); its run counts without logits"
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not np.isfinite(logits).all():
        return f"{display_path(file)} holds no finite logits [N, C] with labels [N]; its run counts without logits"
    predicted = logits.argmax(axis=1).astype(np.min_scalar_type(logits.shape[1]))
    tied = np.zeros(len(labels), dtype=bool)
    if logits.itemsize < EXACT_BYTES:
        tied = (logits == logits.max(axis=1, keepdims=True)).sum(axis=1) > 1
    return Predictions(shared(labels.astype(np.int64).tobytes()), predicted, tied, logits.shape[1])


def read_tensors(file: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return test logits and labels as they are in the file; the validation images are not read."""
    with safe_open(file, "np") as tensors:
        return tensors.get_tensor("test_logits"), tensors.get_tensor("test_labels")


@lru_cache(maxsize=16)
def shared(labels: bytes) -> Ints:
    """Return labels as an array, one for all runs with the same test images."""
    return np.frombuffer(labels, dtype=np.int64)


def predictions_in(folder: Path | None) -> Predictions | None:
    """Return the predictions of a run directory, if its logits are there and usable."""
    found = read_predictions(folder) if folder else None
    return found if isinstance(found, Predictions) else None


def validation_correctness(folder: Path) -> NDArray[np.bool_] | None:
    """Return whether a run classifies each validation image correctly, [M]; None without these logits."""
    try:
        arrays = load_file(folder / LOGITS)
        return np.asarray(arrays["val_logits"].argmax(axis=1) == arrays["val_labels"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def same_images(a: Predictions, b: Predictions) -> bool:
    """Return whether two runs have the same number of classes and the same labels, image by image."""
    same = a.labels is b.labels or np.array_equal(a.labels, b.labels)
    return same and a.num_classes == b.num_classes


def known_pair(run: Path, teacher: Path) -> tuple[Ints, Ints, Ints] | None:
    """Return the predicted classes of a run and of a teacher, and labels, of images whose class neither leaves open.

    Returns:
        Three arrays [K]; None where there are no logits of the same images.
    """
    ours, theirs = predictions_in(run), predictions_in(teacher)
    if ours is None or theirs is None or not same_images(ours, theirs):
        return None
    known = ~(ours.tied | theirs.tied)
    return ours.predicted[known], theirs.predicted[known], theirs.labels[known]


def logits_in(folder: Path) -> Floats:
    """Return the test logits [N, C] float64 of a run whose predictions were read."""
    return read_tensors(folder / LOGITS)[0].astype(np.float64)
