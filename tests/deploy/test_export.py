"""Exported files: what they compute without kdbench, and that nothing wrong or half written is left behind."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdbench.config import RunConfig
from kdbench.data import load
from kdbench.deploy import export as exports
from kdbench.errors import ConfigError
from kdbench.pipeline.export import export
from kdbench.rundir.load import load_run
from kdbench.rundir.recorded_config import read_config
from tests.conftest import complete, rest_wide
from tests.derived import Copies, texts

ONNX_WITHOUT_KDBENCH = """
import json, sys
import numpy as np, onnxruntime
folder, images = sys.argv[1:]
told = json.load(open(folder + "/model.json"))
session = onnxruntime.InferenceSession(folder + "/" + told["file"], providers=["CPUExecutionProvider"])
pre = told["preprocessing"]
mean, std = (np.array(pre[key], np.float32)[:, None, None] for key in ("mean", "std"))
pixels = np.load(images).transpose(0, 3, 1, 2)
given = ((pixels.astype(np.float32) / pre["divide_by"]) - mean) / std
(logits,) = session.run([told["output"]["name"]], {told["input"]["name"]: given})
assert not any(name.split(".")[0] in ("kdbench", "torch") for name in sys.modules)
np.save(folder + "/logits.npy", logits)
"""
TORCH_WITHOUT_KDBENCH = """
import json, sys
import numpy as np, torch
folder, images = sys.argv[1:]
told = json.load(open(folder + "/model.json"))
pre = told["preprocessing"]
network = torch.export.load(folder + "/" + told["file"]).module()
mean, std = (torch.tensor(pre[key])[:, None, None] for key in ("mean", "std"))
pixels = torch.from_numpy(np.load(images)).permute(0, 3, 1, 2)
with torch.no_grad():
    logits = torch.cat([network(part) for part in ((pixels / pre["divide_by"] - mean) / std).split(13)])
