"""Runs that measure the networks of finished runs: size, speed, memory, energy, and accuracy as they are executed."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.config import RunConfig, RuntimeConfig
from kdbench.config.derived import MeasureConfig
from kdbench.data import Dataset, load
from kdbench.deploy.energy import find_counter, measure_energy
from kdbench.deploy.execution import Execute, batches_of, onnx_execution
from kdbench.deploy.graph import graph_of
from kdbench.deploy.latency import Candidate, measure_in_turn
from kdbench.deploy.memory import peak_memory
from kdbench.deploy.sizes import compressed_size, plain_weights
from kdbench.errors import ConfigError
from kdbench.models import Network, summarize
from kdbench.models.compressed import QuantizedNetwork
from kdbench.models.counts import count_weights
from kdbench.models.plain import plain_module
from kdbench.rundir.directory import RunDirectory, roots_of
from kdbench.rundir.related import RelatedRun, locate, network_before, read_related
from kdbench.rundir.student import build_trained
from kdbench.rundir.summary import KEY, names
from kdbench.runner.compressing import (
    NO_TRAINING,
    fidelity_to_parent,
    logits_in_fp32,
    teacher_logits,
)
from kdbench.runner.imported import UNKNOWN
from kdbench.runner.results import Predictions, fidelity, write_result
from kdbench.system.device import place, synchronize, torch_settings
from kdbench.system.logs import RunLog
from kdbench.system.packages import installed_version
from kdbench.system.signals import raise_if_requested

log = logging.getLogger(__name__)


@dataclass
class MeasuredNetwork:
    """A network that is measured, in the engines that can execute it."""

    config: RunConfig
    directory: RunDirectory
    run: RelatedRun
    dataset: Dataset
    network: Network
    graph: bytes | None = None
    weights: bytes | None = None
    engines: dict[str, Execute] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    """Reason by the name of what cannot be measured."""
    candidates: dict[str, dict[int, Candidate]] = field(default_factory=dict)
    """By engine and batch."""

    @property
    def settings(self) -> MeasureConfig:
        assert self.config.measure is not None
        return self.config.measure


def measure_networks(runs: Sequence[tuple[RunConfig, RunDirectory]]) -> None:
    """Measure networks in turn, and write a run directory for each.

    Args:
        runs: resolved configs of kind `measure` that belong together, with their directories; the caller holds their
            locks.

    Raises:
        ConfigError: a network is not finished, or can be executed by no engine.
        Interrupted: a stop was requested while something was measured; nothing was written.
    """
    runtime, settings = runs[0][0].runtime, runs[0][0].measure
    assert settings is not None
    with torch_settings(runtime), torch.no_grad():
        subjects = [prepare(config, directory) for config, directory in runs]
        counter = find_counter(runtime.device)
        log.info("networks measured in turn: %d, in %d rounds", len(subjects), settings.rounds)
        time_subjects(subjects)
        joules: list[float | None] = [None] * len(subjects)
        if isinstance(counter, str):
            for subject in subjects:
                subject.missing["energy_mj_per_image"] = counter
        else:
            joules = [measure_energy(largest_pass(subject), counter) for subject in subjects]
        results = [
            (measurement_of(subject, j), predicted(subject)) for subject, j in zip(subjects, joules, strict=True)
        ]
    for subject, (measurement, predictions) in zip(subjects, results, strict=True):
        write_measurement(subject, measurement, predictions)


def prepare(config: RunConfig, directory: RunDirectory) -> MeasuredNetwork:
    """Return a network of a run with everything that executes it.

    Raises:
        ConfigError: the run is not finished, or no engine can execute its network.
    """
    raise_if_requested()
    assert config.parent is not None
    assert config.measure is not None
    settings, run = config.measure, measured_run(config)
    config = dataclasses.replace(config, student=run.network)  # a study plans it before the network is known
    dataset = load(config.data, config.runtime.device)
    network, method = build_trained(run.config, dataset.spec, run.directory.weights)
    subject = MeasuredNetwork(config, directory, run, dataset, network)
    try:
        subject.graph = graph_of(network, method, dataset.spec)
        subject.engines["onnx"] = onnx_execution(subject.graph, settings.threads)
    except ConfigError as error:
        subject.missing["onnx"] = str(error)
    if config.runtime.device != "cpu" and "onnx" in subject.engines:
        del subject.engines["onnx"]
        subject.missing["onnx"] = f"ONNX Runtime is used on the CPU, and this run measures {config.runtime.device}"
    if isinstance(network.body, QuantizedNetwork):
        subject.missing["torch"] = "the 8-bit network is an ONNX graph, which torch does not execute"
    else:
        plain = plain_module(network, method)
        subject.weights = plain_weights(plain)
        subject.engines["torch"] = torch_engine(plain, config.runtime)
    for name in {*subject.engines} - {*settings.engines}:
        del subject.engines[name]
    if not subject.engines:
        why = "; ".join(f"{name}: {reason}" for name, reason in subject.missing.items())
        raise ConfigError(
            f"{run.directory.path} can be executed by none of measure.engines={settings.engines} ({why})",
            code="not_executable",
            key="measure.engines",
        )
    return subject


def measured_run(config: RunConfig) -> RelatedRun:
    """Return the run that a run of kind measure measures. Its method may take part in predictions.

    Raises:
        ConfigError: it is not finished.
    """
    assert config.parent is not None
    return read_related(locate(config.parent.run, roots_of(config), "parent"), "parent", config.trust)


def torch_engine(module: nn.Module, runtime: RuntimeConfig) -> Execute:
    """Return a function that executes a module by torch on the device of the runtime."""
    module = place(module, runtime)
    memory_format = torch.channels_last if runtime.channels_last else torch.contiguous_format

    def execute(images: Tensor) -> Tensor:
        logits = module(images.to(runtime.device, memory_format=memory_format))
        synchronize(runtime.device)
        return logits.cpu()

    return execute


def time_subjects(subjects: Sequence[MeasuredNetwork]) -> None:
    """Measure the latency of every network, in every engine and at every batch, in turn."""
    for subject in subjects:
        test = next(batches_of(subject.dataset, subject.dataset.test))
        for name, execute in subject.engines.items():
            subject.candidates[name] = {
                batch: Candidate(execution(execute, repeated(test, batch)), batch) for batch in subject.settings.batches
            }
    settings = subjects[0].settings
    every = [c for subject in subjects for by_batch in subject.candidates.values() for c in by_batch.values()]
    measure_in_turn(every, settings.rounds, settings.warmup)


def largest_pass(subject: MeasuredNetwork) -> Candidate:
    """Return the pass of the largest batch in the first engine of a network."""
    return next(iter(subject.candidates.values()))[max(subject.settings.batches)]


def execution(execute: Execute, images: Tensor) -> Callable[[], object]:
    """Return a pass for some images."""
    return lambda: execute(images)


def repeated(images: Tensor, number: int) -> Tensor:
    """Return a number of images, some of them several times if there are fewer."""
    return images.repeat(-(-number // len(images)), 1, 1, 1)[:number].contiguous()


def predicted(subject: MeasuredNetwork) -> Predictions:
    """Return the logits of validation and test images in the first engine of a network."""
    execute = next(iter(subject.engines.values()))
    val, test = (
        torch.cat([execute(batch) for batch in batches_of(subject.dataset, split)])
        for split in (subject.dataset.val, subject.dataset.test)
    )
    return Predictions(val, test)


def measurement_of(subject: MeasuredNetwork, joules: float | None) -> dict[str, Any]:
    """Return the section `measurement` of the summary.

    Args:
        subject: measured network.
        joules: energy of its largest pass, or None.
    """
    settings, missing = subject.settings, subject.missing
    content = subject.graph if "onnx" not in missing else subject.weights
    assert content is not None
    batch = max(settings.batches)
    memory: int | str | None = None
    if subject.graph is not None and "onnx" not in missing:
        memory = peak_memory(subject.graph, batch, settings.threads)
    else:
        memory = "it is measured with ONNX Runtime, which cannot execute the network here"
    if isinstance(memory, str):
        missing[KEY.peak_memory_bytes] = memory
        memory = None
    latency = {
        name: {str(size): candidate.latency() for size, candidate in by_batch.items()}
        for name, by_batch in subject.candidates.items()
    }
    return {
        "together": settings.together,
        "device": settings.device,
        "threads": settings.threads,
        "rounds": settings.rounds,
        "size_bytes": len(content),
        "size_compressed_bytes": compressed_size(content),
        "size_format": "onnx" if content is subject.graph else "safetensors",
        "latency": {name: latency.get(name) for name in settings.engines},
        KEY.peak_memory_bytes: memory,
        "energy_mj_per_image": None if joules is None else 1e3 * joules / batch,
        "missing": missing,
        "versions": {name: installed_version(name) for name in ("onnx", "onnxruntime", "torch")},
    }


def fidelity_before(subject: MeasuredNetwork, test: Tensor) -> dict[str, Any]:
    """Return the keys of a summary that compare a network with the one before it was compressed; none without one."""
    before = network_before(subject.run, subject.config.trust)
    if before is None:
        return {}
    runtime = subject.config.runtime
    with torch_settings(runtime):
        logits = logits_in_fp32(before, subject.dataset, runtime)
    return fidelity_to_parent(test, logits, subject.dataset.test.labels.cpu().numpy())


def write_measurement(subject: MeasuredNetwork, measurement: Mapping[str, Any], predictions: Predictions) -> None:
    """Write the run directory of a measurement."""
    config, directory, run, dataset = subject.config, subject.directory, subject.run, subject.dataset
    nonzero, sparsity = count_weights(subject.network)
    directory.create()
    directory.clear()
    directory.write_config(config)
    summary = run.summary
    keys = (
        NO_TRAINING
        | (UNKNOWN if summary.seed is None else {})
        | names(
            teacher_test_acc=summary.teacher_test_acc,
            teacher_key=summary.teacher_key,
            teacher_weights_sha256=summary.teacher_weights_sha256,
            inference_params=summary.inference_params,
            inference_macs=summary.inference_macs,
            parent_weights_sha256=summary.weights_sha256,
            nonzero_params=nonzero,
            sparsity=sparsity,
            measurement=dict(measurement),
        )
        | fidelity(predictions.test, teacher_logits(summary, roots_of(config)))
        | fidelity_before(subject, predictions.test)
    )
    log_file = RunLog(directory.log)
    log_file.open()
    for what, why in subject.missing.items():
        log.debug("%s: not measured: %s", what, why)
    log_file.close()
    model_summary = summarize(config.student, dataset.spec, "student", trained=False)
    write_result(directory, config, dataset, model_summary, None, {}, predictions, keys)
