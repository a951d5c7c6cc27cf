"""The teacher store: find, verify, load, or have a teacher trained exactly once.

A teacher is an ordinary run (`method=ce`) with its own recipe and seed, so it is found by its key like any run. This
module is handed the function that carries out a run, and does not import it.
"""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from kdbench import metrics
from kdbench.config import MethodConfig, RunConfig
from kdbench.data.dataset import IMAGE_SHAPE, NUM_CLASSES, Dataset
from kdbench.errors import ConfigError
from kdbench.logs import logged
from kdbench.methods.ce import CrossEntropy
from kdbench.methods.method import Needs
from kdbench.models import Network, build, describe, folded, weights
from kdbench.runs import RunDirectory, identity, key_of, sha256
from kdbench.runtime import narrow, placed
from kdbench.summary import Predictions, fidelity, weights_metadata, write_result
from kdbench.train.evaluate import predict

log = logging.getLogger(__name__)

ACCURACY_TOLERANCE = 0.005
"""Devices round differently, so a teacher may be off by this much from its recorded validation accuracy."""


@dataclass(frozen=True)
class Teacher:
    """A verified teacher, and what its run directory says of the test set."""

    directory: RunDirectory
    network: Network
    """Folded: for inference only."""
    weights_sha256: str
    test_logits: Tensor
    test_acc: float


def teacher_run(config: RunConfig) -> RunConfig:
    """The ordinary run that trains this run's teacher: its own recipe and seed, this run's data and runtime."""
    assert config.teacher is not None
    seed = config.teacher.seed
    return dataclasses.replace(
        config,
        student=config.teacher.model,
        teacher=None,
        method=MethodConfig("ce", CrossEntropy, CrossEntropy.Config()),
        recipe=config.teacher.recipe,
        seed=seed,
        init_seed=seed,
        data_seed=seed,
        overwrite=False,
    )


@dataclass
class GivenWeights:
    """Stands where a method's parameters stand, for a teacher that was not trained here."""

    file: str
    sha256: str


def given_run(config: RunConfig) -> RunConfig:
    """What stands in the store for `teacher.checkpoint`: a run of the method `checkpoint`, known by the file's hash."""
    path = checkpoint_path(config)
    if not path.is_file():
        raise ConfigError(f"teacher.checkpoint is {path}, and there is no such file; give a .safetensors or .pth file")
    params = GivenWeights(file=path.name, sha256=sha256(path))
    return dataclasses.replace(teacher_run(config), method=MethodConfig("checkpoint", GivenWeights, params))


def checkpoint_path(config: RunConfig) -> Path:
    assert config.teacher is not None
    assert config.teacher.checkpoint is not None
    return Path(config.teacher.checkpoint).expanduser()


def key_of_teacher(config: RunConfig) -> str:
    """The key of the run that is this run's teacher."""
    assert config.teacher is not None
    if config.teacher.checkpoint is None:
        return key_of(identity(teacher_run(config), teacher_key=None))
    run = given_run(config)
    return key_of_given(run, run.method.params.sha256)


def key_of_given(run: RunConfig, weights_file_sha256: str) -> str:
    """The key of given weights, from the run that would have trained them."""
    # How the weights came to be is unknown, and what the file is called changes nothing.
    whole = identity(run, teacher_key=None)
    return key_of({name: whole[name] for name in ("student", "data", "precision")} | {"sha256": weights_file_sha256})


def directory_of(config: RunConfig) -> RunDirectory:
    """Where this run's teacher is, or will be."""
    assert config.teacher is not None
    run = given_run(config) if config.teacher.checkpoint else teacher_run(config)
    return RunDirectory.of(run, key_of_teacher(config))


def obtain(config: RunConfig, needs: Needs, dataset: Dataset, train: Callable[[RunConfig], RunDirectory]) -> Teacher:
    """This run's teacher, on its device; trained or imported first if it is not in the store.

    Args:
        config: Resolved, with a teacher.
        needs: The stages that the network must answer.
        dataset: To check its validation accuracy on.
        train: Carries out a run, or finds it done.

    Raises:
        ConfigError: the checkpoint given, or the teacher found, is not what its config says.
    """
    assert config.teacher is not None
    if config.teacher.checkpoint is None:
        directory = train(teacher_run(config))
    else:
        directory = imported(config, dataset)
    return load_verified(directory, config, needs, dataset)


def built(config: RunConfig, stages: tuple[str, ...] = ()) -> Network:
    """The teacher's network, not yet loaded, in evaluation mode."""
    assert config.teacher is not None
    network = build(config.teacher.model, NUM_CLASSES, stages, "teacher")
    return placed(network, config.runtime).eval()


def check_checkpoint(config: RunConfig) -> None:
    """That `teacher.checkpoint`, if given, can be read and fits the teacher's architecture. Writes nothing.

    Raises:
        ConfigError: it cannot, or does not.
    """
    if config.teacher and config.teacher.checkpoint:
        load_checkpoint(built(config), config)


def load_checkpoint(network: Network, config: RunConfig) -> None:
    assert config.teacher is not None
    path = checkpoint_path(config)
    try:
        weights.load_into(network, weights.read(path), f"{path} (for teacher={config.teacher.model.name})")
    except ConfigError as error:
        raise ConfigError(f"teacher.checkpoint: {error}") from None


