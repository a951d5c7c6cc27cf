"""The artifacts of a run that is verified: its readable files, and its data where they are here."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from kdbench.config import RunConfig, RuntimeConfig
from kdbench.config.derived import TRAIN
from kdbench.data import Dataset, load
from kdbench.data.access import read_only
from kdbench.data.source import DataSpec
from kdbench.errors import ConfigError
from kdbench.methods.base import Method
from kdbench.models import Network
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.identity import GivenWeights
from kdbench.rundir.recorded_config import read_config
from kdbench.rundir.student import build_trained
from kdbench.rundir.summary import SUMMARY_FILE, RunSummary
from kdbench.system.cpu import available_cores
from kdbench.system.device import resolve_runtime
from kdbench.verify.checks import ROUNDING, Checks, NotChecked, needed

HALF = 2e-3
"""Change of losses and divergences that rounding of the logits to float16 may cause."""


@dataclass(frozen=True)
class Options:
    """Options of the command line."""

    trusted: tuple[str, ...] = ()
    """Modules that a config may name, beside kdbench's own."""
    quick: bool = False
    """True to compute no logits from weights."""
    data_root: Path | None = None
    """Folder of the data where the config's does not exist."""


@dataclass
class Artifacts:
    """The readable artifacts of a run. One that cannot be read is None, and a line says why."""

    directory: RunDirectory
    summary: RunSummary
    config: RunConfig | None = None
    runtime: RuntimeConfig | None = None
    """The recorded runtime, or the closest one that this machine has."""
    dataset: Dataset | None = None
    network: Network | None = None
    """The network with the best weights, on the CPU."""
    method: Method | None = None
    """The method with its weights, if it takes part in predictions."""
    logits: dict[str, Tensor] | None = None
    """Content of logits.safetensors, with checked shapes."""

    @property
    def is_given(self) -> bool:
        """True if this is a teacher whose weights were given and not trained here."""
        return self.config.method.target is GivenWeights if self.config else self.summary.is_given

    @property
    def is_trained(self) -> bool:
        """True if this is a run of kind train whose weights were not given."""
        return self.summary.kind == TRAIN and not self.is_given

    @property
    def num_classes(self) -> int:
        return self.summary.classes_and_shape[0]

    @property
    def spec(self) -> DataSpec:
        """Number of classes and shape of the images, as the summary says."""
        return DataSpec(*self.summary.classes_and_shape)

    @property
    def is_small(self) -> bool:
        """True if the run was kept in its small form (scripts/keep_results.py), without most of its files."""
        return not self.directory.config.is_file() and not self.directory.log.is_file()

    @property
    def is_half(self) -> bool:
        """True if the logits are float16, as in the small form."""
        return self.logits is not None and self.logits["test_logits"].element_size() == 2

    @property
    def tolerance(self) -> float:
        """Accepted difference of what is computed from the logits."""
        if self.logits is None or not self.is_half:
            return ROUNDING
        # Rounding keeps the order, so it can change a prediction only where it makes the two largest logits equal.
        best, second = self.logits["test_logits"].topk(2).values.T
        rarest = int(self.logits["test_labels"].long().bincount(minlength=self.num_classes).clamp(min=1).min())
        return HALF + int((best == second).sum()) / rarest


def read_artifacts(run: Artifacts, options: Options, checks: Checks) -> None:
    """Read the files that are there; one that cannot be read is a failed check."""
    files = run.directory
    if files.config.is_file():
        with checks.checking("config.yaml"):
            run.config = read_config(files.config, options.trusted)
            run.runtime = closest_runtime(run.config.runtime)
    if files.weights.is_file():
        with checks.checking("weights"):
            run.network, run.method = build_trained(needed(run.config, "config.yaml"), run.spec, files.weights)
            checks.passed("weights", "finite, and of the config's architecture")
    if files.logits.is_file():
        with checks.checking("logits"):
            tensors = load_file(files.logits)
            check_shapes(tensors, run.summary)
            run.logits = tensors
    if run.config and run.runtime:
        with checks.checking("data"):
            run.dataset = load_data(run.config, run.runtime.device, options.data_root)


