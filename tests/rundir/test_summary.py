"""summary.json: typed, checksummed, read and written in one place."""

import ast
import dataclasses
import json
from pathlib import Path

import pytest

import kdbench
from kdbench.errors import ConfigError
from kdbench.rundir.summary import (
    GIVEN,
    KEYS,
    RunSummary,
    changed_file,
    checksum_of,
    names,
    read_summary,
    read_unverified,
    write_summary,
)

SOURCE = Path(kdbench.__file__).parent

SUMMARY = RunSummary(
    run_key="0123456789abcdef", student="resnet8", teacher="resnet20", method="logit", role="distilled",
    test_acc_best=0.5, recipe={"lr": 0.1}, seed=3, init_seed=3, data_seed=4, logit_cache=True, test_nll=1.25,
    per_class_acc=[0.5, None], environment={"device": "some processor"},
)  # fmt: skip

WRONG = {
    "seed": (-1, 1.0, True, "1"),
    "best_val_acc": (1.5, -0.1, "0.5", float("nan"), True),
    "test_nll": (float("inf"), "1"),
    "recipe": ([], "paper"),
    "per_class_acc": ([2], "0.5", {}),
    "logit_cache": (1, "on"),
    "validation": (0, "false"),
    "role": (1, ["baseline"]),
    "run_key": (5,),
    "test_acc_best": ("high", 50.0),
}


@pytest.fixture
def folder(tmp_path):
    write_summary(tmp_path, SUMMARY)
    return tmp_path


def content_of(folder):
    return json.loads((folder / "summary.json").read_text())


def write(folder, content):
    (folder / "summary.json").write_text(json.dumps(content))


def test_a_summary_reads_back_equal(folder):
    read = read_summary(folder)
    assert dataclasses.replace(read, checksum=None) == SUMMARY
    assert read.checksum == checksum_of(content_of(folder))


def test_the_file_holds_every_key_and_null_where_there_is_no_value(folder):
    content = content_of(folder)
    assert set(content) == set(KEYS)
    assert {name for name, value in content.items() if value is None} >= {"macs", "teacher_key", "kl_t1"}


def test_absent_keys_are_null_and_unknown_keys_are_ignored(folder):
    write(folder, names(run_key="a", student="b", method="c", test_acc_best=0) | {"future": [1]})
    read = read_summary(folder)
    assert read == RunSummary(run_key="a", student="b", method="c", test_acc_best=0)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_a_value_of_the_wrong_type_is_an_error_with_its_key(folder, name, value):
    content = content_of(folder) | {name: value}
    write(folder, content | {"checksum": checksum_of(content)})
    with pytest.raises(ConfigError) as error:
        read_summary(folder)
    assert (error.value.code, error.value.key) == ("damaged", name)


@pytest.mark.parametrize("name", [name for name, f in KEYS.items() if f.metadata["required"]])
@pytest.mark.parametrize("absent", [True, False])
def test_a_missing_key_that_every_reader_needs_is_an_error(folder, name, absent):
    content = content_of(folder)
    if absent:
        del content[name]
    else:
        content[name] = None
    write(folder, content)
    with pytest.raises(ConfigError) as error:
        read_unverified(folder)
    assert (error.value.code, error.value.key) == ("damaged", name)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '"text"', "null", "[" * 100_000, "\ufeff{}"])
def test_a_damaged_file_is_an_error_in_one_line(folder, text):
    (folder / "summary.json").write_text(text)
    with pytest.raises(ConfigError) as error:
        read_summary(folder)
    assert error.value.code == "damaged"
    assert "\n" not in str(error.value)


def test_bytes_that_are_no_text_are_an_error(folder):
    (folder / "summary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError) as error:
        read_summary(folder)
    assert error.value.code == "damaged"


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ConfigError) as error:
        read_summary(tmp_path)
    assert (error.value.code, error.value.key) == ("damaged", "summary.json")


def test_an_edited_file_is_refused_until_its_checksum_matches_again(folder):
    edited = content_of(folder) | {"test_acc_best": 0.99}
    write(folder, edited)
    with pytest.raises(ConfigError) as error:
        read_summary(folder)
    assert (error.value.code, error.value.key) == ("checksum", "summary.json")
    assert read_unverified(folder)[1] is False
    write(folder, edited | {"checksum": checksum_of(edited)})
    assert read_summary(folder).test_acc_best == 0.99


