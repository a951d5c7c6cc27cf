"""Every YAML file composes, and options and keys have the effects that they are documented with."""

import re

import pytest

from kdbench.config import CONF_DIR, compose, parse
from kdbench.models import summarize
from tests.conftest import composed_once, every_model, rest_wide
from tests.every_method import for_few_images
from tests.methods.built import build_method
from tests.networks import SPEC


def options(group):
    return sorted(file.stem for file in (CONF_DIR / group).glob("*.yaml"))


def test_default_run_is_the_reference_study():
    config = composed_once()
    assert (config.student.name, config.teacher.model.name, config.method.name) == ("resnet18", "resnet50", "logit")
    assert (config.recipe.epochs, config.teacher.recipe.epochs) == (100, 200)
    assert (config.method.params.alpha, config.method.params.temperature) == (0.5, 4.0)
    recipe = config.recipe
    assert (recipe.lr, recipe.min_lr, recipe.momentum, recipe.weight_decay) == (0.1, 1e-4, 0.9, 5e-4)
    assert (recipe.batch_size, recipe.nesterov, recipe.clip_norm, recipe.clip_projections) == (128, True, 1.0, True)
    assert (config.data.params.num_train, config.data.params.num_val, config.data.params.num_test) == (
        45_000,
        5_000,
        10_000,
    )
    assert (config.data.params.mean, config.data.params.std) == ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616])


@pytest.mark.parametrize("name", every_model())
def test_every_model_serves_as_student_and_as_teacher(name):
    config = composed_once(f"student={name}", f"teacher={name}")
    assert config.student == config.teacher.model
    assert config.student.name == name.replace("/", "-")
    shapes = summarize(config.student, SPEC, "student").shapes
    assert {"layer1", "layer2", "layer3", "pooled"} <= set(shapes)


@pytest.mark.parametrize("name", options("method"))
def test_every_method_composes_and_instantiates(name):
    built = build_method(name, *for_few_images(name))
    assert built.config.method.name == name
    assert (built.config.teacher is not None) == built.method.needs_teacher


@pytest.mark.parametrize(
    ("group", "name"),
    [
        *((group, name) for group in ("data", "recipe", "runtime", "experiment") for name in options(group)),
        *rest_wide(("pair", name) for name in options("pair")),
    ],
)
def test_every_other_option_composes(group, name):
    # Keys that only the user can give.
    own = {"image_folder": ["data.root=somewhere"], "torchvision": ["data.dataset=MNIST"]}.get(name, [])
    composed_once(f"{group}={name}", *own)


@pytest.mark.parametrize("name", rest_wide(n for n in options("pair") if n.startswith("r") and "resnet" not in n))
def test_a_pair_is_named_after_its_teacher_and_student(name):
    teacher, student = (re.sub(r"^r(?=\d)", "resnet", part) for part in name.split("_"))
    config = composed_once(f"pair={name}")
    assert (config.teacher.model.name, config.student.name) == (teacher, student)


def test_student_and_teacher_override_the_pair():
    config = compose(["pair=r101_r34", "student=resnet8"])
    assert (config.student.name, config.teacher.model.name) == ("resnet8", "resnet101")


def test_a_recipe_option_sets_student_and_teacher_and_a_key_only_one():
    config = compose(["recipe=short", "recipe.lr=0.05", "teacher.recipe.epochs=7"])
    assert (config.recipe.epochs, config.recipe.lr) == (30, 0.05)
    assert (config.teacher.recipe.epochs, config.teacher.recipe.lr) == (7, 0.1)


def test_seed_sets_initialisation_and_data_but_not_the_teacher():
    config = compose(["seed=3"])
    assert (config.init_seed, config.data_seed, config.teacher.seed) == (3, 3, 0)
    config = compose(["seed=3", "init_seed=1", "teacher.seed=2"])
    assert (config.init_seed, config.data_seed, config.teacher.seed) == (1, 3, 2)


@pytest.mark.parametrize("overrides", [(), ("method=ce",), ("method=feature", "student=resnet8", "teacher=resnet20")])
def test_a_recorded_config_reads_back_equal(overrides):
    config = composed_once(*overrides)
    assert parse(config.node()) == config


@pytest.mark.parametrize(("word", "value"), [("on", "on"), ("off", "off"), ("auto", "auto")])
def test_yaml_switch_words_are_values_of_teacher_cache(word, value):
    assert compose([f"teacher.cache={word}"]).teacher.cache == value
