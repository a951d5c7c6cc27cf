"""Runs that cannot be compared: one error each, with code and key."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from kdbench.compare.command import compare
from kdbench.errors import ConfigError
from kdbench.rundir.files import sha256
from tests.compare.conftest import CLASSES, logits_for, random_run
from tests.report.conftest import write_failed_run, write_run, write_unfinished_run


def refused(*arguments):
    """Return code, key and message of the command's error."""
    with pytest.raises(ConfigError) as error:
        compare([*map(str, arguments)])
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2
    return error.value.code, error.value.key, str(error.value)


@pytest.fixture
def good(tmp_path):
    return random_run(tmp_path / "runs")


def edit_logits(folder, **changes):
    """Replace tensors of logits.safetensors; None removes one."""
    file = folder / "logits.safetensors"
    tensors = load_file(file) | changes
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items() if tensor is not None}, file)


def test_paths_that_are_no_run_directories(tmp_path, good):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name, code, what in (
        ("nowhere", "not_found", "no such folder"), ("file", "not_found", "is a file"),
        ("empty", "no_run", "no summary.json"), ("runs", "no_run", "holds 1 run,"), ("x" * 300, "not_found", "x"),
    ):  # fmt: skip
        for arguments, key in (
            ((tmp_path / name, good), "RUN_A"),
            ((good, tmp_path / name), "RUN_B"),
            ((good, good, "--teacher", tmp_path / name), "--teacher"),
        ):
            found = refused(*arguments)
            assert found[:2] == (code, key)
            assert what in found[2]
            assert f"{key} is " in found[2]


def test_unfinished_and_failed_runs(tmp_path, good):
    unfinished = write_unfinished_run(tmp_path, student="resnet8", method="ce", seed=0)
    assert refused(good, unfinished)[:2] == ("no_run", "RUN_B")
    failed = write_failed_run(tmp_path, seed=4)
    code, key, message = refused(failed, good)
    assert (code, key) == ("no_run", "RUN_A")
    assert "not_finite: epoch 2: it fails" in message
    (failed / "failure.json").write_text("{")
    assert refused(failed, good)[:2] == ("no_run", "RUN_A")
    other = random_run(tmp_path, 5, status="failed")
    assert refused(good, other)[:2] == ("no_run", "RUN_B")


def test_damaged_and_changed_summaries(tmp_path, good):
    broken = shutil.copytree(good, tmp_path / "broken")
    (broken / "summary.json").write_text("{")
    assert refused(good, broken)[:2] == ("damaged", "summary.json")
    changed = random_run(tmp_path, 3, checksum="0" * 64)
    assert refused(good, changed)[:2] == ("checksum", "summary.json")


def test_missing_logits_are_named_with_a_remedy(tmp_path, good):
    bare = write_run(tmp_path / "out dir" / "runs", seed=3)
    code, key, message = refused(good, bare)
    assert (code, key) == ("not_found", "RUN_B")
    assert "has no logits.safetensors" in message
    assert "its command with overwrite=true" in message
    (bare / "config.yaml").touch()
    command = f"kdbench --config-path '{bare}' --config-name config 'output_root={tmp_path}/out dir' overwrite=true"
    assert refused(good, bare)[2].endswith(command)
    given = write_run(tmp_path, method="checkpoint", seed=5)
    assert f"delete {given}" in refused(good, given)[2]


@pytest.mark.parametrize(
    ("changes", "code", "what"),
    [
        ({"test_logits": None}, "damaged", "test_logits"),
        ({"test_labels": None}, "damaged", "test_labels"),
        ({"test_logits": np.zeros((300, CLASSES), np.int32)}, "damaged", "int32"),
        ({"test_logits": np.zeros(300, np.float32)}, "damaged", "[300]"),
        ({"test_logits": np.zeros((300, 1), np.float32)}, "damaged", "[300, 1]"),
        ({"test_labels": np.zeros(299, np.int64)}, "damaged", "[299]"),
        ({"test_labels": np.zeros(300, np.float32)}, "damaged", "float32"),
        ({"test_labels": np.full(300, CLASSES)}, "damaged", "from 5 to 5"),
        ({"test_labels": np.full(300, -1)}, "damaged", "from -1 to -1"),
        ({"test_logits": np.full((300, CLASSES), np.nan, np.float32)}, "not_finite", "1500 are not finite"),
        ({"test_logits": np.full((300, CLASSES), np.inf, np.float16)}, "not_finite", "1500 are not finite"),
    ],
)
def test_files_without_usable_logits(good, tmp_path, changes, code, what):
    other = random_run(tmp_path, 1)
    edit_logits(other, **changes)
    found = refused(good, other)
    assert found[:2] == (code, "RUN_B")
    assert what in found[2]
    assert "restore the file from a copy, or train the run again" in found[2]