assert "kdbench" not in sys.modules
np.save(folder + "/logits.npy", logits.numpy())
"""


def exported(run: Path, out: Path, *arguments: str) -> dict[str, Any]:
    export(texts([run, "--out", out, *arguments]))
    description: dict[str, Any] = json.loads((out / "model.json").read_text())
    return description


def refusal(run: Path, out: Path, *arguments: str) -> tuple[str, str, str]:
    with pytest.raises(ConfigError) as error:
        export(texts([run, "--out", out, *arguments]))
    assert "\n" not in str(error.value)
    return error.value.code, error.value.key, str(error.value)


def pictures_of(run: Path) -> np.ndarray:
    return load(read_config(run / "config.yaml").data, "cpu").test.images.numpy()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "script", "arm"),
    rest_wide(
        [
            ("onnx", ONNX_WITHOUT_KDBENCH, "root"),
            ("torch", TORCH_WITHOUT_KDBENCH, "root"),
            ("onnx", ONNX_WITHOUT_KDBENCH, "int8"),
            ("onnx", ONNX_WITHOUT_KDBENCH, "magnitude"),
            ("torch", TORCH_WITHOUT_KDBENCH, "structured"),
            ("torch", TORCH_WITHOUT_KDBENCH, "bf16"),
        ],
    ),
)
def test_a_program_alone_gives_logits_and_accuracy_of_the_run_by_its_description(
    copies: Copies, tmp_path: Path, form: str, script: str, arm: str
) -> None:
    run = copies(*{arm} - {"root"})[arm]
    told = exported(run, tmp_path / "x", "--to", form)
    np.save(tmp_path / "images.npy", pictures_of(run))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", script, str(tmp_path / "x"), str(tmp_path / "images.npy")]
    subprocess.run(command, check=True, env=environment, cwd=tmp_path, timeout=600)
    logits = np.load(tmp_path / "x" / "logits.npy")
    own = load_run(run)
    largest = float(np.abs(own.logits["test_logits"]).max())
    np.testing.assert_allclose(logits, own.logits["test_logits"], atol=(2e-2 if arm == "bf16" else 1e-4) * largest)
    accuracy = float((logits.argmax(1) == own.logits["test_labels"]).mean())
    assert accuracy == pytest.approx(own.summary.test_acc_best, abs=0.04 if arm == "bf16" else 1e-9)
    assert told["checked"]["test_accuracy_of_the_run"] == pytest.approx(own.summary.test_acc_best)
    assert told["run"] == own.summary.run_key
    assert told["classes"] == list(own.summary.class_names or ())
    assert [step["name"] for step in told["compression"]] == ([] if arm == "root" else [arm])


def test_weights_have_the_names_of_the_architecture_without_masks(copies: Copies, tmp_path: Path) -> None:
    runs = copies("magnitude")
    for arm, run in runs.items():
        told = exported(run, tmp_path / arm, "--to", "safetensors")
        assert told["file"] == "model.safetensors"
    plain, pruned = (load_file(tmp_path / arm / "model.safetensors") for arm in ("root", "magnitude"))
    own = load_file(runs["root"] / "best.safetensors")
    assert plain.keys() == own.keys() == pruned.keys()
    assert all(torch.equal(plain[name], own[name]) for name in own)
    weights = [name for name in own if own[name].ndim > 1]
    zeros = sum(int((pruned[name] == 0).sum()) for name in weights)
    assert zeros == round(0.8 * sum(own[name].numel() for name in weights))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "torch", "safetensors"])
def test_a_method_that_predicts_is_part_of_the_export(
    small: Callable[..., RunConfig], tmp_path: Path, form: str
) -> None:
    run = complete(small("method=simkd", "recipe.epochs=1")).path
    told = exported(run, tmp_path / "x", "--to", form)
    own = load_run(run)
    assert told["checked"]["largest_difference_of_logits"] < 1e-4
    assert told["checked"]["test_accuracy"] == pytest.approx(own.summary.test_acc_best)
    if form == "safetensors":
        names = load_file(tmp_path / "x" / "model.safetensors")
        assert any(name.startswith("method.") for name in names)
        code, key, _ = refusal(run, tmp_path / "y", "--to", "safetensors", "--names", "torchvision")
        assert (code, key) == ("not_exportable", "--names")


# What is not written


@pytest.mark.parametrize("form", rest_wide(["safetensors", "torch", "onnx"]))
def test_an_export_with_other_logits_is_not_written(
    copies: Copies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    run = copies()["root"]
    compare = exports.check_logits

    def of_others(execute: Callable[[torch.Tensor], torch.Tensor], *arguments: Any) -> Any:
        return compare(lambda images: execute(images) + 0.05 * torch.randn(10), *arguments)

    monkeypatch.setattr(exports, "check_logits", of_others)
    before = sorted(tmp_path.iterdir())
    code, key, message = refusal(run, tmp_path / "x", "--to", form)
    assert (code, key) == ("mismatch", "--to")
    assert "nothing was written" in message
    assert sorted(tmp_path.iterdir()) == before


def test_weights_of_another_network_are_found_by_the_logits(copies: Copies, tmp_path: Path) -> None:
    """The check is one of the file: a writer that mixes weights up would be found."""
    run = copies()["root"]
    with pytest.MonkeyPatch.context() as patched:
        plain = exports.plain_module

        def negated(network: Any, method: Any = None) -> Any:
            module = plain(network, method)
            module.fc.weight.data.neg_()
            return module

        patched.setattr(exports, "plain_module", negated)
        code, key, _ = refusal(run, tmp_path / "x", "--to", "safetensors")
    assert (code, key) == ("mismatch", "--to")
    assert not (tmp_path / "x").exists()


def test_a_write_that_fails_leaves_nothing_behind(
    copies: Copies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copies()["root"]

    def full(path: Path, content: Any) -> None:
        path.write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exports, "write_json", full)
    before = sorted(tmp_path.iterdir())
    code, key, message = refusal(run, tmp_path / "x", "--to", "safetensors")
    assert (code, key) == ("not_writable", "--out")
    assert "No space left on device" in message
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_exists_is_refused_and_stays(copies: Copies, tmp_path: Path) -> None:
    run = copies()["root"]
    for out in (tmp_path / "folder", tmp_path / "file", tmp_path / "link"):
        if out.name == "folder":
            out.mkdir()
        elif out.name == "file":
            out.write_text("mine")
        else:
            out.symlink_to(tmp_path / "nowhere")
        code, key, _ = refusal(run, out, "--to", "safetensors")
        assert (code, key) == ("exists", "--out")
    assert list((tmp_path / "folder").iterdir()) == []
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_below_a_file_is_refused(copies: Copies, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, key, _ = refusal(copies()["root"], tmp_path / "file" / "x", "--to", "safetensors")
    assert (code, key) == ("not_writable", "--out")


@pytest.mark.parametrize(("umask", "folder", "file"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600)])
def test_the_permissions_follow_the_umask(copies: Copies, tmp_path: Path, umask: int, folder: int, file: int) -> None:
    run = copies()["root"]
    before = os.umask(umask)
    try:
        exported(run, tmp_path / "a" / "x", "--to", "safetensors")
    finally:
        os.umask(before)
    assert (tmp_path / "a" / "x").stat().st_mode & 0o777 == folder
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "a" / "x").iterdir()} == {file}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["x"]


# Bad input


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torch", "safetensors"])
def test_an_8_bit_graph_is_exported_as_onnx_alone(copies: Copies, tmp_path: Path, form: str) -> None:
    code, key, message = refusal(copies("int8")["int8"], tmp_path / "x", "--to", form)
    assert (code, key) == ("not_exportable", "--to")
    assert "--to onnx" in message


@pytest.mark.parametrize(
    ("arguments", "code", "key"),
    [
        (["--to", "tflite"], "usage", ""),
        (["--to", "onnx", "--names", "timm"], "usage", "--names"),
        (["--to", "safetensors", "--architecture", "resnet18"], "usage", "--architecture"),
        (["--to", "onnx", "--data-root", "nowhere"], "not_found", "--data-root"),
        (["--to", "onnx", "--config-dir", "nowhere"], "usage", ""),
        (["--to", "safetensors", "--names", "torchvision"], "not_found", "--names"),
        (["--to", "safetensors", "--names", "timm", "--architecture", "resnet9000"], "not_found", "--architecture"),
    ],
)
def test_wrong_arguments_are_refused(copies: Copies, tmp_path: Path, arguments: list[str], code: str, key: str) -> None:
    found = refusal(copies()["root"], tmp_path / "x", *arguments)
    assert found[:2] == (code, key)
    assert not (tmp_path / "x").exists()


def test_a_network_of_other_layers_there_is_refused_with_what_to_do(copies: Copies, tmp_path: Path) -> None:
    arguments = ("--to", "safetensors", "--names", "torchvision", "--architecture", "resnet18")
    _, key, message = refusal(copies()["root"], tmp_path / "x", *arguments)
    assert key == "--names"
    assert "use --names plain" in message
    assert "weights.safetensors" not in message


def test_a_config_that_was_edited_since_is_refused(copies: Copies, tmp_path: Path) -> None:
    run = copies()["root"]
    text = (run / "config.yaml").read_text()
    assert "num_test: 60" in text
    (run / "config.yaml").write_text(text.replace("num_test: 60", "num_test: 50"))
    code, _, message = refusal(run, tmp_path / "x", "--to", "safetensors")
    assert code == "checksum"
    assert "config.yaml" in message
