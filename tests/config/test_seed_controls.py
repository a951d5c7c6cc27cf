"""Controls with other seeds than the student's, as experiments, and the sum that they are composed with."""

import pytest

from kdbench import compose
from kdbench.config.resolvers import add
from kdbench.errors import ConfigError


@pytest.mark.parametrize(
    ("experiment", "init", "data"), [("siddo", 0, 1000), ("diddo", 2000, 3000)], ids=["siddo", "diddo"]
)
@pytest.mark.parametrize("seed", [0, 7])
def test_controls_have_the_seeds_that_their_names_say(experiment, init, data, seed):
    config = compose([f"experiment={experiment}", "student=resnet8", f"seed={seed}"])
    assert (config.seed, config.init_seed, config.data_seed) == (seed, seed + init, seed + data)
    assert config.method.name == "ce"
    assert config.teacher is None


def test_a_control_is_the_run_of_these_seeds():
    control = compose(["experiment=siddo", "student=resnet8", "seed=3"])
    plain = compose(["student=resnet8", "method=ce", "seed=3", "data_seed=1003"])
    assert control == plain


def test_own_seeds_replace_those_of_the_control():
    config = compose(["experiment=siddo", "student=resnet8", "data_seed=5"])
    assert (config.init_seed, config.data_seed) == (0, 5)


def test_a_seed_that_is_no_number_is_one_line():
    with pytest.raises(ConfigError, match=r"kdbench\.add takes whole numbers, not 'a'") as error:
        compose(["experiment=siddo", "student=resnet8", "seed=a"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("wrong", [1.5, "1", True, None])
def test_only_whole_numbers_are_added(wrong):
    assert add(1, 2, 3) == 6
    with pytest.raises(ValueError, match="whole numbers"):
        add(1, wrong)


@pytest.mark.parametrize(("pair", "network"), [("resnet8_resnet8", "resnet8"), ("r18_r18", "resnet18")])
def test_pairs_of_self_distillation_have_one_architecture(pair, network):
    config = compose([f"pair={pair}"])
    assert config.student.name == config.teacher.model.name == network
    assert config.student.arguments == config.teacher.model.arguments
