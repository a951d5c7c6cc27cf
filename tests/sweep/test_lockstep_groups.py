"""Grouping for lockstep: which runs train together, and what that saves."""

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest

from hydra_plugins.kdbench_lockstep import LockstepLauncherConf
from kdbench.config import RunConfig
from kdbench.sweep import MAX_LEARNERS
from kdbench.sweep.lockstep import group_planned, group_runs, needs_live_teacher, saved_share
from kdbench.sweep.plan import plan
from tests.conftest import complete


def changed(config: RunConfig, key: str, value: Any) -> RunConfig:
    """Return the same run but for one key."""
    config = copy.deepcopy(config)
    *sections, name = key.split(".")
    setattr(functools.reduce(getattr, sections, config), name, value)
    return config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data_seed", 1), ("recipe.batch_size", 16), ("recipe.epochs", 2), ("data.augment", False),
        ("data.num_train", 40), ("runtime.threads", 3), ("runtime.precision", "bf16"), ("runtime.profile", "repro"),
        ("runtime.compile", True), ("teacher.seed", 1), ("teacher.recipe.lr", 0.2), ("output_root", "elsewhere"),
        ("teacher.model.stages", {"layer1": "layer1.0.conv1"}), ("recipe.label_smoothing", 0.1), ("recipe.mixup", 0.2),
        ("recipe.cutmix", 1.0), ("recipe.policy", "trivial_augment"), ("recipe.erasing", 0.25), ("data.padding", 2),
        ("data.flip", False),
    ],
)  # fmt: skip
def test_runs_that_cannot_share_are_grouped_apart(small: Callable[..., RunConfig], key: str, value: Any) -> None:
    first = small("method=logit")
    assert group_runs([first, changed(first, key, value)]) == [[0], [1]]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("init_seed", 1), ("recipe.lr", 0.01), ("student.arguments", {"depth": 14}), ("method.params.temperature", 2.0),
        ("recipe.on_nonfinite", "skip"), ("recipe.clip_norm", None), ("recipe.optimizer", "adamw"),
        ("recipe.schedule", "constant"), ("recipe.schedule_per", "step"), ("recipe.warmup_epochs", 0.5),
        ("recipe.ema", 0.99), ("recipe.accumulate", 2), ("recipe.decay_all", False),
    ],
)  # fmt: skip
def test_runs_that_differ_in_their_own_settings_share(small: Callable[..., RunConfig], key: str, value: Any) -> None:
    first = small("method=logit")
    assert group_runs([first, changed(first, key, value)]) == [[0, 1]]


def test_runs_without_a_teacher_join_those_with_one(small: Callable[..., RunConfig]) -> None:
    configs = [
        small("method=ce"),
        small("method=logit"),
        small("method=logit", "teacher=resnet32"),
        small("method=ce", "recipe.lr=0.01"),
    ]
    assert group_runs(configs) == [[0, 1, 3], [2]]
    assert group_runs(configs, max_learners=2) == [[0, 1], [2, 3]]
    assert group_runs(configs, max_learners=1) == [[1], [2], [0], [3]]


def test_groups_are_few_and_of_about_the_same_size(small: Callable[..., RunConfig]) -> None:
    first = small("method=logit")
    configs = [changed(first, "recipe.lr", 0.01 * n) for n in range(1, 10)]
    groups = group_runs(configs, max_learners=4)
    assert [len(group) for group in groups] == [3, 3, 3]
    assert sorted(itertools.chain(*groups)) == list(range(9))


def test_complete_runs_take_no_place_and_the_same_run_is_in_no_group_twice(small: Callable[..., RunConfig]) -> None:
    configs = [small("method=ce"), small("method=ce", "recipe.lr=0.01"), small("method=ce")]
    assert group_runs(configs) == [[0, 1], [2]]
    complete(configs[1])
    assert group_runs(configs) == [[1], [0], [2]]
    configs[1].overwrite = True
    assert group_runs(configs) == [[0, 1], [2]]


def test_planned_runs_are_grouped_as_their_configs(small: Callable[..., RunConfig]) -> None:
    runs = plan([("method=ce", "seed=0"), ("method=ce", "seed=1"), ("method=logit", "seed=0")], lambda job: small(*job))
    assert group_planned(runs) == [[runs[0], runs[2]], [runs[1]]]
    assert group_planned(runs, 1) == [[runs[2]], [runs[0]], [runs[1]]]


def test_the_launcher_has_the_same_limit_as_studies() -> None:
    assert LockstepLauncherConf().max_learners == MAX_LEARNERS


@pytest.mark.parametrize(
    ("overrides", "live"),
    [
        (("method=ce",), False), (("method=logit",), True), (("method=logit", "teacher.cache=on"), False),
        (("method=feature", "data.augment=false"), True), (("method=logit", "data.augment=false"), False),
        (("method=logit", "data.augment=false", "teacher.cache=off"), True),
    ],
)  # fmt: skip
def test_a_group_saves_passes_of_live_teachers(
    small: Callable[..., RunConfig], overrides: tuple[str, ...], live: bool
) -> None:
    config = small(*overrides, "recipe.epochs=2")  # without augmentation a cache pays off after one
    assert needs_live_teacher(config) == live
    assert (saved_share([config, config]) > 0) == live
