"""`kdbench.compose`: the run of a command line, from Python."""

import shlex

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir

import kdbench
from kdbench.config import CONF_DIR
from kdbench.errors import ConfigError
from kdbench.models import summarize
from kdbench.sweep.overrides import value_of
from tests.conftest import NARROW, SMALL, composed_once, rest_wide
from tests.networks import SPEC

MOBILE = "_target_: torchvision.models.mobilenet_v3_small\nstages: {layer1: features.1, pooled: flatten}\n"


def add_model(folder, name, content):
    (folder / "model").mkdir(parents=True, exist_ok=True)
    file = folder / "model" / f"{name}.yaml"
    file.write_text(content)
    return file


@pytest.mark.parametrize("name", rest_wide(["Größe, [a]={b}", "own", "R&D (1)", "a 'b' \"c\""]))
def test_models_of_a_config_folder_serve_both_roles_whatever_its_name(tmp_path, name):
    add_model(tmp_path / name, "mobile", MOBILE)
    config = kdbench.compose(["student=mobile", "teacher=mobile"], config_dir=tmp_path / name)
    assert config.student.name == config.teacher.model.name == "mobile"
    assert summarize(config.student, SPEC, "student").shapes["pooled"] == (576,)


@pytest.mark.slow
def test_a_model_file_that_was_edited_is_read_again_and_another_folder_has_its_own(tmp_path):
    narrow = (CONF_DIR / "model" / "resnet8.yaml").read_text()
    for folder in ("one", "two"):
        add_model(tmp_path / folder, "mine", f"{narrow}\n# {folder}\n")
    add_model(tmp_path / "two", "mine", narrow.replace("depth: 8", "depth: 14"))

    def depth(folder):
        return kdbench.compose(["student=mine", "method=ce"], config_dir=tmp_path / folder).student.arguments["depth"]

    assert [depth("one"), depth("two"), depth("one")] == [8, 14, 8]
    add_model(tmp_path / "one", "mine", narrow.replace("depth: 8", "depth: 20"))
    assert depth("one") == 20
    with pytest.raises(ConfigError) as error:
        kdbench.compose(["student=mine"])
    assert (error.value.code, error.value.key) == ("unknown_option", "student")


def test_other_options_of_a_config_folder_are_found_too(tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "warm.yaml").write_text("defaults: [logit]\ntemperature: 9.0\n")
    config = kdbench.compose(["method=warm"], config_dir=str(tmp_path))
    assert (config.method.name, config.method.params.temperature) == ("warm", 9.0)


@pytest.mark.parametrize("content", ["{a: [", "- a\n- b\n"])
def test_a_broken_model_file_is_named_in_the_error(tmp_path, content):
    file = add_model(tmp_path, "broken", content)
    with pytest.raises(ConfigError) as error:
        kdbench.compose(config_dir=tmp_path)
    assert (error.value.code, error.value.key) == ("invalid_yaml", "broken")
    assert str(file) in str(error.value)


@pytest.mark.parametrize("name", ["nowhere", "x" * 3000])
def test_a_config_folder_that_is_missing_is_an_error(tmp_path, name):
    with pytest.raises(ConfigError) as error:
        kdbench.compose(config_dir=tmp_path / name)
    assert (error.value.code, error.value.key) == ("not_found", "--config-dir")


def test_overrides_are_a_list_and_no_text():
    with pytest.raises(ConfigError) as error:
        kdbench.compose("method=ce")
    assert error.value.code == "wrong_type"


def test_an_application_that_uses_hydra_itself_is_not_disturbed():
    with initialize_config_dir(str(CONF_DIR / "method"), version_base="1.3"):
        kdbench.compose(["method=ce"])
        with pytest.raises(ConfigError):
            kdbench.compose(["method=lgit"])
        assert hydra_compose("ce")._target_ == "kdbench.methods.ce.CrossEntropy"


