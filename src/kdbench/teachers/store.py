"""The teacher store: load a teacher from its run directory, and verify it.

A teacher is an ordinary run (`method=ce`) with its own recipe and seed, so it is found by its key like any run.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from kdbench import metrics
from kdbench.config import DataConfig, ModelConfig, RunConfig
from kdbench.data.dataset import Dataset
from kdbench.data.source import DataSpec
from kdbench.errors import ConfigError
from kdbench.methods.base import Requires
from kdbench.models import Network, build, fuse_batch_norm, weights
from kdbench.models.checkpoint_files import read_checkpoint
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.files import sha256
from kdbench.rundir.identity import architecture_identity, checkpoint_path, given_config, teacher_data
from kdbench.rundir.summary import RunSummary
from kdbench.system.device import autocast_dtype, place
from kdbench.train.evaluate import predict

log = logging.getLogger(__name__)

ACCURACY_TOLERANCE = 0.005
"""Allowed difference from the recorded validation accuracy: devices round differently."""


@dataclass(frozen=True)
class Teacher:
    """A verified teacher, with what its run directory records of the test set."""

    directory: RunDirectory
    network: Network
    """The network with fused batch norm, for inference only."""
    weights_sha256: str
    test_logits: Tensor
    test_acc: float


def build_teacher(config: RunConfig, spec: DataSpec, stages: tuple[str, ...] = ()) -> Network:
    """Return the teacher's network in evaluation mode, without its weights."""
    assert config.teacher is not None
    network = build(config.teacher.model, spec, stages, "teacher", trained=config.teacher.is_trained)
    data, own = config.data.params, teacher_data(config).params
    if (own.mean, own.std) != (data.mean, data.std):
        network.adapt_normalisation((data.mean, data.std), (own.mean, own.std))
    return place(network, config.runtime).eval()


def check_checkpoint(config: RunConfig, spec: DataSpec) -> None:
    """Check that `teacher.checkpoint`, if given, can be read and fits the teacher's architecture. Writes nothing.

    Raises:
        ConfigError: it cannot be read, or does not fit.
    """
    if config.teacher and config.teacher.checkpoint:
        file = given_config(config).method.params  # raises if there is no such file
        case = (file.sha256, file.key, repr(architecture_identity(config.teacher.model)), spec)
        if case not in _fitting:
            load_checkpoint(build_teacher(config, spec), config)
            _fitting.add(case)


_fitting: set[tuple[object, ...]] = set()
"""Files that this process has read, with the architectures that they fit."""


def load_checkpoint(network: Network, config: RunConfig) -> list[str]:
    """Load `teacher.checkpoint` into the teacher's network, and return remarks for the user."""
    assert config.teacher is not None
    path, own = checkpoint_path(config), network.body.state_dict()
    try:
        found, remarks = read_checkpoint(path, own, config.teacher.checkpoint_key)
    except ConfigError as error:
        key = error.key or "teacher.checkpoint"
        text = f"{key} (for teacher={config.teacher.model.name}): {error}"
        raise ConfigError(text, code=error.code, key=key) from None
    weights.load_state(network.body, found)
    return remarks


def weights_metadata(model: ModelConfig, data: DataConfig, num_classes: int) -> dict[str, Any]:
    """Return what weights are valid for; it is stored beside them, and checked when they serve as a teacher."""
    return {
        "architecture": architecture_identity(model),
        "number of classes": num_classes,
        "normalisation": {"mean": data.params.mean, "std": data.params.std},
    }


def load_verified(directory: RunDirectory, config: RunConfig, requires: Requires, dataset: Dataset) -> Teacher:
    """Load a teacher and check that it is what its run directory and this run's config record.

    Args:
        directory: run directory of the teacher.
        config: resolved config of the student's run.
        requires: stages that the network must compute.
        dataset: data set, to measure the validation accuracy on.

    Raises:
        ConfigError: with both sides of what differs.
    """
    assert config.teacher is not None
    summary = directory.read_summary()
    remedy = f"delete {directory.path} to have this teacher trained again"
    check_metadata(directory, config, dataset.spec.num_classes, remedy)
    check_hash(directory.weights, summary.weights_sha256, remedy)
    check_hash(directory.logits, summary.logits_sha256, remedy)
    network = build_teacher(config, dataset.spec, requires.teacher_network_stages)
    weights.load_into(network, weights.read(directory.weights), str(directory.weights))
    network = fuse_batch_norm(network, autocast_dtype(config.runtime))
    check_accuracy(network, directory, summary, config, dataset, remedy)
    test_logits = load_file(directory.logits)["test_logits"]
    test_acc = metrics.accuracy(test_logits.numpy(), dataset.test.labels.cpu().numpy())
    assert summary.weights_sha256 is not None
    return Teacher(directory, network, summary.weights_sha256, test_logits, test_acc)


