"""Calls with a user's mistakes in compressing, exporting and measuring; tests/test_messages.py holds their messages."""

import builtins
import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench.deploy import export as exports
from kdbench.pipeline.compress import compress
from kdbench.pipeline.export import export
from kdbench.pipeline.measure import measure
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.related import check_parent_unchanged
from kdbench.rundir.summary import read_summary
from tests.conftest import NARROW, SMALL, complete, composed_once
from tests.networks import Plain


class WithoutTranslation(Plain):
    """A network with an operation that ONNX cannot express."""

    def forward(self, images):
        values = torch.linalg.svdvals(images.mean(1))
        return super().forward(images) + values.sum(1, keepdim=True)


@functools.cache
def trained_in(folder: str, *overrides: str) -> RunDirectory:
    """Train a run in a folder, once."""
    root = Path(folder, "deployment")
    return complete(composed_once(*SMALL, *NARROW[:1], "teacher=none", "method=ce", f"output_root={root}", *overrides))


def trained(*overrides: str) -> str:
    """Return the run directory of a trained network, relative to the working directory."""
    return str(trained_in(str(Path.cwd()), *overrides).path.relative_to(Path.cwd()))


def compressed(*words: str) -> None:
    """Compress the trained network; a step that fails raises its error."""
    run_command(compress, [trained(), *words])


def run_command(command: Callable[[list[str]], Any], arguments: list[str]) -> None:
    """Execute a command whose errors may be printed; raise them in place of that."""
    with pytest.MonkeyPatch.context() as patched:

        def raised(error: Exception, *_: Any, **__: Any) -> int:
            raise error

        patched.setattr("kdbench.pipeline.compress.report_error", raised)
        command(arguments)


def measured_as_run() -> None:
    """Compress a measurement."""
    measure([trained(), "engines=[torch]", "rounds=3", "batches=[1]", "warmup=1"])
    (folder,) = Path("deployment/runs").glob("*_measured_*")
    compress([str(folder), "method=magnitude"])


def small_form() -> None:
    """Compress a run without its weights."""
    folder = trained_in(str(Path.cwd()), "seed=7").path
    (folder / "best.safetensors").unlink(missing_ok=True)
    compress([str(folder), "method=magnitude"])


def unfinished() -> None:
    """Compress a run without a summary."""
    folder = Path("deployment/runs/shapes_resnet8_ce_seed9_0123456789abcdef")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("a: 1\n")
    (folder / "train.log").touch()
    compress([str(folder), "method=magnitude"])


def of_two_roots() -> None:
    """Measure runs of two output roots."""
    other = complete(
        composed_once(*SMALL, *NARROW[:1], "teacher=none", "method=ce", f"output_root={Path.cwd() / 'other'}")
    )
    measure([trained(), str(other.path)])


