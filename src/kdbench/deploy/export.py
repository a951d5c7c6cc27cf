"""Export of a finished run's network to files for other tools, checked against the run's own logits."""

import contextlib
import dataclasses
import hashlib
import io
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import nn

from kdbench import metrics
from kdbench.config import DataConfig
from kdbench.data import Dataset, load
from kdbench.data.access import read_only
from kdbench.deploy.execution import Execute, batches_of, onnx_execution
from kdbench.deploy.formats import PLAIN
from kdbench.deploy.graph import graph_of
from kdbench.deploy.names import renamed_weights
from kdbench.errors import ConfigError, first_line
from kdbench.models.compressed import QuantizedNetwork
from kdbench.models.onnx_graph import INPUT, OPSET, OUTPUT, export_problem, quiet
from kdbench.models.plain import plain_module
from kdbench.models.weights import storable
from kdbench.rundir.files import write_json
from kdbench.rundir.related import RelatedRun
from kdbench.rundir.student import build_trained
from kdbench.system.packages import installed_version

FILES = {"onnx": "model.onnx", "torch": "model.pt2", "safetensors": "model.safetensors"}
DESCRIPTION, TEST_IMAGES = "model.json", "test.npz"
TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2}
"""Accepted difference of logits from the run's own, relative to the largest of these, by the run's precision."""
FLIPS = 0.001
"""Accepted share of predictions that differ, at least two: where two logits are almost equal."""
ENVIRONMENT = "KDBENCH_DATA"


@dataclass(frozen=True)
class Exported:
    """A file's content, and what computes with it."""

    content: bytes
    execute: Execute
    """Returns the logits of normalised images, from the file's content alone where the format allows it."""
    details: dict[str, Any]


def export_run(
    run: RelatedRun,
    form: str,
    out: Path,
    names: str = PLAIN,
    name: str | None = None,
    data_root: Path | None = None,
    test_images: bool = False,
) -> dict[str, Any]:
    """Write the network of a run for other tools, with a description beside it, and return the description.

    Args:
        run: finished run.
        form: onnx, torch or safetensors.
        out: folder to write, which does not exist.
        names: names of the weights, for safetensors: plain, torchvision or timm.
        name: name of the network in that package; None: that of the architecture.
        data_root: folder of the data; None: that of the run's config, or $KDBENCH_DATA.
        test_images: write the test images with their labels too, to check the file where it is used.

    Raises:
        ConfigError: the network cannot be exported, its data are not here, or the file does not give the run's logits.
    """
    check_absent(out)
    dataset = load_test(run.config.data, data_root)
    network, method = build_trained(run.config, dataset.spec, run.directory.weights)
    is_graph = isinstance(network.body, QuantizedNetwork)
    if is_graph and form != "onnx":
        raise ConfigError(
            f"--to {form}: {run.config.student.name} is an 8-bit ONNX graph, in which batch norms are folded into "
            "convolutions; use --to onnx, or export the network before it was quantised",
            code="not_exportable",
            key="--to",
        )
    if form == "onnx":
        graph = graph_of(network, method, dataset.spec)
        exported = Exported(graph, onnx_execution(graph, torch.get_num_threads()), {"opset": opset_of(graph)})
    elif form == "torch":
        exported = export_program(plain_module(network, method), dataset.spec.input_shape)
    else:
        plain = plain_module(network, method)
        exported = export_weights(plain, run, dataset, names, name, method is not None)
    checked = check_logits(exported.execute, run, dataset)
    description = describe(run, dataset, form, names, exported) | {"checked": checked}
    files = {FILES[form]: exported.content} | ({TEST_IMAGES: images_file(dataset)} if test_images else {})
    write_folder(out, files, description)
    return description


def images_file(dataset: Dataset) -> bytes:
    """Return the test images [N, H, W, C] uint8 and labels [N] as an .npz file."""
    buffer, test = io.BytesIO(), dataset.test
    np.savez_compressed(buffer, images=test.images.cpu().numpy(), labels=test.labels.cpu().numpy())
    return buffer.getvalue()