def existing(file: Path) -> Path:
    """Return a file that a check needs.

    Raises:
        NotChecked: it does not exist.
    """
    if not file.is_file():
        raise NotChecked(f"there is no {file.name}")
    return file


def closest_runtime(recorded: RuntimeConfig) -> RuntimeConfig:
    """Return the recorded runtime, with device, threads and precision replaced where this machine lacks them."""
    runtime = dataclasses.replace(recorded, threads=min(int(recorded.threads), available_cores()))
    try:
        return resolve_runtime(runtime)
    except ConfigError:
        precision = "fp32" if runtime.precision == "fp16" else runtime.precision
        return resolve_runtime(dataclasses.replace(runtime, device="cpu", precision=precision))


def load_data(config: RunConfig, device: str, data_root: Path | None) -> Dataset:
    """Return the data of a run, without a download.

    Raises:
        NotChecked: they are not here.
    """
    keys, changes = config.data.params, dict[str, Any]()
    if hasattr(keys, "download"):
        changes["download"] = False
    if data_root and hasattr(keys, "root") and not Path(keys.root).expanduser().exists():
        changes["root"] = str(data_root)
    # Without the recorded content: other images are a failed check of their hashes, not missing data.
    data = dataclasses.replace(config.data, params=dataclasses.replace(keys, **changes), content=None)
    try:
        with read_only():
            return load(data, device)
    except ConfigError as error:
        raise NotChecked(f"{error}" + ("" if data_root else "; --data-root DIR names another folder")) from None


def check_shapes(tensors: Mapping[str, Tensor], summary: RunSummary) -> None:
    """Check that logits are finite and [N, C], and that labels [N] are classes.

    Args:
        tensors: content of logits.safetensors.
        summary: summary of the run, which holds the numbers of images.

    Raises:
        ConfigError: they are not.
    """
    sizes, classes = {"val": summary.num_val, "test": summary.num_test}, summary.classes_and_shape[0]
    for split in ("val", "test") if "val_logits" in tensors else ("test",):
        missing = [name for name in (f"{split}_logits", f"{split}_labels") if name not in tensors]
        if missing:
            raise damaged(f"logits.safetensors holds no {' and no '.join(missing)}")
        logits, labels, images = tensors[f"{split}_logits"], tensors[f"{split}_labels"], sizes[split]
        if list(logits.shape) != [images, classes] or list(labels.shape) != [images]:
            raise damaged(
                f"{split}_logits are {list(logits.shape)} and {split}_labels {list(labels.shape)}; "
                f"for {images} images they must be [{images}, {classes}] and [{images}]"
            )
        if not logits.is_floating_point() or not bool(logits.isfinite().all()):
            raise damaged(f"{split}_logits are not all finite numbers")
        if labels.is_floating_point() or not bool(((labels >= 0) & (labels < classes)).all()):
            raise damaged(f"{split}_labels are not all classes from 0 to {classes - 1}")


def damaged(message: str) -> ConfigError:
    """Return the error for a logits.safetensors with wrong content."""
    return ConfigError(message, code="damaged", key="logits.safetensors")


def find_teacher(run: Artifacts) -> Path:
    """Return the run directory of the teacher. Errors: see `find_beside`."""
    return find_beside(run, run.summary.teacher_key, "teacher")


def find_beside(run: Artifacts, key: str | None, what: str) -> Path:
    """Return the run directory of a key, which lies beside the run's own, or in a shared root of its config.

    Args:
        run: the run.
        key: run key that it records.
        what: name of the other run, for people.

    Raises:
        NotChecked: there is none.
    """
    shared = [Path(root).expanduser() / "runs" for root in run.config.shared_roots] if run.config else []
    # The key is as untrusted as the rest: nothing else may become part of a path.
    valid = re.fullmatch("[0-9a-f]{16}", str(key)) is not None
    places = (run.directory.path.parent, *shared) if valid else ()
    found = [folder for place in places for folder in sorted(place.glob(f"*_{key}"))]
    if not found:
        also = ", or in its shared_roots" if shared else ""
        raise NotChecked(f"needs the {what}; no run with the key {key} lies beside this one{also}")
    # Beside a student there may be only the logit cache of a teacher in a shared root.
    return next((folder for folder in found if (folder / SUMMARY_FILE).is_file()), found[0])
