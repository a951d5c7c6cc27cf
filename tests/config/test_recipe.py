"""Rules between the keys of a recipe, keys that change nothing, and labels that a method cannot use."""

import dataclasses
from typing import Any

import pytest

from kdbench.config import RecipeConfig, RunConfig, compose
from kdbench.config.parse import check_together
from kdbench.config.recipe import KEYS_OF_OPTIMIZER, KEYS_OF_SCHEDULE, check_recipe, is_added
from kdbench.config.schema import typed
from kdbench.errors import ConfigError
from kdbench.methods import CrossEntropy
from tests.conftest import composed_once, rest_wide
from tests.recipes import RECIPES, every_recipe, overrides

RUN = ("student=resnet8", "teacher=resnet20", "data=shapes", "runtime.device=cpu", "runtime.precision=fp32")


def recipe(**keys: Any) -> RecipeConfig:
    """Return a recipe of ten epochs with some keys, unchecked."""
    return dataclasses.replace(composed_once("method=ce", "recipe.epochs=10").recipe, **keys)


STEPS = {"schedule": "multistep", "milestones": [4, 8]}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"lr": 0.1, "min_lr": 0.2}, "min_lr"),
    ({"lr": 0.1, "min_lr": 0.2, "schedule": "one_cycle", "warmup_epochs": 2.0}, "min_lr"),
    ({"momentum": 0.0, "nesterov": True}, "momentum"),
    ({"ema": 0.999, "weight_decay": 0.5}, "weight_decay"),
    ({"schedule": "multistep"}, "milestones"),
    ({"schedule": "multistep", "milestones": [4, 10]}, "milestones"),
    ({"schedule": "multistep", "milestones": [150, 180, 210]}, "milestones"),
    ({"warmup_epochs": 10.0}, "warmup_epochs"),
    ({"warmup_epochs": 10.5, "schedule_per": "step"}, "warmup_epochs"),
    ({"warmup_epochs": 0.5}, "warmup_epochs"),
    ({"warmup_epochs": 1.0, "warmup_lr": 0.2, "lr": 0.1}, "warmup_lr"),
    ({"schedule": "one_cycle"}, "warmup_epochs"),
    ({"schedule": "one_cycle", "warmup_epochs": 1.0}, "warmup_epochs"),
    ({**STEPS, "warmup_epochs": 5.0}, "warmup_epochs"),
    ({"accumulate": 5, "batch_size": 8}, "accumulate"),
]
ALLOWED: list[dict[str, Any]] = [
    {"lr": 0.1, "min_lr": 0.1},
    {"lr": 0.1, "min_lr": 0.2, "schedule": "constant"},
    {"lr": 0.1, "min_lr": 0.2, **STEPS},
    {"momentum": 0.0, "nesterov": False},
    {"momentum": 0.0, "nesterov": True, "optimizer": "adamw"},
    {"ema": 0.999, "weight_decay": 0.4},
    {"weight_decay": 0.5},
    {"schedule": "multistep", "milestones": [9]},
    {"warmup_epochs": 9.0},
    {"warmup_epochs": 9.5, "schedule_per": "step"},
    {"warmup_epochs": 1.0, "warmup_lr": 0.1, "lr": 0.1},
    {"warmup_lr": 0.2, "lr": 0.1},
    {"schedule": "one_cycle", "warmup_epochs": 2.0},
    {"schedule": "one_cycle", "warmup_epochs": 0.5, "schedule_per": "step"},
    {**STEPS, "warmup_epochs": 4.0},
    {"accumulate": 4, "batch_size": 8},
    {"accumulate": 4, "batch_size": 9},
]


def names(value: Any) -> str:
    return "-".join(value) if isinstance(value, dict) else str(value)


@pytest.mark.parametrize("path", ["recipe", "teacher.recipe"])
@pytest.mark.parametrize(("keys", "key"), REFUSED, ids=names)
def test_keys_that_do_not_fit_together_are_refused_with_the_key_to_change(
    keys: dict[str, Any], key: str, path: str
) -> None:
    with pytest.raises(ConfigError) as error:
        check_recipe(recipe(**keys), path)
    assert (error.value.code, error.value.key) == ("out_of_range", f"{path}.{key}")
    assert str(error.value).startswith(f"{path}.{key} is ")


@pytest.mark.parametrize("keys", ALLOWED, ids=names)
def test_keys_that_fit_together_are_allowed(keys: dict[str, Any]) -> None:
    check_recipe(recipe(**keys), "recipe")