def check_absent(out: Path) -> None:
    """Check that nothing is overwritten.

    Raises:
        ConfigError: the folder exists, or cannot be made.
    """
    if os.path.lexists(out):
        raise ConfigError(
            f"--out is {out}, which exists already; give a folder that does not", code="exists", key="--out"
        )
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ConfigError(
            f"--out is {out}, but {parent} is no folder that can be written to; give another",
            code="not_writable",
            key="--out",
        )


def load_test(data: DataConfig, data_root: Path | None) -> Dataset:
    """Return the data of a run; nothing is downloaded or written.

    Raises:
        ConfigError: they are not here.
    """
    reasons = []
    for root in roots(data, data_root):
        changes: dict[str, Any] = {"download": False} if hasattr(data.params, "download") else {}
        changes |= {"root": root} if root is not None else {}
        moved = dataclasses.replace(data, params=dataclasses.replace(data.params, **changes))
        try:
            with read_only():
                return load(moved, "cpu")
        except ConfigError as error:
            reasons.append(first_line(error).partition("; ")[0])
    raise ConfigError(
        f"the export is checked on the test images of the run, and they are not here ({reasons[0]}); "
        "--data-root DIR names the folder of the data",
        code="not_found",
        key="--data-root",
    )


def roots(data: DataConfig, data_root: Path | None) -> list[str | None]:
    """Return the folders in which the files of a data set may be; None where it has no files."""
    if not hasattr(data.params, "root"):
        return [None]
    if data_root is not None:
        return [str(data_root)]
    return list(dict.fromkeys(root for root in (data.params.root, os.environ.get(ENVIRONMENT)) if root))


# Formats


def opset_of(graph: bytes) -> int:
    """Return the version of the ONNX operators in a graph."""
    import onnx

    opsets = {entry.domain: entry.version for entry in onnx.load_from_string(graph).opset_import}
    return opsets.get("", OPSET)


def export_program(module: nn.Module, input_shape: tuple[int, int, int]) -> Exported:
    """Return a network as a program of torch.export, which torch.export.load reads without kdbench.

    Raises:
        ConfigError: torch cannot trace it.
    """
    buffer, images = io.BytesIO(), torch.zeros(2, *input_shape)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim("N")},))
            for node in program.graph.nodes:
                node.meta.pop("stack_trace", None)  # paths of the exporting machine
            torch.export.save(program, buffer)
            loaded = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    except Exception as error:  # of torch's own types
        problem = export_problem(error, module, images)
        raise ConfigError(
            f"the network cannot be exported as a program of torch: {problem}; use --to safetensors",
            code="not_exportable",
            key="--to",
        ) from error
    return Exported(buffer.getvalue(), loaded, {"torch": torch.__version__})


def export_weights(
    module: nn.Module, run: RelatedRun, dataset: Dataset, names: str, name: str | None, predicts: bool
) -> Exported:
    """Return the weights of a network by the names of some code base. Errors: see `renamed_weights`.

    Args:
        module: plain module of the network.
        run: its run.
        dataset: its data.
        names: one of `NAMINGS`.
        name: name of the network in that code base.
        predicts: whether its method takes part in predictions.
    """
    if names == PLAIN:
        architecture = {"_target_": run.config.student.target, **run.config.student.arguments}
        return Exported(save(storable(module.state_dict())), module, {"names": names, "architecture": architecture})
    if predicts:
        raise ConfigError(
            f"--names {names}: {run.config.method.name} predicts with a part of its own, which no network of {names} "
            "has; use --names plain, or --to onnx",
            code="not_exportable",
            key="--names",
        )
    state, other, built = renamed_weights(module, run.config.student, dataset.spec, names, name)
    return Exported(save(storable(state)), other, {"names": names, **built})


