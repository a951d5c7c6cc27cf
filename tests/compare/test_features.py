"""Linear CKA of features, computed from the weights of trained runs."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import kdbench
from kdbench.compare.command import compare
from kdbench.compare.features import pooled
from kdbench.compare.read import read_run
from kdbench.data import load
from kdbench.errors import ConfigError
from kdbench.metrics import linear_cka
from kdbench.models import weights
from kdbench.rundir.recorded_config import read_config
from tests.conftest import NARROW, SMALL, complete, composed_once
from tests.verify.conftest import edit_config, rewrite_summary

OWN_CODE = """
from kdbench.data.embedded import Shapes
from kdbench.models.cifar_resnet import CifarResNet

class Net(CifarResNet): ...

class Drawn(Shapes): ...
"""


def trained_pair(root):
    """Return the run directories of a student and of its teacher, whose networks are of different widths."""
    wide = ("student.widths=[8,8,12,20]", NARROW[1])
    student = complete(composed_once(*SMALL, *wide, "method=logit", f"output_root={root}")).path
    (teacher,) = (path for path in student.parent.iterdir() if path != student)
    return student, teacher


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return trained_pair(tmp_path_factory.mktemp("out"))


@pytest.fixture
def copies(pair, tmp_path):
    return [shutil.copytree(path, tmp_path / "runs" / path.name) for path in pair]


def refused(*arguments):
    with pytest.raises(ConfigError) as error:
        compare([*map(str, arguments), "--features"])
    return error.value.code, error.value.key


def reference_features(path, stage):
    """Return the pooled output [N, D] of a module for the test images, by a hook of its own."""
    student = kdbench.load_student(path)
    test = load(read_config(path / "config.yaml").data, "cpu").test
    kept = []
    module = student.network.body.get_submodule(stage)
    module.register_forward_hook(lambda module, inputs, output: kept.append(output))
    with torch.no_grad():
        student(test.images.movedim(-1, 1))
    return kept[0].mean((2, 3)).numpy()


@pytest.mark.slow
def test_features_are_those_of_the_weights(pair, as_dict):
    stages = {stage["stage"]: stage for stage in as_dict(*pair, "--features")["features"]}
    assert list(stages) == ["layer1", "layer2", "layer3", "pooled"]
    assert (stages["layer3"]["width_a"], stages["layer3"]["width_b"]) == (20, 32)
    for name in ("layer1", "layer2", "layer3"):
        expected = linear_cka(*(reference_features(path, name) for path in pair))
        assert stages[name]["linear_cka"] == pytest.approx(expected, rel=1e-5)
        assert 0 < expected < 0.9999
    assert stages["pooled"]["linear_cka"] == pytest.approx(stages["layer3"]["linear_cka"])


@pytest.mark.slow
def test_features_of_a_run_and_itself_are_identical(pair, as_dict, as_lines):
    found = as_dict(pair[0], pair[0], "--features")
    assert [stage["linear_cka"] for stage in found["features"]] == pytest.approx([1] * 4)
    assert any("linear CKA at layer2" in line for line in as_lines(pair[0], pair[0], "--features"))


@pytest.mark.slow
def test_weights_or_data_that_are_not_those_of_the_run(copies):
    student, teacher = copies
    file = teacher / "best.safetensors"
    whole = file.read_bytes()
    tensors, metadata = load_file(file), weights.read_metadata(file)
    tensors["fc.bias"] += 1
    weights.save(tensors, file, metadata)
    assert refused(student, teacher) == ("checksum", "path")
    file.write_bytes(whole)
    hashes = {"test": "0" * 64}
    for path in copies:
        rewrite_summary(path, data_sha256=hashes)
    assert refused(student, teacher) == ("not_found", "--data-root")
    for path in copies:
        rewrite_summary(path, data_sha256=None)
        logits = load_file(path / "logits.safetensors")
        logits["test_labels"] = logits["test_labels"].flip(0).contiguous()
        save_file(logits, path / "logits.safetensors")
        rewrite_summary(path, logits_sha256=None)
    assert refused(student, teacher) == ("mismatch", "--data-root")
    file.unlink()
    assert refused(student, teacher) == ("not_found", "RUN_B")


@pytest.mark.slow
def test_networks_of_the_user_need_trust(copies):
    student, teacher = copies
    edit_config(teacher, "student", _target_="tests.networks.Plain")
    assert refused(student, teacher) == ("untrusted", "student._target_")


@pytest.mark.slow
def test_trusted_networks_and_data_are_used(small, tmp_path, monkeypatch, as_dict):
    (tmp_path / "own_code.py").write_text(OWN_CODE)
    monkeypatch.syspath_prepend(tmp_path)
    own = ("student._target_=own_code.Net", "student.name=own", "data._target_=own_code.Drawn", "data.name=drawn")
    path = complete(small("method=ce", *own)).path
    assert refused(path, path)[0] == "untrusted"
    found = as_dict(path, path, "--features", "--trust", "own_code", "--trust", "kdbench")
    assert [stage["linear_cka"] for stage in found["features"]] == pytest.approx([1] * 4)


@pytest.mark.slow
def test_stages_of_one_name_are_compared(copies, as_dict):
    student, teacher = copies
    edit_config(teacher, "student", stages={"layer2": "layer2", "mine": "layer1"})
    assert [stage["stage"] for stage in as_dict(student, teacher, "--features")["features"]] == ["layer2"]
    edit_config(teacher, "student", stages={"mine": "layer1"})
    found = as_dict(student, teacher, "--features")
    assert found["features"] == []
    assert "no stage of the same name" in found["notes"][-1]


@pytest.mark.slow
def test_the_remedy_for_missing_logits_restores_them(kdbench, copies):
    """The command of the error, given as it is."""
    student, teacher = copies
    before = read_run(student, "RUN_A").predictions
    (student / "logits.safetensors").unlink()
    with pytest.raises(ConfigError) as error:
        compare([str(student), str(teacher)])
    words = str(error.value).partition("kdbench ")[2].split()
    assert kdbench(*words).code == 0
    assert list(Path().iterdir()) == []  # Hydra, which is not in a recorded config, would write a folder of its own
    assert read_run(student, "RUN_A").predictions.p == pytest.approx(before.p, abs=1e-4)


def test_maps_and_tokens_are_averaged():
    maps = torch.arange(24.0).reshape(2, 3, 2, 2)
    assert np.array_equal(pooled(maps), maps.numpy().mean((2, 3)))
    tokens = torch.arange(24.0).reshape(2, 4, 3)
    assert np.array_equal(pooled(tokens), tokens.numpy().mean(1))
    embeddings = torch.arange(6.0).reshape(2, 3)
    assert np.array_equal(pooled(embeddings), embeddings)
