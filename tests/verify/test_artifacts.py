"""Artifacts that are damaged, missing, elsewhere, in their small form, or of code that is not trusted."""

import random
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from kdbench.config.schema import added, setting
from kdbench.data.embedded import Shapes
from kdbench.errors import ConfigError
from kdbench.models import weights
from kdbench.verify.checks import FAIL, NOT_CHECKED, PASS
from kdbench.verify.command import verify_runs
from kdbench.verify.record import CHECKSUM
from tests.conftest import complete, rest_wide
from tests.verify.conftest import checked, edit_config, rewrite_summary, summary_of

FILES = ("summary.json", "config.yaml", "metrics.csv", "logits.safetensors", "best.safetensors")
KEEP_RESULTS = Path(__file__).parents[2] / "scripts" / "keep_results.py"


@pytest.mark.parametrize("name", rest_wide(FILES))
def test_truncated_file_is_a_failed_check(student, capsys, name):
    content = (student / name).read_bytes()
    for size in (0, len(content) // 2, len(content) - 2):
        (student / name).write_bytes(content[:size])
        assert verify_runs([str(student), "--quick"]) == 1
        assert FAIL in capsys.readouterr().out


@pytest.mark.parametrize("name", rest_wide(reversed(FILES)))
def test_flipped_bit_is_a_failed_check(student, capsys, name):
    content = (student / name).read_bytes()
    draw = random.Random(0)
    for place in (0, *(draw.randrange(len(content)) for _ in range(3))):
        damaged = bytearray(content)
        damaged[place] ^= 1 << draw.randrange(8)
        (student / name).write_bytes(damaged)
        assert verify_runs([str(student), "--quick"]) == 1
        assert FAIL in capsys.readouterr().out


@pytest.mark.parametrize("name", rest_wide([*FILES[1:], "train.log"], 2))
def test_missing_file_is_a_failed_check(student, name):
    (student / name).unlink()
    assert checked(student) == {"files": f"there is no {name}"}


@pytest.mark.parametrize("content", ["[]", "{}", "null", '{"run_key": [], "teacher_key": "../*", "method": {}}'])
def test_summary_with_other_content_is_a_failed_check(student, content):
    (student / "summary.json").write_text(content)
    assert checked(student).keys() == {"summary.json"}


def test_weights_that_are_not_finite_or_of_another_architecture_are_found(student, teacher):
    file = student / "best.safetensors"
    metadata, state = weights.read_metadata(file), load_file(file)
    state["fc.bias"][0] = torch.nan
    weights.save(state, file, metadata)
    assert "fc.bias" in checked(student)["weights"]
    file.write_bytes((teacher / "best.safetensors").read_bytes())
    assert {"weights", "architecture of the weights"} <= checked(student).keys()


@dataclass
class KeysOfFiles(Shapes.Config):
    root: str = added(setting(identity=False), "")


def test_missing_data_are_not_checked_and_are_found_elsewhere(student, replace_loader, tmp_path, monkeypatch):
    drawn = Shapes.load

    def from_disk(self):
        if self.config.root != str(tmp_path):
            raise ConfigError(f"there is no folder {self.config.root}", code="not_found", key="data.root")
        return drawn(self)

    replace_loader(from_disk)
    monkeypatch.setattr(Shapes, "Config", KeysOfFiles)
    edit_config(student, "data", root="/nowhere/at/all")
    unchecked = checked(student, NOT_CHECKED, quick=False)
    assert "--data-root" in unchecked["data"]
    assert {"hashes of the data", "labels", "logits from the weights"} <= unchecked.keys()
    assert checked(student, quick=False) == {}
    passed = checked(student, PASS, quick=False, data_root=tmp_path)
    assert {"data_sha256", "test_logits from the weights"} <= passed.keys()


def test_runs_in_their_small_form_are_checked_as_far_as_possible(runs, student, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [KEEP_RESULTS.name, str(runs), "--out", str(tmp_path / "small")])
    runpy.run_path(str(KEEP_RESULTS), run_name="__main__")
    small = tmp_path / "small" / student.name
    assert verify_runs([str(tmp_path / "small")]) == 0
    assert {"files", "logits_sha256", "best_val_acc"} <= checked(small, NOT_CHECKED).keys()
    passed = checked(small, PASS)
    assert {CHECKSUM, "metrics_sha256", "test_acc_best", "agreement", "metrics.csv"} <= passed.keys()
    rewrite_summary(small, test_acc_best=0.9, agreement=0.9)
    final = {"test_acc_final"} if summary_of(student).best_val_epoch == 3 else set()
    assert checked(small).keys() == {"test_acc_best", "agreement"} | final


@pytest.fixture
def untrusted(tmp_path, monkeypatch):
    """A module that writes a file when it is imported, and that file."""
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')\ndef net(num_classes): return None\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "marker"
    sys.modules.pop("evil", None)


@pytest.mark.parametrize("target", ["evil.net", "kdbench.runner.environment.subprocess.run"])
def test_untrusted_code_is_not_imported(student, untrusted, target):
    edit_config(student, "student", _target_=target)
    failed = checked(student)
    assert target in failed["config.yaml"]
    assert "--trust" in failed["config.yaml"]
    assert not untrusted.exists()


def test_code_of_a_trusted_module_is_run(small, tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "from kdbench.models.cifar_resnet import CifarResNet\n"
        "def tiny(num_classes): return CifarResNet(8, [8, 16, 16, 16], num_classes)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = small("method=ce")
    config.student.target, config.student.arguments = "my_nets.tiny", {}
    run = str(complete(config).path)
    assert verify_runs([run]) == 1
    assert verify_runs([run, "--trust", "my_nets"]) == 0
    sys.modules.pop("my_nets")