@pytest.mark.parametrize(
    "overrides",
    [
        (*SMALL, *NARROW, "seed=3"),
        ("experiment=quickstart", "output_root=elsewhere", "report=null"),
        ("pair=r101_r34", "method=feature", "method.stages=[layer1,layer3]", "teacher.recipe.epochs=7"),
        ("data=cifar10", "student=resnet8", "student.stages.layer1=layer1.0", "++recipe.lr=0.3"),
    ],
)
def test_the_tests_own_composition_is_that_of_kdbench(overrides):
    assert composed_once(*overrides) == kdbench.compose(overrides)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("teacher.checkpoint", "epoch=9-step=100.ckpt"),
        ("output_root", "a=b"),
        ("output_root", 'my "runs" (1)=it\'s\\'),
        ("output_root", "runs(1)/x"),  # no function: its arguments are not two numbers
        ("output_root", "runs(1)"),
    ],
)
def test_a_value_that_cannot_be_read_is_shown_in_the_form_that_can(key, value):
    with pytest.raises(ConfigError) as error:
        kdbench.compose([f"{key}={value}"])
    assert (error.value.code, error.value.key) == ("unreadable_override", key)
    (argument,) = shlex.split(str(error.value).partition("; write ")[2])
    node = kdbench.compose([argument]).node()
    assert (node[key] if key in node else node["teacher"]["checkpoint"]) == value


def test_values_of_a_sweep_that_cannot_be_read_are_shown_in_quotes_each():
    with pytest.raises(ConfigError) as error:
        kdbench.compose(["teacher.checkpoint=a=1.ckpt,b=2.ckpt"])
    argument = shlex.split(str(error.value).partition(" with -m ")[2])[0]
    assert value_of(argument) == ["a=1.ckpt", "b=2.ckpt"]


@pytest.mark.parametrize("role", rest_wide(["student", "teacher"]))
def test_an_argument_of_a_builder_that_its_file_does_not_list_is_shown_in_the_form_that_adds_it(tmp_path, role):
    add_model(tmp_path, "mobile", MOBILE)
    chosen = ["student=mobile", "teacher=mobile"]
    with pytest.raises(ConfigError) as error:
        kdbench.compose([*chosen, f"{role}.width_mult=0.5"], config_dir=tmp_path)
    assert (error.value.code, error.value.key) == ("unknown_key", f"{role}.width_mult")
    assert f"write +{role}.width_mult=0.5;" in str(error.value)
    config = kdbench.compose([*chosen, f"+{role}.width_mult=0.5"], config_dir=tmp_path)
    model = config.student if role == "student" else config.teacher.model
    assert model.arguments == {"width_mult": 0.5}
    with pytest.raises(ConfigError) as error:
        kdbench.compose(["student=resnet8", "student.widht=5"])
    assert "+" not in str(error.value)


def test_a_key_of_a_data_set_that_its_file_does_not_list_is_shown_in_the_form_that_adds_it(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.yaml").write_text("_target_: kdbench.data.embedded.Shapes\naugment: true\n")
    chosen = ["student=resnet8", "teacher=resnet8", "data=mine"]
    with pytest.raises(ConfigError) as error:
        kdbench.compose([*chosen, "data.num_train=100"], config_dir=tmp_path)
    assert (error.value.code, error.value.key) == ("unknown_key", "data.num_train")
    assert str(error.value).endswith("write +data.num_train=100")
    assert kdbench.compose([*chosen, "+data.num_train=100"], config_dir=tmp_path).data.params.num_train == 100


def test_keys_of_an_open_section_are_added_one_by_one():
    chosen = ["student=resnet8", "teacher=resnet8", "data=torchvision", "data.dataset=EMNIST"]
    with pytest.raises(ConfigError) as error:
        kdbench.compose([*chosen, "data.arguments={split: letters}"])
    assert (error.value.code, error.value.key) == ("existing_key", "data.arguments")
    assert "write +data.arguments.NAME=VALUE" in str(error.value)
    config = kdbench.compose([*chosen, "+data.arguments.split=letters"])
    assert config.data.params.arguments == {"split": "letters"}
