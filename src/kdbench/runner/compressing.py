"""Runs that compress the network of another run: compressed once, evaluated, and stored like any run."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

from kdbench import metrics
from kdbench.compress import Compressed, Subject, fault_of_order
from kdbench.config import ModelConfig, RunConfig, RuntimeConfig
from kdbench.config.derived import CompressConfig
from kdbench.data import Dataset, load
from kdbench.data.batches import plain_batches
from kdbench.errors import ConfigError
from kdbench.models import Network, build, summarize, weights
from kdbench.models.compressed import MASKED
from kdbench.models.counts import count_weights
from kdbench.rundir.directory import RunDirectory, roots_of
from kdbench.rundir.related import RelatedRun, found_related, is_key
from kdbench.rundir.student import build_trained
from kdbench.rundir.summary import KEY, RunSummary, names
from kdbench.runner.build import derived_seed
from kdbench.runner.imported import UNKNOWN
from kdbench.runner.results import Predictions, fidelity, write_result
from kdbench.system.device import place, torch_settings
from kdbench.system.logs import RunLog
from kdbench.system.random import seeded
from kdbench.system.signals import raise_if_requested
from kdbench.train.evaluate import evaluation_batch, predict

log = logging.getLogger(__name__)

NO_TRAINING: dict[str, Any] = names(
    recipe=None, epochs=None, best_val_epoch=None, test_acc_final=None, train_seconds=None, images_per_second=None,
    peak_memory_bytes=None, logit_cache=None,
)  # fmt: skip
"""Keys of a summary that are null for a run without a training of its own."""


def compress_network(config: RunConfig, directory: RunDirectory) -> None:
    """Compress the network of a run's parent, evaluate it, and write the run directory.

    Args:
        config: resolved config of kind `compress`.
        directory: its run directory; the caller holds its lock.

    Raises:
        ConfigError: the parent is not finished, or its network cannot be compressed in this way.
    """
    assert config.parent is not None
    assert config.compress is not None
    parent = found_related(config, config.parent, "parent")
    check_order(parent.config.compress, parent.network, config.compress)
    with torch_settings(config.runtime):
        dataset = load(config.data, config.runtime.device)
        compressed = compress_parent(config, parent, dataset)
        config = dataclasses.replace(config, student=named(compressed, config))
        network = load_compressed(config.student, compressed, dataset)
        place(network, config.runtime)
        predictions = Predictions(
            predict(network, dataset, dataset.val, config.runtime),
            predict(network, dataset, dataset.test, config.runtime),
        )
        check_finite_logits(predictions, config)
        before = logits_in_fp32(parent, dataset, config.runtime)
    write_compressed(config, directory, dataset, parent, network, predictions, before)


def compress_parent(config: RunConfig, parent: RelatedRun, dataset: Dataset) -> Compressed:
    """Return the compressed network of a run's parent.

    Args:
        config: config of kind `compress`.
        parent: its parent.
        dataset: data of the calibration.

    Raises:
        ConfigError: the network cannot be compressed in this way.
    """
    assert config.compress is not None
    network, _ = build_trained(parent.config, dataset.spec, parent.directory.weights)
    subject = Subject(
        parent.network,
        summarize(parent.network, dataset.spec, "parent", trained=False),
        network.plain_copy().eval(),
        dataset.spec,
        lambda: training_images(config, dataset),
    )
    with seeded(derived_seed(config.init_seed, "compression")):
        compressed: Compressed = config.compress.target(config.compress.params).apply(subject)
    return compressed


def check_order(before: CompressConfig | None, network: ModelConfig, compress: CompressConfig) -> None:
    """Check that a compression can follow what was done to a network.

    Args:
        before: compression of which the network is the direct result, or None.
        network: the network.
        compress: the compression.

    Raises:
        ConfigError: it cannot.
    """
    rounded = before.name if before and not before.target.trainable else None
    masks = "magnitude" if network.target == MASKED else None
    if fault := fault_of_order(compress, rounded, masks):
        raise ConfigError(f"{network.name}: {fault}", code="wrong_order", key="chain")


def named(compressed: Compressed, config: RunConfig) -> ModelConfig:
    """Return the architecture of a compressed network with the name that its run has."""
    return dataclasses.replace(compressed.model, name=config.student.name, weights=None, weights_hash=None)


def load_compressed(model: ModelConfig, compressed: Compressed, dataset: Dataset) -> Network:
    """Return a compressed network with its weights, as anyone builds it from its config.

    Raises:
        ConfigError: its class returned a config and weights that do not fit.
    """
    with seeded(0):
        network = build(model, dataset.spec, (), trained=False)
    weights.load_into(network, weights.storable(compressed.weights), f"the network compressed by {model.target}")
    return network.eval()


def training_images(config: RunConfig, dataset: Dataset) -> Iterator[Tensor]:
    """Yield all training images in an order that the data seed gives: batches [B, C, H, W], without augmentation."""
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(config.data_seed))
    size = evaluation_batch(config.runtime.device, dataset.spec.input_shape)
    for rows in order.to(dataset.train.labels.device).split(size):  # a copy of all images would double the memory
        raise_if_requested()
        yield from plain_batches(dataset, dataset.train.take(rows), size, channels_last=False)


def check_finite_logits(predictions: Predictions, config: RunConfig) -> None:
    """Check that a compressed network computes finite logits.

    Raises:
        ConfigError: it does not.
    """
    if not bool(predictions.val.isfinite().all() and predictions.test.isfinite().all()):
        assert config.compress is not None
        raise ConfigError(
            f"compress={config.compress.name} gives logits that are not finite; use a milder compression",
            code="not_finite",
            key=config.compress.name,
        )


def write_compressed(
    config: RunConfig,
    directory: RunDirectory,
    dataset: Dataset,
    parent: RelatedRun,
    network: Network,
    predictions: Predictions,
    before: Tensor,
) -> None:
    """Write the run directory of a compressed network: arguments and results of `compress_network`."""
    directory.create()
    directory.clear()
    directory.write_config(config)
    model_summary = summarize(config.student, dataset.spec, "student", trained=False)
    nonzero, sparsity = count_weights(network)
    teacher = teacher_logits(parent.summary, roots_of(config))
    training = (
        NO_TRAINING
        | (UNKNOWN if parent.summary.seed is None else {})
        | names(
            teacher_test_acc=parent.summary.teacher_test_acc,
            teacher_key=parent.summary.teacher_key,
            teacher_weights_sha256=parent.summary.teacher_weights_sha256,
            nonzero_params=nonzero,
            sparsity=sparsity,
            parent_weights_sha256=parent.summary.weights_sha256,
        )
        | fidelity(predictions.test, teacher)
        | fidelity_to_parent(predictions.test, before, dataset.test.labels.cpu().numpy())
    )
    log_file = RunLog(directory.log)
    log_file.open()
    try:
        accuracy = metrics.accuracy(predictions.test.numpy(), dataset.test.labels.cpu().numpy())
        log.info(
            "%s: test accuracy %.2f%% (%.2f%% before), sparsity %.1f%%, %d parameters (%d before)",
            config.student.name, 100 * accuracy, 100 * training[KEY.parent_test_acc], 100 * sparsity,
            model_summary.num_params, parent.summary.num_params or 0,
        )  # fmt: skip
    finally:
        log_file.close()
    state = network.body.state_dict()
    write_result(directory, config, dataset, model_summary, state, {}, predictions, training)


def logits_in_fp32(run: RelatedRun, dataset: Dataset, runtime: RuntimeConfig) -> Tensor:
    """Return the test logits [N, C] of a run's network in float32: those of its record, or computed where that rounded.

    Args:
        run: complete run.
        dataset: its data.
        runtime: resolved runtime in float32.
    """
    if run.summary.precision == "fp32":
        return load_file(run.directory.logits)["test_logits"].float()
    network, method = build_trained(run.config, dataset.spec, run.directory.weights)
    method = place(method, runtime) if method else None
    return predict(place(network, runtime), dataset, dataset.test, runtime, method)


def teacher_logits(summary: RunSummary, roots: Sequence[Path]) -> Tensor | None:
    """Return the test logits of a run's teacher, or None where there is no teacher or its run is gone.

    Args:
        summary: summary of the run.
        roots: output roots in which its teacher may lie.
    """
    key = summary.teacher_key or ""
    found = [file for root in roots for file in root.glob(f"runs/*_{key}/logits.safetensors")] if is_key(key) else []
    if summary.teacher_key and not found:
        log.info("teacher: its run %s is gone, and the fidelity to it is not computed", summary.teacher_key)
    return load_file(found[0])["test_logits"].float() if found else None


def fidelity_to_parent(test: Tensor, before: Tensor, labels: NDArray[np.integer]) -> dict[str, Any]:
    """Return the keys of a summary that compare test logits [N, C] with those of the network before compression.

    Args:
        test: logits after it.
        before: logits before it.
        labels: [N], true classes.
    """
    after, parent = test.numpy(), before.numpy()
    return names(
        parent_test_acc=metrics.accuracy(parent, labels),
        parent_agreement=metrics.agreement(after, parent),
        parent_kl_t1=metrics.kl_divergence(parent, after, temperature=1.0),
    )