def imported(config: RunConfig, dataset: Dataset) -> RunDirectory:
    """The run directory of given weights: evaluated once, then found like any teacher's."""
    run, directory = given_run(config), directory_of(config)
    with directory.locked("this teacher's evaluation", config.on_busy):
        if directory.is_complete():
            return directory
        network = built(config)
        load_checkpoint(network, config)
        predictions = Predictions(
            predict(network, dataset, dataset.val, config.runtime),
            predict(network, dataset, dataset.test, config.runtime),
        )
        if not bool(predictions.val.isfinite().all() and predictions.test.isfinite().all()):
            raise ConfigError(f"teacher.checkpoint={checkpoint_path(config)} gives logits that are not finite")
        directory.create()
        directory.write_config(run)
        accuracy = metrics.accuracy(predictions.val.numpy(), dataset.val.labels.cpu().numpy())
        with logged(directory.log):
            log.info("%s: validation accuracy %.2f%%", checkpoint_path(config), 100 * accuracy)
        description = describe(run.student, NUM_CLASSES, IMAGE_SHAPE, "teacher")
        unknown = dict.fromkeys(UNKNOWN_OF_GIVEN_WEIGHTS)
        untaught = dict.fromkeys(("teacher_test_acc", "teacher_key", "teacher_weights_sha256"))
        training = unknown | untaught | fidelity(predictions.test, None)
        write_result(directory, run, dataset, description, network.body.state_dict(), predictions, training)
    return directory


UNKNOWN_OF_GIVEN_WEIGHTS = (
    "recipe", "seed", "init_seed", "data_seed", "epochs", "best_val_epoch", "test_acc_final", "train_seconds",
    "images_per_second", "peak_memory_bytes",
)  # fmt: skip


def load_verified(directory: RunDirectory, config: RunConfig, needs: Needs, dataset: Dataset) -> Teacher:
    """Load a teacher that is what its run directory and this run's config both say it is.

    Raises:
        ConfigError: naming both sides of what differs.
    """
    assert config.teacher is not None
    summary = directory.read_summary()
    remedy = f"delete {directory.path} to have this teacher made again"
    check_metadata(directory, config, remedy)
    for name, file in (("weights_sha256", directory.weights), ("logits_sha256", directory.logits)):
        check_hash(file, summary.get(name), remedy)
    network = built(config, needs.teacher_stages)
    weights.load_into(network, weights.read(directory.weights), str(directory.weights))
    network = folded(network, narrow(config.runtime), read=tuple(config.teacher.model.stages.values()))
    check_accuracy(network, directory, summary, config, dataset, remedy)
    test_logits = load_file(directory.logits)["test_logits"]
    test_acc = metrics.accuracy(test_logits.numpy(), dataset.test.labels.cpu().numpy())
    return Teacher(directory, network, summary["weights_sha256"], test_logits, test_acc)


def check_hash(file: Path, recorded: str | None, remedy: str) -> None:
    try:
        actual = sha256(file)
    except OSError as error:
        raise ConfigError(f"{file} cannot be read ({error.strerror}); {remedy}") from None
    if actual != recorded:
        raise ConfigError(
            f"{file} is not the file that its summary.json records: "
            f"sha256 {actual[:12]}... there, {str(recorded)[:12]}... recorded; {remedy}"
        )


def check_metadata(directory: RunDirectory, config: RunConfig, remedy: str) -> None:
    assert config.teacher is not None
    try:
        there = weights.read_metadata(directory.weights)
    except ConfigError as error:
        raise ConfigError(f"{error}; {remedy}") from None
    here = weights_metadata(config.teacher.model, config)
    for what, expected in here.items():
        if there.get(what) != expected:
            raise ConfigError(f"{directory.weights}: {what} is {there.get(what)} there and {expected} here; {remedy}")


_verified: set[tuple[object, ...]] = set()


def check_accuracy(
    network: Network,
    directory: RunDirectory,
    summary: Mapping[str, Any],
    config: RunConfig,
    dataset: Dataset,
    remedy: str,
) -> None:
    """Validation accuracy measured here against the recorded one, once per process and teacher."""
    case = (directory.path, summary.get("weights_sha256"), summary.get("best_val_acc"), repr(config.runtime))
    if case in _verified:
        return
    logits = predict(network, dataset, dataset.val, config.runtime).numpy()
    measured = metrics.accuracy(logits, dataset.val.labels.cpu().numpy())
    recorded = summary.get("best_val_acc")
    tolerance = max(ACCURACY_TOLERANCE, 2 / len(dataset.val))  # two images may lie on the border
    if not isinstance(recorded, float) or abs(measured - recorded) > tolerance:
        raise ConfigError(
            f"{directory.path}: the teacher's validation accuracy is {measured:.4f} here and {recorded} in its "
            f"summary.json (at most {tolerance} apart); {remedy}"
        )
    _verified.add(case)


def forget_verified() -> None:
    """Check every teacher again, as a new process would."""
    _verified.clear()
