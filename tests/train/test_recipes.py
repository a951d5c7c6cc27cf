"""Runs of every kind of recipe: resumed, in lockstep and with batches in parts, they compute the same numbers."""

import dataclasses
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import pytest
import torch

from kdbench.config import RunConfig
from kdbench.data.embedded import Shapes
from kdbench.data.source import Source
from kdbench.errors import ConfigError
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.identity import teacher_config
from kdbench.runner.policy import run_with_retries
from kdbench.system.signals import Interrupted, handled
from kdbench.train.learner import Learner
from tests.conftest import SMALL, complete, composed_once, killed_after, rest_wide
from tests.recipes import every_recipe, overrides
from tests.runner.trainers import with_learners

SIZE = (
    "data.num_train=56", "recipe.batch_size=16", "recipe.epochs=2", "teacher.recipe.batch_size=16",
    "data.num_val=20", "data.num_test=20", "student.widths=[8,8,16,16]", "teacher=resnet8",
    "teacher.widths=[8,8,16,16]", "teacher.seed=9", "runtime.threads=1", "checkpoint.every_minutes=0",
)  # fmt: skip
"""Steps of 16, 16, 16 and 8 images; a checkpoint after each."""

Compose = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The teacher of the runs, trained."""
    root = tmp_path_factory.mktemp("teacher")
    return complete(teacher_config(composed_once(*SMALL, *SIZE, "method=logit", f"output_root={root}")))


@pytest.fixture
def compose(small: Compose, teacher: RunDirectory, tmp_path: Path) -> Compose:
    """Compose a run beside its trained teacher, in a folder by name."""

    def make(folder: str, *more: str) -> RunConfig:
        root = tmp_path / folder
        shutil.copytree(teacher.path, root / "runs" / teacher.path.name, dirs_exist_ok=True)
        return small(*SIZE, *more, f"output_root={root}")

    return make


def numbers(directory: RunDirectory) -> tuple[str, bytes, bytes]:
    """Return all that a run has computed."""
    table = pd.read_csv(directory.metrics, dtype=str).drop(columns=["images_per_second", "seconds"])
    return table.to_csv(), directory.weights.read_bytes(), directory.logits.read_bytes()


@pytest.mark.parametrize("recipe", every_recipe())
def test_a_run_that_was_killed_in_an_epoch_resumes_to_the_same_numbers(compose: Compose, recipe: str) -> None:
    method = "logit" if recipe == "vit" else "ce"
    config, whole = (compose(folder, f"method={method}", *overrides(recipe)) for folder in ("killed", "whole"))
    with killed_after(epoch=1, step=2, epochs=2):
        complete(config)
    resumed = complete(config)
    assert "resuming from last.ckpt after 1 of 2 epochs and 2 steps" in resumed.log.read_text()
    assert numbers(resumed) == numbers(complete(whole))


@pytest.mark.slow
@pytest.mark.parametrize("position", [(0, 1), (0, 3), (1, 0), (1, 3), (2, 0)])
def test_a_run_killed_at_any_step_resumes_to_the_same_numbers(compose: Compose, position: tuple[int, int]) -> None:
    config, whole = (compose(folder, "method=ce", *overrides("vit")) for folder in ("killed", "whole"))
    with killed_after(*position, epochs=2):
        complete(config)
    assert numbers(complete(config)) == numbers(complete(whole))


@pytest.mark.parametrize("kept", rest_wide(["average", "weights"], every_day=0))
def test_a_run_that_a_signal_stops_in_validation_resumes_to_the_same_numbers(compose: Compose, kept: str) -> None:
    keys = ("recipe.ema=0.9",) if kept == "average" else ()
    config, whole = (compose(folder, "method=ce", "data.num_val=200", *keys) for folder in ("stopped", "whole"))

    def send(student: torch.nn.Module, *_: object) -> None:
        if not student.training:
            signal.raise_signal(signal.SIGUSR1)

    def signal_in_validation(learners: Sequence[Learner]) -> None:
        for learner in learners:
            learner.student.register_forward_hook(send)

    with pytest.raises(Interrupted), handled():
        run_with_retries([config], train=with_learners(signal_in_validation))
    assert numbers(complete(config)) == numbers(complete(whole))


SHARING: dict[str, tuple[tuple[str, ...], Sequence[tuple[str, ...]]]] = {
    "mixing_and_policy": (
        ("mixup=0.8", "cutmix=1.0", "policy=rand_augment", "erasing=0.25", "label_smoothing=0.1"),
        (
            ("optimizer=adamw", "lr=1e-3", "schedule_per=step", "warmup_epochs=0.5", "ema=0.9"),
            ("schedule=one_cycle", "schedule_per=step", "warmup_epochs=1", "accumulate=2"),
        ),
    ),
    "plain": (
        (),
        (
            ("schedule_per=step",),
            ("schedule=multistep", "milestones=[1]"),
            ("schedule=constant", "optimizer=adam", "lr=1e-3", "decay_all=false"),
            ("ema=0.99", "accumulate=3"),
        ),
    ),
    "trivial_augment": (
        ("policy=trivial_augment", "cutmix=0.5"),
        (("schedule_per=step", "warmup_epochs=1"), ("optimizer=adamw", "lr=1e-3")),
    ),
}
"""Groups of recipes: the keys that they share, since they determine the batches, and the others of each."""


@pytest.mark.parametrize(
    "group", [name if n == 0 else pytest.param(name, marks=pytest.mark.wide) for n, name in enumerate(SHARING)]
)
def test_recipes_that_share_their_batches_compute_in_lockstep_what_they_compute_alone(
    compose: Compose, group: str
) -> None:
    shared, others = SHARING[group]
    settings = [[f"recipe.{setting}" for setting in (*shared, *own)] for own in others]
    configs = [compose("group", f"method={'ce' if n else 'logit'}", *given) for n, given in enumerate(settings)]
    results = run_with_retries(configs)
    for n, (given, result) in enumerate(zip(settings, results, strict=True)):
        assert result.directory, result.error
        assert result.directory.read_summary().lockstep == len(configs)
        alone = complete(compose("alone", f"method={'ce' if n else 'logit'}", *given))
        assert numbers(result.directory) == numbers(alone)


class OneChannel(Shapes):
    """Images of one channel."""

    fixed = False

    def load(self) -> Source:
        source = super().load()
        splits = (dataclasses.replace(split, images=split.images[..., :1].contiguous()) for split in source[:3])
        return Source(*splits, source.class_names)


@pytest.mark.parametrize(
    ("method", "key"),
    [("ce", "recipe.policy"), pytest.param("logit", "teacher.recipe.policy", marks=pytest.mark.wide)],
)
def test_a_policy_for_images_without_three_channels_is_refused_before_training(
    compose: Compose, method: str, key: str
) -> None:
    def one_channel(*more: str) -> RunConfig:
        config = compose("run", f"method={method}", *more)
        data = dataclasses.replace(config.data, target=OneChannel)
        data.params.mean = data.params.std = None
        return dataclasses.replace(config, data=data)

    with pytest.raises(ConfigError) as error:
        complete(one_channel(f"{key}=trivial_augment"))
    assert (error.value.code, error.value.key) == ("mismatch", key)
