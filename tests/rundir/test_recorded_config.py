"""Configs read back from run directories: which code they may name, and that no other is imported."""

import dataclasses
import sys

import pytest
import yaml

from kdbench.config import MethodConfig, ModelConfig
from kdbench.errors import ConfigError
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.identity import GivenWeights, model_identity
from kdbench.rundir.recorded_config import read_config
from tests.conftest import SMALL, composed_once, every_model, rest_wide

EVIL = """
import os
import pathlib
pathlib.Path({marker!r}).write_text("run")

from torch import nn
from kdbench.methods.ce import CrossEntropy

class Net(nn.Linear):
    def __init__(self, num_classes):
        super().__init__(1, num_classes)

class Mine(CrossEntropy):
    pass
"""


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """Offer the module `evil`; the file exists once it was imported."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "evil.py").write_text(EVIL.format(marker=str(tmp_path / "marker")))
    monkeypatch.syspath_prepend(site)
    yield tmp_path / "marker"
    sys.modules.pop("evil", None)


@pytest.fixture
def file(small, tmp_path):
    run = RunDirectory(tmp_path, "0" * 16)
    run.write_config(small())
    return run.config


def edit(file, group, **changes):
    tree = yaml.safe_load(file.read_text())
    tree[group] |= changes
    file.write_text(yaml.safe_dump(tree))


@pytest.mark.parametrize("model", every_model())
def test_every_shipped_model_reads_back(tmp_path, model):
    config = composed_once(*SMALL, f"student={model}", f"teacher={model}", "method=feature")
    run = RunDirectory(tmp_path, "0" * 16)
    run.write_config(config)
    module = config.student.target.partition(".")[0]
    assert read_config(run.config, [] if module == "kdbench" else [module]) == config


def test_objects_in_arguments_must_be_trusted_those_of_kdbench_too(file, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("as it was")
    call = {"_target_": "kdbench.models.weights.save", "weights": {}, "path": str(victim), "metadata": {}}
    edit(file, "student", widths=[call])
    with pytest.raises(ConfigError) as error:
        read_config(file)
    assert (error.value.code, error.value.key) == ("untrusted", "student.widths.0._target_")
    assert victim.read_text() == "as it was"


def test_first_weights_are_never_looked_up_for_a_record(file):
    edit(file, "student", weights="somewhere.pth")
    with pytest.raises(ConfigError) as error:
        read_config(file)
    assert (error.value.code, error.value.key) == ("damaged", "student.weights")
    edit(file, "student", weights_hash="0" * 64)
    assert model_identity(read_config(file).student)["weights_hash"] == "0" * 64


@pytest.mark.parametrize("method", ["ce", "logit", "feature"])
def test_every_shipped_method_reads_back(small, file, method):
    config = small(f"method={method}")
    RunDirectory(file.parent, "").write_config(config)
    assert read_config(file) == config


@pytest.mark.parametrize(
    "target",
    [
        "evil.Net",
        "os.system",
        "builtins.eval",
        "kdbench.cli.main",
        "kdbench.runner.environment.subprocess.run",
        "kdbench.models.weights.torch.load",
        "kdbench.models.resnet.torchvision.models.resnet18",
        "kdbench.models.builders.hydra.utils.instantiate",
        "kdbench.models.describe.sdpa_kernel",
        "kdbench.models.network.Network.__init__.__globals__",
        "kdbench.models_of_others.Net",
        "kdbench.models",
        ["evil.Net"],
        "",
    ],
)
@pytest.mark.parametrize("group", rest_wide(["student", "teacher"]))
def test_a_model_defined_elsewhere_is_refused_and_not_imported(file, marker, group, target):
    edit(file, group, _target_=target)
    with pytest.raises(ConfigError) as error:
        read_config(file)
    assert (error.value.code, error.value.key) == ("untrusted", f"{group}._target_")
    assert str(target) in str(error.value)
    assert "\n" not in str(error.value)
    assert not marker.exists()


@pytest.mark.parametrize("target", ["evil.Mine", "subprocess.Popen", "kdbench.models.cifar_resnet.CifarResNet"])
def test_a_method_defined_elsewhere_is_refused_and_not_imported(file, marker, target):
    edit(file, "method", _target_=target)
    with pytest.raises(ConfigError) as error:
        read_config(file)
    assert (error.value.code, error.value.key) == ("untrusted", "method._target_")
    assert not marker.exists()


def test_other_functions_and_classes_of_kdbench_are_refused(file):
    edit(file, "student", _target_="kdbench.models.weights.read")
    with pytest.raises(ConfigError) as error:
        read_config(file)
    assert (error.value.code, error.value.key) == ("untrusted", "student._target_")
    edit(file, "student", _target_="kdbench.models.cifar_resnet.CifarResNet")
    edit(file, "method", _target_="kdbench.methods.logit.LogitDistillation.Config")
    with pytest.raises(ConfigError) as error:
        read_config(file)
    assert (error.value.code, error.value.key) == ("no_method", "method._target_")


def test_a_module_that_the_user_trusts_is_imported(file, marker):
    tree = yaml.safe_load(file.read_text())
    tree["student"] = {"name": "net", "_target_": "evil.Net", "stages": {}}
    tree["method"] = {"name": "mine", "_target_": "evil.Mine"}
    file.write_text(yaml.safe_dump(tree))
    config = read_config(file, trusted=["evil"])
    assert config.student == ModelConfig("net", "evil.Net", {}, {})
    assert config.method.target.__name__ == "Mine"
    assert marker.exists()


@pytest.mark.parametrize("trusted", ["evi", "evil.Net.deeper", "torchvision"])
def test_trust_in_one_module_is_none_in_another(file, marker, trusted):
    edit(file, "student", _target_="evil.Net")
    with pytest.raises(ConfigError) as error:
        read_config(file, trusted=[trusted])
    assert error.value.code == "untrusted"
    assert not marker.exists()


def test_a_trusted_module_does_not_lead_to_what_it_imports(file, marker):
    edit(file, "student", _target_="evil.os.system")
    with pytest.raises(ConfigError) as error:
        read_config(file, trusted=["evil"])
    assert (error.value.code, error.value.key) == ("untrusted", "student._target_")


def test_torchvision_can_be_trusted(file):
    tree = yaml.safe_load(file.read_text())
    tree["student"] = {
        "name": "mobilenet", "_target_": "torchvision.models.mobilenet_v3_small", "stages": {"layer1": "features.1"},
    }  # fmt: skip
    file.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError) as error:
        read_config(file)
    assert error.value.code == "untrusted"
    assert read_config(file, trusted=["torchvision.models"]).student.target == "torchvision.models.mobilenet_v3_small"


@pytest.mark.parametrize("text", ["${oc.env:HOME}", "a ${seed} b", r'"\x24{oc.env:HOME}"'])
def test_nothing_is_looked_up_in_the_environment(file, text):
    tree = yaml.safe_load(file.read_text())
    del tree["output_root"]
    file.write_text(yaml.safe_dump(tree) + f"output_root: {text}\n")
    with pytest.raises(ConfigError) as error:
        read_config(file)
    assert (error.value.code, error.value.key) == ("untrusted", "config.yaml")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "missing_value"), (b"\xff\xfe", "damaged"), (b"[1, 2]", "damaged"), (b"a: [", "damaged"),
        (b"a: &a [*a]", "damaged"), (b"student: 3", "wrong_type"), (b"!!python/name:os.system", "damaged"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_an_error_in_one_line(file, content, code):
    file.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_config(file)
    assert error.value.code == code
    assert "\n" not in str(error.value)


def test_a_given_teacher_reads_back(small, tmp_path):
    run = RunDirectory(tmp_path, "0" * 16)
    params = GivenWeights("teacher.pth", "ab" * 32)
    config = dataclasses.replace(small("method=ce"), method=MethodConfig("checkpoint", GivenWeights, params))
    run.write_config(config)
    assert read_config(run.config) == config
