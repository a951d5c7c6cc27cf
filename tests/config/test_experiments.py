"""Experiments with the settings of a published table: options, keys and headers."""

import re

import pytest

from kdbench.config import CONF_DIR, compose
from kdbench.config.options import options
from kdbench.errors import ConfigError
from tests.conftest import composed_once, rest_wide

FOLDER = CONF_DIR / "experiment" / "crd_cifar100"
PAIRS = {
    "wrn40_2_wrn16_2": ("wrn40_2", "wrn16_2"),
    "wrn40_2_wrn40_1": ("wrn40_2", "wrn40_1"),
    "resnet56_resnet20": ("resnet56", "resnet20"),
    "resnet110_resnet20": ("resnet110", "resnet20"),
    "resnet110_resnet32": ("resnet110", "resnet32"),
    "resnet32x4_resnet8x4": ("resnet32x4", "resnet8x4"),
}
"""Teacher and student by pair, in the order of the table below."""
PUBLISHED = {
    "teacher": (75.61, 75.61, 72.34, 74.31, 74.31, 79.42),
    "student alone": (73.26, 71.98, 69.06, 69.06, 71.14, 72.50),
    "logit": (74.92, 73.54, 70.66, 70.67, 73.08, 73.33),
    "fitnet": (73.58, 72.24, 69.21, 68.99, 71.06, 73.50),
    "at": (74.08, 72.77, 70.55, 70.22, 72.31, 73.44),
    "sp": (73.83, 72.43, 69.67, 70.04, 72.69, 72.94),
    "cc": (73.56, 72.21, 69.63, 69.48, 71.48, 72.97),
    "vid": (74.11, 73.30, 70.38, 70.16, 72.61, 73.09),
    "rkd": (73.35, 72.22, 69.61, 69.25, 71.82, 71.90),
    "pkt": (74.54, 73.45, 70.34, 70.25, 72.61, 73.64),
    "nst": (73.68, 72.24, 69.60, 69.53, 71.96, 73.30),
    "crd": (75.48, 74.14, 71.16, 71.46, 73.48, 75.51),
}
"""Test accuracy in per cent, Tian et al. 2020 (arXiv 1910.10699), table 1."""
WEIGHTS = {
    "fitnet": (1, 100), "at": (1, 1000), "sp": (1, 3000), "cc": (1, 0.02), "vid": (1, 1),
    "rkd": (1, 1), "pkt": (1, 30_000), "nst": (1, 50), "crd": (1, 0.8),
}  # fmt: skip
"""Weights of cross-entropy and KD term in the code base."""
METHODS = ("logit", *WEIGHTS)
CASES = [(pair, method) for method in METHODS for pair in PAIRS]
QUICK = [("wrn40_2_wrn16_2", "at"), ("resnet110_resnet32", "logit"), ("resnet32x4_resnet8x4", "vid")]


def test_there_is_an_experiment_for_each_pair_and_method():
    assert {file.stem for file in FOLDER.iterdir()} == {f"{pair}_{method}" for pair, method in CASES}
    assert len(CASES) == 60


@pytest.mark.parametrize("pair", PAIRS)
def test_the_header_gives_the_command_the_protocol_and_the_published_accuracies(pair):
    column = list(PAIRS).index(pair)
    for method in METHODS:
        name = f"{pair}_{method}"
        header = (FOLDER / f"{name}.yaml").read_text().partition("defaults:")[0]
        assert f"kdbench experiment=crd_cifar100/{name}\n" in header
        assert f"kdbench -m experiment=crd_cifar100/{name} seed=0,1,2,3,4\n" in header
        assert "all 50,000 training images, no validation; test accuracy of the last epoch" in header
        assert "arXiv 1910.10699" in header
        assert "was not reproduced" in header
        found = dict(re.findall(r"(student alone|teacher|\w+)(?: \(KD\))? (\d\d\.\d\d)", header))
        assert found == {
            kind: f"{PUBLISHED[kind][column]:.2f}" for kind in ("student alone", "teacher", method)
        }  # fmt: skip


@pytest.mark.parametrize(
    ("pair", "method"), rest_wide([*QUICK, *(case for case in CASES if case not in QUICK)], every_day=len(QUICK))
)
def test_the_experiment_has_the_settings_of_the_table(pair, method):
    config = composed_once(f"experiment=crd_cifar100/{pair}_{method}")
    assert (config.teacher.model.name, config.student.name) == PAIRS[pair]
    assert config.method.name == method
    for recipe in (config.recipe, config.teacher.recipe):
        assert (recipe.epochs, recipe.batch_size, recipe.optimizer) == (240, 64, "sgd")
        assert (recipe.lr, recipe.momentum, recipe.weight_decay, recipe.nesterov) == (0.05, 0.9, 5e-4, False)
        assert (recipe.schedule, recipe.milestones, recipe.gamma) == ("multistep", [150, 180, 210], 0.1)
        assert (recipe.clip_norm, recipe.ema, recipe.label_smoothing, recipe.mixup) == (None, None, 0, 0)
    data = config.data.params
    assert (config.data.name, data.validation, data.num_train, data.labels) == ("cifar100", False, None, "fine")
    assert (data.augment, data.padding, data.flip) == (True, 4, True)
    params = config.method.params
    if method == "logit":
        assert (params.alpha, params.temperature) == (0.9, 4.0)
    else:
        assert (params.ce_weight, params.kd_weight) == WEIGHTS[method]
    maps_are_read = method in ("at", "nst", "sp", "vid")
    last = {model.stages["layer3"] for model in (config.student, config.teacher.model)}
    assert last == {"relu" if "wrn" in pair and not maps_are_read else "layer3"}


def test_an_experiment_takes_further_overrides_and_needs_no_data():
    config = compose(
        ["experiment=crd_cifar100/wrn40_2_wrn16_2_crd", "seed=3", "data.root=nowhere", "recipe.epochs=300"]
    )
    assert (config.seed, config.recipe.epochs, config.teacher.recipe.epochs) == (3, 300, 240)


def test_options_in_a_folder_are_found_and_suggested():
    assert {"quickstart", "crd_cifar100/wrn40_2_wrn16_2_crd"} <= set(options("experiment"))
    assert "settings/all" not in options("recipe")
    with pytest.raises(ConfigError) as error:
        compose(["experiment=crd_cifar100/wrn40_2_wrn16_2_cdr"])
    assert (error.value.code, error.value.key) == ("unknown_option", "experiment")
    assert "did you mean crd_cifar100/wrn40_2_wrn16_2_crd" in str(error.value)