@contextmanager
def without_package(name: str) -> Iterator[None]:
    """Let the import of a package fail, as where it is not installed."""
    real = builtins.__import__

    def importing(wanted: str, *args: Any, **kwargs: Any) -> Any:
        if wanted.partition(".")[0] == name:
            raise ImportError(f"No module named {name!r}")
        return real(wanted, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        for module in [module for module in sys.modules if module.partition(".")[0] == name]:
            patched.delitem(sys.modules, module)
        patched.setattr(builtins, "__import__", importing)
        yield


def without_extra(package: str, *words: str) -> None:
    """Compress where a package is not installed."""
    with without_package(package):
        compressed(*words)


def own_network(target: str) -> str:
    """Return the run directory of a trained network of one's own."""
    return str(own_run(str(Path.cwd()), target).path)


@functools.cache
def own_run(folder: str, target: str) -> RunDirectory:
    config = composed_once(*SMALL, "teacher=none", "method=ce", f"output_root={Path(folder, 'deployment')}")
    model = dataclasses.replace(config.student, target=target, arguments={}, stages={}, name="own")
    return complete(dataclasses.replace(config, student=model))


def export_of_own() -> None:
    """Export a network that ONNX cannot express."""
    run = own_network("tests.messages_of_deployment.WithoutTranslation")
    export([run, "--to", "onnx", "--out", "exported", "--trust", "tests"])


def wrong_export() -> None:
    """Export a file that does not give the run's logits."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(exports, "onnx_execution", lambda *_: lambda images: torch.zeros(len(images), 10))
        export([trained(), "--to", "onnx", "--out", "exported"])


def predicts_with_method() -> None:
    """Compress a student that predicts with a part of its method."""
    root = Path.cwd() / "deployment"
    run = complete(composed_once(*SMALL, *NARROW, "method=simkd", f"output_root={root}"))
    compress([str(run.path), "method=magnitude"])


def attention() -> None:
    """Remove channels of a network with attention."""
    root = Path.cwd() / "deployment"
    tiny = (
        "student=vit_tiny",
        "student.num_layers=1",
        "student.hidden_dim=6",
        "student.mlp_dim=8",
        "student.stages={}",
    )
    config = composed_once(*SMALL, "teacher=none", "method=ce", f"output_root={root}", *tiny)
    config = dataclasses.replace(config, student=dataclasses.replace(config.student, stages={}))
    run_command(compress, [str(complete(config).path), "method=structured", "--trust", "torchvision.models"])


def not_executable() -> None:
    """Measure a network in an engine that cannot execute it."""
    compressed("method=bf16")
    (folder,) = Path("deployment/runs").glob("*-bf16_*")
    measure([str(folder), "engines=[onnx]"])


def stale() -> None:
    """Repeat a compression whose parent was trained again since."""
    compressed("method=magnitude")
    (folder,) = Path("deployment/runs").glob("*-magnitude_*")
    summary = dataclasses.replace(read_summary(folder), parent_weights_sha256="0" * 64)
    check_parent_unchanged(RunDirectory(folder, summary.run_key), summary)


TRAINED_CASES: list[Callable[[], None]] = [
    lambda: compress(["method=int8"]), lambda: compress(["nowhere", "method=int8"]),
    lambda: compress([trained()]), lambda: compressed("method=int9"), lambda: compressed("chain=[]"),
    lambda: compressed("method=int8", "chain=[int8]"), lambda: compressed("chain=[int8,structured]"),
    lambda: compressed("chain=[fp16,finetune]"), lambda: compressed("chain=[magnitude,low_rank]"),
    lambda: compressed("method=magnitude", "magnitude.sparsity=1"),
    lambda: compressed("method=magnitude", "magnitude.sparsity=0"),
    lambda: compressed("method=magnitude", "magnitude.sparsty=0.5"),
    lambda: compressed("method=magnitude", "int8.images=3"), lambda: compressed("method=int8", "int8.images=0"),
    lambda: compressed("method=low_rank", "low_rank.rank=0.5"),
    lambda: compressed("method=low_rank", "low_rank.energy=1"),
    lambda: compressed("method=structured", "structured.ratio=0.99"),
    lambda: compressed("chain=[structured,distil]"), lambda: compressed("chain=[finetune]", "student=resnet8"),
    lambda: compressed("chain=[finetune]", "data.num_train=3"),
    unfinished, measured_as_run, small_form, of_two_roots, predicts_with_method, attention,
    lambda: without_extra("onnxruntime", "method=int8"),
    lambda: without_extra("onnxscript", "method=int8", "int8.images=9"),
    lambda: without_extra("torch_pruning", "method=structured"),
    lambda: measure([]), lambda: measure([trained(), "rounds=1"]), lambda: measure([trained(), "batches=[0]"]),
    lambda: measure([trained(), "engines=[tensorrt]"]), lambda: measure([trained(), "runtime.threads=2"]),
    lambda: measure([trained(), "roudns=3"]),
    lambda: export([trained(), "--to", "onnx"]), lambda: export([trained(), "--to", "tflite", "--out", "exported"]),
    lambda: export([trained(), "--to", "onnx", "--out", "empty"]),
    lambda: export([trained(), "--to", "onnx", "--out", "file/exported"]),
    lambda: export([trained(), "--to", "onnx", "--names", "timm", "--out", "exported"]),
    lambda: export([trained(), "--to", "safetensors", "--architecture", "resnet18", "--out", "exported"]),
    lambda: export([trained(), "--to", "safetensors", "--names", "torchvision", "--out", "exported"]),
    lambda: export(
        [trained(), "--to", "safetensors", "--names", "timm", "--architecture", "resnet18", "--out", "exported"]
    ),
    lambda: export([trained(), "--to", "onnx", "--data-root", "nowhere", "--out", "exported"]),
    export_of_own, wrong_export, not_executable, stale,
]  # fmt: skip
"""Calls, each of which ends in an error."""
