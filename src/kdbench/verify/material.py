"""A run that is verified: its files as far as they can be read, its data as far as they are here."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from kdbench.config import RunConfig, RuntimeConfig
from kdbench.data import Dataset, load
from kdbench.data.dataset import NUM_CLASSES
from kdbench.errors import ConfigError
from kdbench.models import Network, build, weights
from kdbench.processors import available_cores
from kdbench.recorded import read_config
from kdbench.report.runs import GIVEN
from kdbench.runs import RunDirectory
from kdbench.runtime import resolve
from kdbench.teachers import GivenWeights
from kdbench.verify.findings import ROUNDING, Findings, NotChecked, needed

HALF = 2e-3
"""What rounding logits to float16 may change in losses and divergences."""


@dataclass(frozen=True)
class Options:
    """Of the command line."""

    trusted: tuple[str, ...] = ()
    """Modules that a config may name, beside kdbench's own."""
    quick: bool = False
    """Do not compute logits from weights."""
    data_root: Path | None = None
    """Where the data are if not where the config says."""


@dataclass
class Run:
    """What can be read of a run. A part is None if it cannot; then a line says why."""

    directory: RunDirectory
    summary: Mapping[str, Any]
    config: RunConfig | None = None
    runtime: RuntimeConfig | None = None
    """The recorded one, or what comes closest to it here."""
    dataset: Dataset | None = None
    network: Network | None = None
    """With the best weights, on the CPU."""
    logits: dict[str, Tensor] | None = None
    """All that logits.safetensors holds, checked for its shape."""

    @property
    def is_given(self) -> bool:
        """A teacher whose weights were given, not trained here."""
        return self.config.method.target is GivenWeights if self.config else self.summary.get("method") == GIVEN

    @property
    def is_small(self) -> bool:
        """Kept in its small form (scripts/keep_results.py), which leaves out most of it."""
        return not self.directory.config.is_file() and not self.directory.log.is_file()

    @property
    def is_half(self) -> bool:
        """The small form's logits are float16."""
        return self.logits is not None and self.logits["test_logits"].element_size() == 2

    @property
    def tolerance(self) -> float:
        """Of what is computed from the logits."""
        if self.logits is None or not self.is_half:
            return ROUNDING
        # Rounding keeps the order, so it can change a prediction only where it makes the two largest logits equal.
        best, second = self.logits["test_logits"].topk(2).values.T
        rarest = int(self.logits["test_labels"].long().bincount(minlength=NUM_CLASSES).clamp(min=1).min())
        return HALF + int((best == second).sum()) / rarest


def read_parts(run: Run, options: Options, found: Findings) -> None:
    """Read what is there, and say what of it cannot be read."""
    files = run.directory
    if files.config.is_file():
        with found.checking("config.yaml"):
            run.config = read_config(files.config, options.trusted)
            run.runtime = closest(run.config.runtime)
    if files.weights.is_file():
        with found.checking("weights"):
            state = weights.read(files.weights)
            network = build(needed(run.config, "config.yaml").student, NUM_CLASSES)
            weights.load_into(network, state, files.weights.name)
            run.network = network
            found.holds("weights", "finite, and of the config's architecture")
    if files.logits.is_file():
        with found.checking("logits"):
            tensors = load_file(files.logits)
            check_shapes(tensors, run.summary)
            run.logits = tensors
    if run.config and run.runtime:
        with found.checking("data"):
            run.dataset = load_data(run.config, run.runtime.device, options.data_root)


def there(file: Path) -> Path:
    if not file.is_file():
        raise NotChecked(f"there is no {file.name}")
    return file


def closest(recorded: RuntimeConfig) -> RuntimeConfig:
    """The recorded runtime, but for a device, threads and a precision that this machine does not have."""
    runtime = dataclasses.replace(recorded, threads=min(int(recorded.threads), available_cores()))
    try:
        return resolve(runtime)
    except ConfigError:
        precision = "fp32" if runtime.precision == "fp16" else runtime.precision
        return resolve(dataclasses.replace(runtime, device="cpu", precision=precision))


def load_data(config: RunConfig, device: str, data_root: Path | None) -> Dataset:
    data = dataclasses.replace(config.data, download=False)
    if data_root and not Path(data.root).expanduser().exists():
        data.root = str(data_root)
    try:
        return load(data, device)
    except ConfigError as error:
        raise NotChecked(f"{error}" + ("" if data_root else "; or say where they are: --data-root DIR")) from None


def check_shapes(tensors: Mapping[str, Tensor], summary: Mapping[str, Any]) -> None:
    """That logits are finite [N, C], and labels [N] are classes.

    Raises:
        ConfigError: they are not.
    """
    for split in ("val", "test") if "val_logits" in tensors else ("test",):
        lacking = [name for name in (f"{split}_logits", f"{split}_labels") if name not in tensors]
        if lacking:
            raise ConfigError(f"logits.safetensors lacks {', '.join(lacking)}")
        logits, labels = tensors[f"{split}_logits"], tensors[f"{split}_labels"]
        images = summary.get(f"num_{split}")
        if list(logits.shape) != [images, NUM_CLASSES] or list(labels.shape) != [images]:
            raise ConfigError(
                f"{split}_logits are {list(logits.shape)} and {split}_labels {list(labels.shape)}; "
                f"of {images} images they must be [{images}, {NUM_CLASSES}] and [{images}]"
            )
        if not logits.is_floating_point() or not bool(logits.isfinite().all()):
            raise ConfigError(f"{split}_logits are not all finite numbers")
        if labels.is_floating_point() or not bool(((labels >= 0) & (labels < NUM_CLASSES)).all()):
            raise ConfigError(f"{split}_labels are not all classes from 0 to {NUM_CLASSES - 1}")


def teacher_folder(run: Run) -> Path:
    """The run that taught, beside this one.

    Raises:
        NotChecked: there is none.
    """
    key = run.summary.get("teacher_key")
    # The key is as untrusted as the rest: nothing else may become part of a path.
    found = sorted(run.directory.path.parent.glob(f"*_{key}")) if re.fullmatch("[0-9a-f]{16}", str(key)) else []
    if not found:
        raise NotChecked(f"needs the teacher, and no run of the key {key} is beside this one")
    return found[0]