@pytest.mark.parametrize(
    ("epochs", "milestones"), [(10, [150, 180, 210]), (100, [150, 180, 210]), (2, [5]), (7, [3, 7])]
)
def test_the_milestones_that_an_error_names_are_allowed(epochs: int, milestones: list[int]) -> None:
    refused = recipe(schedule="multistep", milestones=milestones, epochs=epochs)
    with pytest.raises(ConfigError) as error:
        check_recipe(refused, "recipe")
    fitting = str(error.value).rpartition("recipe.milestones=[")[2].partition("]")[0]
    check_recipe(dataclasses.replace(refused, milestones=[int(epoch) for epoch in fitting.split(",")]), "recipe")


def test_milestones_of_a_training_of_one_epoch_have_another_schedule_as_remedy() -> None:
    with pytest.raises(ConfigError) as error:
        check_recipe(recipe(schedule="multistep", milestones=[1], epochs=1), "recipe")
    assert str(error.value).endswith("recipe.schedule=constant")


@pytest.mark.parametrize("path", ["recipe", "teacher.recipe"])
def test_the_recipes_of_student_and_teacher_are_checked(path: str) -> None:
    with pytest.raises(ConfigError) as error:
        composed_once(*RUN, f"{path}.warmup_epochs=1000")
    assert error.value.key == f"{path}.warmup_epochs"


RANGES = [
    "optimizer=lamb", "betas=[0.9]", "betas=[0.9,1]", "betas=[-0.1,0.9]", "eps=0", "schedule=linear",
    "schedule_per=batch", "milestones=[8,4]", "milestones=[4,4]", "milestones=[0]", "gamma=0", "gamma=1.5",
    "warmup_epochs=-1", "warmup_lr=0", "accumulate=0", "ema=0.4", "ema=1", "label_smoothing=1", "label_smoothing=-0.1",
    "mixup=-1", "cutmix=101", "policy=auto_augment", "policy_ops=0", "policy_ops=15", "policy_magnitude=31",
    "erasing=1.1",
]  # fmt: skip


@pytest.mark.parametrize("setting", RANGES)
def test_a_value_out_of_its_range_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError) as error:
        composed_once("method=ce", f"recipe.{setting}")
    assert (error.value.code, error.value.key) == ("out_of_range", f"recipe.{setting.partition('=')[0]}")


@pytest.mark.parametrize("name", every_recipe())
def test_the_recipes_of_the_tests_are_allowed_by_the_config(name: str) -> None:
    run = composed_once("method=ce", "recipe.epochs=2", *overrides(name))
    for setting in RECIPES[name]:
        assert setting.partition("=")[0] not in run.recipe.unused()


# Keys that change nothing

UNUSED = [
    *(
        (("optimizer", chosen), name)
        for chosen, own in KEYS_OF_OPTIMIZER.items()
        for name in ("momentum", "nesterov", "betas", "eps")
        if name not in own
    ),
    *(
        (("schedule", chosen), name)
        for chosen, own in KEYS_OF_SCHEDULE.items()
        for name in ("min_lr", "milestones", "gamma")
        if name not in own
    ),
    (("policy", "trivial_augment"), "policy_ops"),
    (("policy", None), "policy_magnitude"),
    (("warmup_epochs", 0.0), "warmup_lr"),
]


@pytest.mark.parametrize(("choice", "name"), UNUSED)
def test_a_key_of_another_choice_is_unused_and_not_among_the_settings(choice: tuple[str, Any], name: str) -> None:
    made = recipe(**{choice[0]: choice[1]})
    assert name in made.unused()
    assert name not in made.settings()


@pytest.mark.parametrize(
    ("given", "unused"),
    rest_wide(
        [
            (("recipe.optimizer=adamw", "recipe.momentum=0.5"), "recipe.momentum"),
            (("teacher.recipe.gamma=0.2",), "teacher.recipe.gamma"),
            (("recipe.betas=[0.8,0.9]",), "recipe.betas"),
            (("recipe.schedule=constant", "recipe.min_lr=0"), "recipe.min_lr"),
            (("recipe.milestones=[1]",), "recipe.milestones"),
            (("recipe.warmup_lr=1e-3",), "recipe.warmup_lr"),
            (("recipe.policy_magnitude=3",), "recipe.policy_magnitude"),
            (("recipe.policy=trivial_augment", "recipe.policy_ops=3"), "recipe.policy_ops"),
            (("++recipe.gamma=0.2",), "recipe.gamma"),
        ],
        every_day=3,
    ),
)
def test_a_given_key_that_changes_nothing_is_an_error(given: tuple[str, ...], unused: str) -> None:
    with pytest.raises(ConfigError) as error:
        compose([*RUN, *given])
    assert (error.value.code, error.value.key) == ("unused_key", unused)


