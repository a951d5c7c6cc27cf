"""Captured and replayed steps compute what eager ones compute; on the CPU a tape stands for a GPU's graphs."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from kdbench.config import RunConfig
from kdbench.data import Batches
from kdbench.methods.base import LossOutput, Method
from kdbench.methods.ce import CrossEntropy
from kdbench.rundir.directory import RunDirectory
from kdbench.runner.build import build_learner, build_parts
from kdbench.runner.policy import run_with_retries
from kdbench.runner.run import resolve_run
from kdbench.runner.run_all import Train
from kdbench.train import graphs
from kdbench.train.graphs import CapturedSteps, steps_for
from kdbench.train.learner import Learner
from kdbench.train.loop import fit
from kdbench.train.steps import EagerSteps
from tests.conftest import killed_after, rest_wide
from tests.every_method import every_method, for_few_images
from tests.loss_terms import Factor, multiply_terms
from tests.recipes import every_recipe, overrides
from tests.train.tape import TapeRecorder

EPOCHS = (
    "recipe.epochs=4", "data.num_train=56", "recipe.batch_size=16", "recipe.clip_norm=1.0", "teacher=resnet8",
    "teacher.seed=9", "student.widths=[8,8,16,16]", "teacher.widths=[8,8,16,16]",
)  # fmt: skip
"""Steps of 16, 16, 16 and 8 images, at four learning rates."""
STEPS = 16
PARTS = 4
"""Captures of a run: the batch and the learner's step, for batches of 16 and of 8 images."""
BATCHES = 2
"""Those of the batch alone."""