def test_a_file_that_was_only_formatted_anew_is_accepted(folder):
    (folder / "summary.json").write_text(json.dumps(dict(reversed(content_of(folder).items())), indent=None))
    assert read_summary(folder).test_acc_best == 0.5


def test_a_record_that_changed_since_is_named(tmp_path):
    (tmp_path / "config.yaml").write_text("a: 1\n")
    (tmp_path / "metrics.csv").write_text("epoch\n1\n")
    digests = {"config_sha256": "0" * 64, "metrics_sha256": "0" * 64}
    assert changed_file(tmp_path, SUMMARY) is None  # no hashes were recorded
    assert changed_file(tmp_path, dataclasses.replace(SUMMARY, **digests)) == "config.yaml"
    (tmp_path / "config.yaml").unlink()
    assert changed_file(tmp_path, dataclasses.replace(SUMMARY, **digests)) == "metrics.csv"


def test_a_summary_without_the_key_validation_is_of_a_run_with_validation(folder):
    content = content_of(folder)
    for known in ({}, {"validation": None}):
        write(folder, {key: value for key, value in content.items() if key not in ("checksum", "validation")} | known)
        assert read_summary(folder).validation is True
    write_summary(folder, dataclasses.replace(SUMMARY, validation=False))
    assert read_summary(folder).validation is False


def test_seeds_are_those_of_initialisation_and_data():
    assert SUMMARY.seeds == (3, 4)
    assert dataclasses.replace(SUMMARY, init_seed=None, data_seed=None).seeds == (3, 3)


def test_device_and_given_weights_are_read_from_the_keys():
    assert SUMMARY.device == "some processor"
    assert dataclasses.replace(SUMMARY, environment=None).device is None
    assert not SUMMARY.is_given
    assert dataclasses.replace(SUMMARY, method=GIVEN).is_given


# Keys as text

ALSO_ELSEWHERE = {
    "student", "teacher", "method", "recipe", "seed", "init_seed", "data_seed", "num_train", "num_val", "num_test",
    "precision", "checksum", "environment", "status", "epochs", "dataset", "stem", "images_per_second", "lockstep",
    "teacher_weights_sha256", "validation",
}  # fmt: skip
"""Keys of summary.json that are also keys of configs, checkpoints or records of speed, or columns of metrics.csv."""


def key_literals(file):
    """Return the lines that read a key of summary.json as text: `x["macs"]`, `x.get("macs")`, `"macs" in x`."""
    own = set(KEYS) - ALSO_ELSEWHERE

    def is_key(node):
        return isinstance(node, ast.Constant) and node.value in own

    text = file.read_text()
    for node in ast.walk(ast.parse(text)) if any(key in text for key in own) else ():
        subscript = isinstance(node, ast.Subscript) and is_key(node.slice)
        get = (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("get", "pop", "setdefault") and node.args and is_key(node.args[0])
        )  # fmt: skip
        contained = isinstance(node, ast.Compare) and is_key(node.left) and isinstance(node.ops[0], ast.In | ast.NotIn)
        if subscript or get or contained:
            yield f"{file.relative_to(SOURCE)}:{node.lineno}: {ast.unparse(node)}"


def test_no_key_of_a_summary_stands_as_text_outside_its_module():
    files = sorted(file for file in SOURCE.rglob("*.py") if file != SOURCE / "rundir" / "summary.py")
    assert len(files) > 50
    assert [line for file in files for line in key_literals(file)] == []


def test_a_key_that_stands_as_text_would_be_found(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.rundir.test_summary.SOURCE", tmp_path)
    file = tmp_path / "module.py"
    file.write_text('a["macs"]\nb.get("run_key", 1)\n"best_val_acc" in c\nd["student"]\n"macs"\n')
    assert [line.split(": ")[1] for line in key_literals(file)] == [
        "a['macs']", "b.get('run_key', 1)", "'best_val_acc' in c",
    ]  # fmt: skip