def test_keys_of_the_chosen_optimiser_schedule_and_policy_are_used() -> None:
    settings = (
        "optimizer=adam", "betas=[0.8,0.9]", "eps=1e-6", "schedule=multistep", "milestones=[3]", "gamma=0.3",
        "warmup_epochs=1", "warmup_lr=1e-4", "policy=rand_augment", "policy_ops=3", "policy_magnitude=5",
    )  # fmt: skip
    run = compose([*RUN, *(f"recipe.{setting}" for setting in settings)])
    assert run.recipe.betas == [0.8, 0.9]
    assert {setting.partition("=")[0] for setting in settings} <= run.recipe.settings().keys()


def test_a_recipe_of_the_reference_study_has_no_settings_that_were_added_later() -> None:
    assert set(composed_once(*RUN).recipe.settings()) == {
        "epochs", "batch_size", "lr", "min_lr", "momentum", "nesterov", "weight_decay", "clip_norm",
        "clip_projections", "on_nonfinite", "nonfinite_limit",
    }  # fmt: skip


def test_a_recipe_of_an_earlier_version_is_read_with_neutral_values() -> None:
    whole = composed_once(*RUN).recipe
    earlier = {f.name: getattr(whole, f.name) for f in dataclasses.fields(whole) if not is_added(f)}
    read = typed(RecipeConfig, earlier, "recipe")
    assert read == whole
    assert not read.unused().keys() & earlier.keys()


# Soft labels


class IntegerLabels(CrossEntropy):
    """A method that does not declare soft labels."""

    soft_labels = False


def with_method(run: RunConfig, target: type[Any]) -> RunConfig:
    return dataclasses.replace(run, method=dataclasses.replace(run.method, target=target))


@pytest.mark.parametrize("setting", ["mixup=0.2", "cutmix=1.0", "label_smoothing=0.1"])
def test_soft_labels_are_refused_for_a_method_that_needs_integers(setting: str) -> None:
    run = composed_once("method=ce", f"recipe.{setting}")
    check_together(run)
    with pytest.raises(ConfigError) as error:
        check_together(with_method(run, IntegerLabels))
    assert (error.value.code, error.value.key) == ("integer_labels", f"recipe.{setting.partition('=')[0]}")


@pytest.mark.parametrize("setting", ["policy=rand_augment", "erasing=0.5", "ema=0.9"])
def test_settings_that_keep_integer_labels_are_allowed_for_each_method(setting: str) -> None:
    check_together(with_method(composed_once("method=ce", f"recipe.{setting}"), IntegerLabels))


@pytest.mark.parametrize("setting", ["policy=rand_augment", "mixup=0.1", "cutmix=1.0", "erasing=0.5"])
def test_augmentation_beyond_views_is_named(setting: str) -> None:
    assert recipe().augmentation() == ""
    assert composed_once("method=ce", f"recipe.{setting}").recipe.augmentation() == f"recipe.{setting}"


def test_the_optimisers_and_schedules_of_the_config_have_keys_of_the_recipe() -> None:
    fields = {f.name for f in dataclasses.fields(RecipeConfig)}
    assert {name for own in (*KEYS_OF_OPTIMIZER.values(), *KEYS_OF_SCHEDULE.values()) for name in own} <= fields


@pytest.mark.parametrize(
    ("overrides", "code", "text"),
    [
        (["data.augment=false", "data.padding=8"], "unused_key", "data.augment is false"),
        (["data.mean=[125,122,113]", "data.std=[0.2,0.2,0.2]"], "out_of_range", "from 0 to 1"),
        (["data.mean=[0.5,0.5,0.5]", "data.std=[63,62,66]"], "out_of_range", "at most 1"),
    ],
)
def test_data_keys_without_effect_or_on_another_scale_are_refused(overrides, code, text):
    with pytest.raises(ConfigError, match=text) as error:
        compose(["student=resnet8", "method=ce", "data=shapes", *overrides])
    assert error.value.code == code


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("epochs: 2\nlr: 0.1\n", "settings/all@recipe"),
        ("defaults:\n  - settings/all\n  - _self_\nrecipe:\n  epochs: 2\n", "# @package _global_"),
    ],
)
def test_the_usual_mistakes_of_a_recipe_file_are_named(tmp_path, content, text):
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe" / "mine.yaml").write_text(content)
    with pytest.raises(ConfigError, match=text):
        compose(["student=resnet8", "method=ce", "data=shapes", "recipe=mine"], config_dir=tmp_path)