def test_a_file_of_other_bytes_and_one_that_was_changed(good, tmp_path):
    other = random_run(tmp_path, 1)
    recorded = random_run(tmp_path, 2, logits_sha256=sha256(other / "logits.safetensors"))
    assert refused(good, recorded)[0] == "checksum"
    (other / "logits.safetensors").write_bytes(b"\xff" * 20)
    assert refused(good, other)[:2] == ("damaged", "RUN_B")


def test_other_images_or_another_order(good, tmp_path):
    labels = load_file(good / "logits.safetensors")["test_labels"]
    hashes = {"test": "a" * 64}
    turned = write_run(tmp_path, seed=7, logits=(logits_for(labels), labels[::-1]))
    code, key, message = refused(good, turned)
    assert (code, key) == ("mismatch", "RUN_B")
    assert "300 labels with SHA-256 " in message
    assert "data_sha256" not in message
    fewer = write_run(tmp_path, seed=8, logits=(logits_for(labels[:9]), labels[:9]), data_sha256=hashes)
    assert refused(good, good, "--teacher", fewer)[:2] == ("mismatch", "--teacher")
    more = random_run(tmp_path, 9, data_sha256={"test": "b" * 64})
    message = refused(fewer, more)[2]
    assert f"data_sha256.test is {'a' * 12} and {'b' * 12}" in message
    same_labels = random_run(tmp_path, 10, data_sha256=hashes)
    code, key, message = refused(more, same_labels)
    assert (code, key) == ("mismatch", "RUN_B")
    assert "equal labels" in message


def test_other_classes(good, tmp_path):
    labels = load_file(good / "logits.safetensors")["test_labels"]
    six = write_run(tmp_path, seed=7, logits=(logits_for(labels, classes=6), labels))
    code, key, message = refused(good, six)
    assert (code, key) == ("mismatch", "RUN_B")
    assert "has 5 classes" in message
    named = [random_run(tmp_path, 8, class_names=list(names)) for names in ("abcde", "abxde")]
    code, key, message = refused(*named)
    assert (code, key) == ("mismatch", "RUN_B")
    assert "class 2 is 'c'" in message
    few = random_run(tmp_path, 9, class_names=["a", "b"])
    assert refused(good, few)[:2] == ("damaged", "RUN_B")


def test_features_without_weights(good):
    code, key, message = refused(good, good, "--features")
    assert (code, key) == ("not_found", "RUN_A")
    assert "lacks config.yaml and best.safetensors" in message


@pytest.mark.parametrize(
    ("arguments", "code", "key"),
    [
        ([], "usage", ""),
        (["."], "usage", ""),
        ([".", ".", "."], "usage", ""),
        ([".", ".", "--nonsense"], "usage", ""),
        ([".", ".", "--trust", "torchvision"], "usage", "--trust"),
        ([".", ".", "--data-root", "."], "usage", "--data-root"),
        ([".", ".", "--features", "--trust", "a b"], "out_of_range", "--trust"),
        ([".", ".", "--features", "--data-root", "nowhere"], "not_found", "--data-root"),
    ],
)
def test_wrong_command_lines(arguments, code, key):
    assert refused(*arguments)[:2] == (code, key)


def test_a_damaged_file_leaves_standard_output_empty(good, tmp_path, capsys):
    other = random_run(tmp_path, 1)
    (other / "logits.safetensors").write_bytes(json.dumps({}).encode())
    refused(good, other, "--json")
    assert capsys.readouterr().out == ""