# Check and description


def check_logits(execute: Execute, run: RelatedRun, dataset: Dataset) -> dict[str, Any]:
    """Check that an export gives the run's own logits on the test images, and return what was compared.

    Raises:
        ConfigError: it does not.
    """
    own = load_file(run.directory.logits)["test_logits"].float()
    with torch.no_grad():
        logits = torch.cat([execute(batch).float() for batch in batches_of(dataset, dataset.test)])
    labels = dataset.test.labels.cpu().numpy()
    if own.shape != logits.shape:
        raise ConfigError(
            f"the run has logits {list(own.shape)} and the test images give {list(logits.shape)}; the data are not "
            "those of the run",
            code="mismatch",
            key="--data-root",
        )
    difference, largest = float((logits - own).abs().max()), float(own.abs().max())
    tolerance = TOLERANCE[run.config.runtime.precision] * largest
    formats = [step["dtype"] for step in run.config.steps if step.get("dtype") in TOLERANCE]
    tolerance = max([tolerance, *(TOLERANCE[dtype] * largest for dtype in formats)])
    flips = int((logits.argmax(1) != own.argmax(1)).sum())
    accuracy = metrics.accuracy(logits.numpy(), labels)
    if not difference <= tolerance or flips > max(2, FLIPS * len(own)):
        raise ConfigError(
            f"the export does not give the logits of the run: largest difference {difference:.2g} (tolerance "
            f"{tolerance:.2g}), {flips} of {len(own)} predictions differ; nothing was written",
            code="mismatch",
            key="--to",
        )
    return {
        "test_images": len(own),
        "largest_difference_of_logits": difference,
        "tolerance": tolerance,
        "different_predictions": flips,
        "test_accuracy": accuracy,
        "test_accuracy_of_the_run": metrics.accuracy(own.numpy(), labels),
    }


def describe(run: RelatedRun, dataset: Dataset, form: str, names: str, exported: Exported) -> dict[str, Any]:
    """Return the description of an export: what the network takes and returns, and where it comes from."""
    spec = dataset.spec
    keys = run.config.data.params
    return {
        "file": FILES[form],
        "format": form,
        "network": run.config.student.name,
        "run": run.summary.run_key,
        "data": run.config.data.name,
        "trained": {"method": run.summary.method, "teacher": run.summary.teacher, "seed": run.summary.seed},
        "compression": run.config.steps,
        "sha256": hashlib.sha256(exported.content).hexdigest(),
        "versions": {name: installed_version(name) for name in ("kdbench", "torch", "onnx", "onnxruntime")},
        "input": {
            "name": INPUT, "shape": ["N", *spec.input_shape], "layout": "NCHW", "dtype": "float32", "batch": "dynamic",
        },
        "preprocessing": {
            "channels": "RGB", "divide_by": 255, "mean": list(keys.mean), "std": list(keys.std),
            "arithmetic": "float32: divided by divide_by, less the mean, divided by std",
        },
        "output": {"name": OUTPUT, "shape": ["N", spec.num_classes], "dtype": "float32"},
        "classes": list(run.summary.class_names or spec.class_names),
        **exported.details,
    }  # fmt: skip


def write_folder(out: Path, files: dict[str, bytes], description: dict[str, Any]) -> None:
    """Write a folder at once: it appears when everything is in it.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.absolute().parent))
        try:
            for name, content in files.items():
                (folder / name).write_bytes(content)
            write_json(folder / DESCRIPTION, description)
            folder.chmod(0o777 & ~current_umask())
            check_absent(out)
            folder.rename(out.absolute())
        finally:
            with contextlib.suppress(OSError):
                shutil.rmtree(folder)
    except OSError as error:
        raise ConfigError(
            f"--out is {out}, which cannot be written ({error.strerror}); give another",
            code="not_writable",
            key="--out",
        ) from None


def current_umask() -> int:
    """Return the permissions that new files of this process lack."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
