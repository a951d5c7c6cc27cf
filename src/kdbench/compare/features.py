"""Similarity of the features of two runs, computed from their weights. Imports torch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdbench.compare.comparison import StageSimilarity
from kdbench.compare.read import ComparedRun, check_has_weights
from kdbench.data.source import DataSpec
from kdbench.errors import ConfigError
from kdbench.metrics import linear_cka
from kdbench.models import build, summarize
from kdbench.rundir.recorded_config import read_config
from kdbench.rundir.student import Student, load_student
from kdbench.rundir.unfinished import CONFIG_FILE
from kdbench.runner.images import read_test_images
from kdbench.system.random import seeded
from kdbench.system.signals import raise_if_requested
from kdbench.train.evaluate import evaluation_batch

FEW_IMAGES = 2
"""Images per feature below which the linear CKA of unrelated features is far above 0."""
Features = dict[str, NDArray[np.float32]]
"""Stage name to features [N, D]."""


def compare_features(
    a: ComparedRun, b: ComparedRun, data_root: Path | None, trusted: Sequence[str]
) -> tuple[list[StageSimilarity], list[str]]:
    """Return the linear CKA at every stage that both networks have, and notes for the reader.

    Args:
        a: first run, with weights.
        b: second run, with weights and logits of the same images.
        data_root: folder of the data; None: that of the run's config, or $KDBENCH_DATA.
        trusted: modules whose code the configs may name, beside kdbench's own.

    Raises:
        ConfigError: weights or data are missing, damaged or others than those of the run, or a config names code that
            is not trusted.
    """
    for run in (a, b):
        check_has_weights(run)
    students = [load_student(run.path, trusted) for run in (a, b)]
    usable = [usable_stages(run, trusted) for run in (a, b)]
    shared = [stage for stage in usable[0] if stage in usable[1]]
    if not shared:
        names = " and ".join(", ".join(stages) or "none" for stages in usable)
        return [], [f"the networks of A and B have no stage of the same name: {names}"]
    of_a, of_b = (
        features_of(run, student, shared, data_root, trusted) for run, student in zip((a, b), students, strict=True)
    )
    stages = [similarity(stage, of_a[stage], of_b[stage]) for stage in shared]
    widest = max(stages, key=lambda stage: max(stage.width_a, stage.width_b))
    width, images = max(widest.width_a, widest.width_b), len(a.labels)
    if images < FEW_IMAGES * width:
        few = f"{images} images are few for {width} features ({widest.stage})"
        return stages, [f"{few}: the CKA of any two networks is then high"]
    return stages, []


def usable_stages(run: ComparedRun, trusted: Sequence[str]) -> list[str]:
    """Return the stages of a run's network that can be computed, in the order of its config."""
    config = read_config(run.path / CONFIG_FILE, trusted)
    summary = summarize(config.student, DataSpec(*run.summary.classes_and_shape), "student", trained=False)
    return [stage for stage in config.student.stages if stage not in summary.refused]


def features_of(
    run: ComparedRun, student: Student, stages: Sequence[str], data_root: Path | None, trusted: Sequence[str]
) -> Features:
    """Return features [N, D] float32 of a run's test images at some stages; computed in float32 on the CPU."""
    images = test_images(run, data_root, trusted)
    config, spec = read_config(run.path / CONFIG_FILE, trusted), DataSpec(*run.summary.classes_and_shape)
    network = build(config.student, spec, stages, trained=False).eval()
    network.body.load_state_dict(student.network.body.state_dict())
    parts: dict[str, list[Tensor]] = {stage: [] for stage in stages}
    with torch.no_grad(), seeded(0):  # for networks that draw random numbers in evaluation mode too
        for batch in images.split(evaluation_batch("cpu", spec.input_shape)):
            raise_if_requested()
            scaled = batch.movedim(-1, 1).float().div(255)
            features = network(scaled.sub(student.mean).div(student.std)).features
            for stage in stages:
                parts[stage].append(pooled(features[stage].float()))
    return {stage: torch.cat(tensors).numpy() for stage, tensors in parts.items()}


def test_images(run: ComparedRun, data_root: Path | None, trusted: Sequence[str]) -> Tensor:
    """Return the test images [N, H, W, C] uint8 of a run.

    Raises:
        ConfigError: they are not here, or are not those of the logits.
    """
    found = read_test_images(run.path, data_root, trusted, most_bytes=None)
    if isinstance(found, str):
        raise ConfigError(
            f"--features needs the test images of {run.argument} ({run.path}): {found}",
            code="not_found",
            key="--data-root",
        )
    images, labels = found
    if not np.array_equal(labels, run.labels):
        raise ConfigError(
            f"--features: the test labels of the data here are not those of the logits of {run.argument} ({run.path}); "
            "--data-root DIR names the folder that holds the data of the run",
            code="mismatch",
            key="--data-root",
        )
    return torch.from_numpy(images)


def pooled(features: Tensor) -> Tensor:
    """Return features [N, D]: maps [N, C, H, W] averaged over space, tokens [N, T, D] over tokens."""
    if features.ndim == 3:
        return features.mean(1)
    return features.flatten(2).mean(2) if features.ndim > 3 else features


def similarity(stage: str, a: NDArray[np.float32], b: NDArray[np.float32]) -> StageSimilarity:
    """Return the similarity of features [N, D_a] and [N, D_b]."""
    try:
        cka = linear_cka(a, b)
    except ValueError:
        cka = None
    return StageSimilarity(stage, a.shape[1], b.shape[1], cka)