def check_hash(file: Path, recorded: str | None, remedy: str) -> None:
    """Check that a file is the one that the summary records."""
    try:
        actual = sha256(file)
    except OSError as error:
        raise ConfigError(
            f"{file} cannot be read ({error.strerror}); {remedy}", code="damaged", key="teacher"
        ) from None
    if actual != recorded:
        raise ConfigError(
            f"{file} is not the file that its summary.json records: "
            f"its sha256 is {actual[:12]}..., {str(recorded)[:12]}... is recorded; {remedy}",
            code="mismatch",
            key="teacher",
        )


def check_metadata(directory: RunDirectory, config: RunConfig, num_classes: int, remedy: str) -> None:
    """Check that the weights are of the teacher's architecture, classes and normalisation."""
    assert config.teacher is not None
    try:
        recorded = weights.read_metadata(directory.weights)
    except ConfigError as error:
        raise ConfigError(f"{error}; {remedy}", code=error.code, key="teacher") from None
    for name, expected in weights_metadata(config.teacher.model, teacher_data(config), num_classes).items():
        if recorded.get(name) != expected:
            raise ConfigError(
                f"{directory.weights}: {name} is {recorded.get(name)} in the file and {expected} in this run; {remedy}",
                code="mismatch",
                key="teacher",
            )


_verified: set[tuple[object, ...]] = set()
"""Teachers whose accuracy this process has measured already."""


def check_accuracy(
    network: Network, directory: RunDirectory, summary: RunSummary, config: RunConfig, dataset: Dataset, remedy: str
) -> None:
    """Check the validation accuracy measured here against the recorded one, once per process and teacher.

    Without validation the summary has none: that of the recorded logits takes its place.
    """
    case = (directory.path, summary.weights_sha256, summary.best_val_acc, repr(config.runtime))
    if case in _verified:
        return
    logits = predict(network, dataset, dataset.val, config.runtime).numpy()
    measured = metrics.accuracy(logits, dataset.val.labels.cpu().numpy())
    recorded = summary.best_val_acc
    if not summary.validation:
        recorded_logits = load_file(directory.logits)["val_logits"].numpy()
        recorded = metrics.accuracy(recorded_logits, dataset.val.labels.cpu().numpy())
    tolerance = max(ACCURACY_TOLERANCE, 2 / len(dataset.val))  # two images may lie on the border
    if recorded is None or abs(measured - recorded) > tolerance:
        raise ConfigError(
            f"{directory.path}: the teacher's validation accuracy is {measured:.4f} here and {recorded} in its "
            f"{'summary.json' if summary.validation else 'logits.safetensors'} (tolerance {tolerance}); {remedy}",
            code="mismatch",
            key="teacher",
        )
    warn_at_chance(measured, directory, dataset)
    _verified.add(case)


def warn_at_chance(accuracy: float, directory: RunDirectory, dataset: Dataset) -> None:
    """Log a line if a teacher is no better than a constant guess: its logits then teach nothing about the classes."""
    labels = dataset.val.labels
    guess = float(labels.bincount().max()) / len(labels)
    if accuracy <= guess + 2 * (guess * (1 - guess) / len(labels)) ** 0.5:
        log.info(
            "teacher: at chance level: %.1f%% on the %d validation images, a constant guess has %.1f%%: %s",
            100 * accuracy, len(labels), 100 * guess, directory.path,
        )  # fmt: skip


def forget_verified() -> None:
    """Verify every teacher again, as a new process would."""
    _verified.clear()
    _fitting.clear()