Small = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def warm_up(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Number of eager steps of a batch size before the first capture: 1, where a test does not set another."""
    steps = getattr(request, "param", 1)
    monkeypatch.setattr(graphs, "WARM_UP", steps)
    return steps


def captured(recorder: TapeRecorder, factor: Factor | None = None) -> Train:
    """Return a trainer that captures its steps. As on a GPU, no step looks at its values."""

    def train(learners: Sequence[Learner], batches: Batches, epochs: int) -> None:
        for learner in learners:
            learner.sums.ends_at_once = False
        recorder.modules = [module for learner in learners for module in (learner.student, learner.method)]
        with_factor(factor, CapturedSteps(batches, recorder))(learners, batches, epochs)

    return train


def with_factor(factor: Factor | None, steps: Any = None) -> Train:
    """Return a trainer that multiplies the loss terms by a factor."""

    def train(learners: Sequence[Learner], batches: Batches, epochs: int) -> None:
        for learner in learners:
            if factor:
                multiply_terms(learner, factor)
        fit(learners, batches, epochs, steps)

    return train


def completed(config: RunConfig, train: Train) -> RunDirectory:
    (result,) = run_with_retries([config], train=train)
    assert result.directory, result.error
    return result.directory


def in_folder(config: RunConfig, name: str) -> RunConfig:
    return dataclasses.replace(config, output_root=f"{config.output_root}/{name}")


def run_both(
    config: RunConfig, recorder: TapeRecorder, factor: Factor | None = None
) -> tuple[RunDirectory, RunDirectory]:
    """Return a run with captured steps and the same with eager ones, after a comparison of their numbers."""
    replayed = completed(in_folder(config, "captured"), captured(recorder, factor))
    eager = completed(in_folder(config, "eager"), with_factor(factor))
    assert_same_numbers(replayed, eager)
    return replayed, eager


def assert_same_numbers(first: RunDirectory, second: RunDirectory) -> None:
    def numbers(run: RunDirectory) -> list[list[str]]:
        rows = [line.split(",") for line in run.metrics.read_text().splitlines()]
        return [row[: rows[0].index("images_per_second")] for row in rows]

    assert numbers(first) == numbers(second)
    assert first.weights.read_bytes() == second.weights.read_bytes()
    assert first.logits.read_bytes() == second.logits.read_bytes()


def lines_about_graphs(run: RunDirectory) -> list[str]:
    return [line.partition("CUDA graphs: ")[2] for line in run.log.read_text().splitlines() if "CUDA graphs: " in line]


# The same numbers


@pytest.mark.parametrize("method", every_method())
def test_captured_steps_compute_what_eager_ones_compute(small: Small, method: str) -> None:
    recorder = TapeRecorder()
    keys = (f"method={method}", *for_few_images(method))
    run, _ = run_both(small(*keys, *EPOCHS, "recipe.nesterov=true"), recorder)
    # All steps but the first of each batch size are replayed.
    assert (recorder.captures, recorder.replays) == (PARTS, 2 * (STEPS - 2))
    assert lines_about_graphs(run) == []


@pytest.mark.parametrize("recipe", every_recipe())
def test_captured_steps_of_a_recipe_compute_what_eager_ones_compute(small: Small, recipe: str) -> None:
    recorder = TapeRecorder()
    method = "logit" if recipe == "vit" else "ce"
    run, _ = run_both(small(f"method={method}", *EPOCHS, *overrides(recipe)), recorder)
    assert (recorder.captures, recorder.replays) == (PARTS, 2 * (STEPS - 2))
    assert lines_about_graphs(run) == []


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["vit", "label_smoothing"])
def test_captured_steps_compute_the_same_with_images_in_the_memory_of_the_host(small: Small, recipe: str) -> None:
    recorder = TapeRecorder()
    run_both(small("method=logit", *EPOCHS, *overrides(recipe), "data.memory=host"), recorder)
    assert recorder.captures == PARTS


@pytest.mark.slow
def test_learners_with_schedules_of_their_own_are_captured_in_one_group(small: Small) -> None:
    shared = ("recipe.mixup=0.8", "recipe.policy=trivial_augment")
    own = (
        ("recipe.schedule_per=step", "recipe.optimizer=adamw", "recipe.lr=1e-3"),
        ("recipe.schedule=one_cycle", "recipe.warmup_epochs=2", "recipe.ema=0.9", "recipe.accumulate=2"),
    )
    recorder = TapeRecorder()
    configs = [small("method=ce", *EPOCHS, *shared, *keys) for keys in own]
    results = run_with_retries([in_folder(config, "captured") for config in configs], train=captured(recorder))
    for config, result in zip(configs, results, strict=True):
        assert result.directory, result.error
        assert result.directory.read_summary().lockstep == 2
        assert_same_numbers(result.directory, completed(in_folder(config, "eager"), with_factor(None)))
    assert recorder.captures == 6  # the batch and two steps, for two sizes of batches


@pytest.mark.slow
def test_a_step_that_depends_on_the_epoch_is_captured_once(small: Small) -> None:
    """The epoch is a scalar on the device, which each replay reads."""
    recorder = TapeRecorder()
    run_both(small("method=ce", *EPOCHS), recorder, lambda _, progress: 1 + progress.epoch)
    assert recorder.captures == PARTS


def test_steps_that_are_not_finite_are_skipped_when_they_are_replayed(small: Small) -> None:
    recorder = TapeRecorder()
    runs = run_both(
        small("method=ce", *EPOCHS, "recipe.on_nonfinite=skip"),
        recorder,
        lambda batch, _: torch.where((batch.labels[:3] == 3).any(), torch.nan, 1.0),
    )
    skipped = [run.read_summary().skipped_steps for run in runs]
    assert skipped[0]
    assert skipped[0] == skipped[1]
    assert recorder.captures == PARTS


@pytest.mark.slow
def test_a_replayed_step_draws_new_random_numbers(small: Small) -> None:
    """The generator of the CPU stands for that of a GPU."""
    recorder = TapeRecorder()
    run_both(small("method=ce", *EPOCHS), recorder, lambda *_: torch.rand(()))
    assert recorder.captures == PARTS


class InPlace(CrossEntropy):
    """Multiplies its loss by the number of its calls, a buffer that is written in place."""

    calls: Tensor

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, *given: Any) -> LossOutput:
        self.calls.add_(1)
        terms, logits = super().forward(*given)
        return LossOutput({name: term * self.calls for name, term in terms.items()}, logits)


@pytest.mark.slow
def test_state_in_buffers_that_are_written_in_place_is_replayed(small: Small) -> None:
    recorder = TapeRecorder()
    run_both(with_method(small("method=ce", *EPOCHS), InPlace), recorder)
    assert recorder.captures == PARTS


def with_method(config: RunConfig, method: type[Method]) -> RunConfig:
    """Return the config with another class of the method."""
    return dataclasses.replace(config, method=dataclasses.replace(config.method, target=method))


@pytest.mark.slow
def test_a_killed_run_continues_with_captured_steps(small: Small) -> None:
    config = small("method=ce", *EPOCHS, "checkpoint.every_minutes=0")
    recorder = TapeRecorder()
    _, eager = run_both(config, recorder)
    with killed_after(epoch=2, step=2):
        completed(config, captured(recorder))
    assert_same_numbers(completed(config, captured(recorder)), eager)


# Eager where capturing is impossible


class DrawsOnHost(CrossEntropy):
    """Multiplies its loss by random numbers of the host, and declares that it does."""

    capturable = False
    draw: Callable[[], float] = random.random
    drawn: list[float]

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.drawn = []

    def forward(self, *given: Any) -> LossOutput:
        self.drawn.append(type(self).draw())
        terms, logits = super().forward(*given)
        return LossOutput({name: term * self.drawn[-1] for name, term in terms.items()}, logits)


class DrawsByNumpy(DrawsOnHost):
    draw = np.random.rand


@pytest.mark.parametrize("method", rest_wide([DrawsOnHost, DrawsByNumpy]))
def test_a_method_that_is_not_capturable_stays_eager_with_one_line(small: Small, method: type[Method]) -> None:
    recorder, methods = TapeRecorder(), []

    def train(learners: Sequence[Learner], *rest: Any) -> None:
        methods.extend(learner.method for learner in learners)
        captured(recorder)(learners, *rest)

    run = completed(with_method(small("method=ce", *EPOCHS), method), train)
    assert recorder.captures == BATCHES
    (line,) = lines_about_graphs(run)
    assert line.startswith(f"the step of {method.__name__} stays eager: ")
    assert len(set(methods[0].drawn)) == len(methods[0].drawn) == STEPS


@pytest.mark.parametrize(
    "warm_up", rest_wide([1, 3]), indirect=True
)  # 3: both batch sizes were met before the first capture
def test_a_step_that_reads_a_value_on_the_host_stays_eager_with_one_line(small: Small) -> None:
    recorder = TapeRecorder()
    run, _ = run_both(small("method=ce", *EPOCHS), recorder, lambda batch, _: 1.0 + float(batch.labels[0] > 4))
    assert lines_about_graphs(run) == ["the step of CrossEntropy stays eager: a value is read on the host"]
    assert recorder.captures == BATCHES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "error", "warm_up"),
    [
        ("logit", RuntimeError("operation not permitted when stream is capturing"), 1),
        ("ce", torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), 3),
    ],
    indirect=["warm_up"],
)
def test_without_a_capture_of_the_batch_all_steps_are_eager_with_one_line(
    small: Small, method: str, error: RuntimeError
) -> None:
    recorder = TapeRecorder(error)
    run, _ = run_both(small(f"method={method}", *EPOCHS), recorder)
    assert lines_about_graphs(run) == [f"the batch with its teachers' outputs stays eager: {error}"]


def learner_with(small: Small, **runtime: Any) -> tuple[Learner, Batches]:
    """Return a learner whose runtime claims other values, and its batches."""
    config, _ = resolve_run(small("method=ce"))
    parts = build_parts(config)
    learner = build_learner(config, parts)
    learner.runtime = dataclasses.replace(learner.runtime, **runtime)
    return learner, parts.batches


@pytest.mark.parametrize(
    "runtime", [{}, {"device": "cuda:0", "precision": "fp16"}, {"device": "cuda:0", "graphs": False}]
)
def test_steps_are_eager_on_the_cpu_in_fp16_and_on_request(small: Small, runtime: dict[str, Any]) -> None:
    learner, batches = learner_with(small, **runtime)
    assert isinstance(steps_for([learner], batches), EagerSteps)
