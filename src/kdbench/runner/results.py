"""Results: from logits and weights to the files that make a run complete."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from kdbench import metrics
from kdbench.config import RunConfig
from kdbench.data import DataSpec
from kdbench.data.dataset import Dataset
from kdbench.models import ModelSummary, weights
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.files import sha256
from kdbench.rundir.identity import GivenWeights, baseline_key, group_key, run_identity, section_identity
from kdbench.rundir.summary import KEY, SCHEMA_VERSION, RunSummary, Status, names
from kdbench.runner.environment import environment
from kdbench.teachers.store import weights_metadata


@dataclass(frozen=True)
class Predictions:
    """Logits [N, C] float32, on the CPU, of one set of weights."""

    val: Tensor
    test: Tensor


def write_result(
    directory: RunDirectory,
    config: RunConfig,
    dataset: Dataset,
    model_summary: ModelSummary,
    best_weights: Mapping[str, Tensor] | None,
    method_weights: Mapping[str, Tensor],
    predictions: Predictions,
    training: Mapping[str, Any],
) -> None:
    """Write weights and logits, then summary.json, whose presence means complete.

    Args:
        directory: run directory, which exists.
        config: resolved config.
        dataset: data of the predictions.
        model_summary: summary of the student.
        best_weights: weights by the architecture's own names; None for a run that holds no network.
        method_weights: those of the method, if it takes part in predictions.
        predictions: logits of these weights.
        training: keys of the summary about teacher and training.
    """
    metadata = weights_metadata(config.student, config.data, dataset.spec.num_classes)
    if method_weights:
        metadata[weights.METHOD_PART] = config.method.name
    if best_weights is not None:
        stored = weights.with_method(best_weights, method_weights)
        directory.write_with(directory.weights, lambda path: weights.save(stored, path, metadata))
    logits = {
        "val_logits": predictions.val,
        "test_logits": predictions.test,
        "val_labels": dataset.val.labels.cpu(),
        "test_labels": dataset.test.labels.cpu(),
    }
    directory.write_with(directory.logits, lambda path: path.write_bytes(save(logits)))
    content = {
        **known_before(directory, config, dataset.spec, model_summary, training[KEY.teacher_key]),
        **quality(predictions, dataset),
        **training,
    }
    summary = RunSummary(
        **content,
        status=Status.COMPLETE.value,
        data_sha256=data_sha256(dataset),
        config_sha256=sha256(directory.config) if directory.config.is_file() else None,
        metrics_sha256=sha256(directory.metrics) if directory.metrics.is_file() else None,
        weights_sha256=sha256(directory.weights) if best_weights is not None else None,
        logits_sha256=sha256(directory.logits),
        environment=environment(config),
    )
    directory.write_summary(summary)


def known_before(
    directory: RunDirectory, config: RunConfig, spec: DataSpec, model_summary: ModelSummary, teacher_key: str | None
) -> dict[str, Any]:
    """Return the keys of a summary that are known before the training: of complete and of failed runs.

    Args:
        directory: run directory.
        config: resolved config.
        spec: description of the data.
        model_summary: summary of the student.
        teacher_key: run key of the teacher.
    """
    identity = run_identity(config, teacher_key)
    return restated(config) | names(
        schema_version=SCHEMA_VERSION,
        run_key=directory.key,
        group_key=group_key(identity, config),
        baseline_key=baseline_key(identity),
        class_names=list(spec.class_names),
        input_shape=list(spec.input_shape),
        num_params=model_summary.num_params,
        macs=model_summary.macs,
    )


def restated(config: RunConfig) -> dict[str, Any]:
    """Return the keys of a summary that repeat the run's config, for readers that open nothing else."""
    teacher, given = config.teacher, config.method.target is GivenWeights
    return names(
        kind=config.kind,
        parent_key=config.parent.run if config.parent else None,
        compression={"steps": config.steps} if config.steps else None,
        student=config.student.name,
        teacher=teacher.model.name if teacher else None,
        method=config.method.name,
        role=getattr(config.method.target, "role", None),  # given weights have none
        dataset=config.data.name,
        method_params=section_identity(config.method.params) if given else asdict(config.method.params),
        recipe=config.recipe.settings(),
        stem=config.student.stem,
        precision=config.runtime.precision,
        seed=config.seed,
        init_seed=config.init_seed,
        data_seed=config.data_seed,
        logit_cache=teacher.cache == "on" if teacher else None,
        teacher_seed=teacher.seed if teacher and not teacher.checkpoint else None,
        num_train=config.data.params.num_train,
        num_val=config.data.params.num_val,
        num_test=config.data.params.num_test,
        validation=config.data.params.validation,
    )


def data_sha256(dataset: Dataset) -> dict[str, str]:
    """Return the hash of each split: of its images, labels, and which images of the set they are."""
    return {name: getattr(dataset, name).sha256 for name in ("train", "val", "test")}


def quality(predictions: Predictions, dataset: Dataset) -> dict[str, Any]:
    """Return the keys of a summary that follow from saved logits and labels."""
    val, test = predictions.val.numpy(), predictions.test.numpy()
    val_labels, test_labels = dataset.val.labels.cpu().numpy(), dataset.test.labels.cpu().numpy()
    best = metrics.accuracy(val, val_labels) if dataset.validation else None
    return names(best_val_acc=best) | quality_on_test(test, test_labels)


def quality_on_test(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> dict[str, Any]:
    """Return the keys of a summary that follow from test logits [N, C] and labels [N]."""
    return names(
        test_acc_best=metrics.accuracy(logits, labels),
        test_nll=metrics.nll(logits, labels),
        test_ece=metrics.expected_calibration_error(logits, labels),
        per_class_acc=metrics.per_class_accuracy(logits, labels),
    )


def fidelity(student_test: Tensor, teacher_test: Tensor | None) -> dict[str, Any]:
    """Return the keys of a summary that compare test logits with the teacher's; null without a teacher."""
    if teacher_test is None:
        return names(agreement=None, kl_t1=None, kl_t4=None)
    student, teacher = student_test.numpy(), teacher_test.numpy()
    return names(
        agreement=metrics.agreement(student, teacher),
        kl_t1=metrics.kl_divergence(teacher, student, temperature=1.0),
        kl_t4=metrics.kl_divergence(teacher, student, temperature=4.0),
    )
