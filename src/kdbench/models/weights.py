"""Weights on disk: written as safetensors, read from safetensors or plain state dicts. No code in them is run."""

import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from kdbench.errors import ConfigError, first_line
from kdbench.models.network import Network

StateDict = dict[str, Tensor]

METADATA = "kdbench"
METHOD_PART = "method"
"""Key of the metadata: name of the method that takes part in predictions."""


def save(weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any]) -> None:
    """Write weights with JSON metadata.

    Args:
        weights: tensors by name.
        path: file to write.
        metadata: architecture, data and other conditions for which the weights are valid, as JSON values.

    Raises:
        ConfigError: an entry is not a dense tensor.
    """
    # One entry: safetensors writes several in any order, and equal runs must give equal files.
    # Bytes, since safetensors would write by way of a file of its own, which a kill leaves behind.
    path.write_bytes(to_bytes(storable(weights), {METADATA: json.dumps(metadata)}))


STUDENT, METHOD = "student.", "method."
"""Prefixes of the names in a file that holds, beside a student, the part of its method that predicts with it."""


def with_method(student: Mapping[str, Tensor], method: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what is stored of a trained student: its weights, and with prefixes those of its method if it has any."""
    if not method:
        return dict(student)
    parts = ((STUDENT, student), (METHOD, method))
    return {f"{prefix}{name}": value for prefix, part in parts for name, value in part.items()}


def read_student(path: Path) -> tuple[StateDict, StateDict]:
    """Return the weights of a student and of its method, which is empty where it takes no part in predictions.

    Raises:
        ConfigError: the file is missing or damaged, or holds something else.
    """
    state = read(path)
    if not read_metadata(path).get(METHOD_PART):
        return state, {}
    student, method = (
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        for prefix in (STUDENT, METHOD)
    )
    return student, method


def storable(weights: Mapping[str, Any]) -> StateDict:
    """Return weights as safetensors takes them: on the CPU, each name with contiguous memory of its own.

    Raises:
        ConfigError: an entry is not a dense tensor, such as what `get_extra_state` returns.
    """
    for name, value in weights.items():
        if not isinstance(value, Tensor) or not is_dense(value):
            found = f"of type {type(value).__name__}"
            if isinstance(value, Tensor):
                found = "a tensor without values" if value.is_meta else f"a {value.layout} tensor"
            raise ConfigError(
                f"{name} of the network's state dict is {found}, and only dense tensors can be stored; "
                "use a network without it",
                code="not_storable",
            )
    # Copies, because tied weights and views share memory, which safetensors refuses.
    return {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in weights.items()}


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata that `save` wrote.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {first_line(error)}", code="damaged") from None


def read(path: Path) -> StateDict:
    """Return the weights of a file that `save` wrote, on the CPU.

    Raises:
        ConfigError: the file is missing or damaged, or holds something else.
    """
    content = read_content(path)
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"{path} holds no state dict", code="damaged")
    return content


INERT = (
    "argparse.Namespace", "types.SimpleNamespace", "datetime.datetime", "datetime.timedelta", "datetime.date",
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib.PurePosixPath", "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath", "numpy.dtype", "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
)  # fmt: skip
"""Types of plain values that training scripts store beside weights: options, paths, dates, numbers of numpy."""


class Inert:
    """Stand-in for an object of a type in `INERT`: the type itself is not called, and its content is dropped."""

    def __new__(cls, *arguments: object, **named: object) -> "Inert":
        """Return an object without content, whatever the arguments are."""
        return object.__new__(cls)

    def __init__(self, *arguments: object, **named: object) -> None:
        """Drop the arguments."""

    def __setstate__(self, state: object) -> None:
        """Drop the state."""


def read_content(path: Path) -> Any:
    """Return the content of a .safetensors file or a pickle (.pth, .pt), with tensors on the CPU.

    Raises:
        ConfigError: the file is missing, damaged, in another format, or a pickle that holds more than tensors and
            plain values.
    """
    if not path.is_file():
        raise ConfigError(f"{path} was not found, or is not a file", code="not_found")
    try:
        if is_safetensors(path):
            return load_file(path)
        check_format(path)
        # Warnings about pickle protocols are ignored: content that cannot be read raises anyway.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([(Inert, n) for n in INERT]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except ConfigError:
        raise
    except pickle.UnpicklingError as error:
        # torch's own message recommends to switch the protection off.
        needed = re.search(r"GLOBAL (\S+)|global (\S+) was not", str(error))
        found = f"it needs {needed[1] or needed[2]}" if needed else "it holds something else, or is damaged"
        raise ConfigError(
            f"{path} is refused: only tensors are read from a pickle, and {found}; save the state dict alone",
            code="untrusted",
        ) from None
    except Exception as error:  # damaged bytes raise many types
        if re.search("IncompleteBuffer|incomplete metadata", str(error)):  # safetensors, by version
            raise truncated(path) from None
        raise ConfigError(
            f"{path} is damaged or in an unknown format ({type(error).__name__}: {first_line(error)})",
            code="damaged",
        ) from None


ALONE = "save the state dict alone: torch.save(network.state_dict(), FILE)"
FORMATS = {
    b"\x89HDF\r\n": ("an HDF5 file", ALONE),
    b"\x93NUMPY": ("a NumPy array", ALONE),
    b"GGUF": ("a GGUF file", ALONE),
    b"\x1f\x8b": ("compressed by gzip", "unpack it"),
    b"version https://git-lfs": ("a pointer of Git LFS", "fetch its content: git lfs pull"),
    b"<!DOCTYPE": ("a web page", "download the file itself"),
    b"<!doctype": ("a web page", "download the file itself"),
    b"<html": ("a web page", "download the file itself"),
}
"""First bytes of files that are given for weights by mistake: what they are, and what to do."""
ONNX = re.compile(rb"\x08[\x01-\x20][\x12\x1a\x22\x2a\x32\x3a\x42]")
"""First bytes of an ONNX file: the version of the format, then a field with text or a graph. No pickle starts so."""


def check_format(path: Path) -> None:
    """Check that a file is not in a format that is known to hold no state dict.

    Raises:
        ConfigError: it is.
    """
    with path.open("rb") as file:
        start = file.read(32)
    found = next((form for magic, form in FORMATS.items() if start.startswith(magic)), None)
    if path.suffix == ".onnx" or ONNX.match(start):
        found = ("an ONNX graph", ALONE)
    if start.startswith(b"PK\x03\x04"):
        if not zipfile.is_zipfile(path):
            raise truncated(path)
        with zipfile.ZipFile(path) as archive:
            found = zip_format(archive.namelist())
    if found:
        raise ConfigError(f"{path} is {found[0]}, and only state dicts are read; {found[1]}", code="wrong_format")


def zip_format(names: list[str]) -> tuple[str, str] | None:
    """Return what a zip archive is and what to do, or None if it was saved by `torch.save`."""
    last = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in last:
        return "a TorchScript archive", ALONE
    if "archive_format" in last or any(name.startswith("serialized_exported_program") for name in last):
        return "a program of torch.export", ALONE
    if "data.pkl" in last:
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "an archive of NumPy arrays (.npz)", ALONE
    return "a zip archive of other files", "unpack it and give the file with the weights"


def truncated(path: Path) -> ConfigError:
    """Return the error for a file whose end is missing."""
    return ConfigError(f"{path} is damaged: its end is missing; copy or download it again", code="damaged")


def is_safetensors(path: Path) -> bool:
    """Return whether a file is in the safetensors format, by its name or its first bytes."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def load_into(network: Network, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights into a network of exactly their architecture.

    Args:
        network: network, changed in place.
        weights: tensors by the architecture's own names.
        source: name of the weights in errors.

    Raises:
        ConfigError: a name is missing or unknown, a shape or a type differs, or a value is not finite.
    """
    load_state(network.body, checked(weights, network.body.state_dict(), source))


def load_state(body: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load tensors into a network; those that are not given stay. Versions of layers, which files lack, are its own."""
    state = body.state_dict()
    state.update(weights)
    body.load_state_dict(state)


def checked(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> StateDict:
    """Return weights in the types of a network, after a check that they are of its architecture.

    Args:
        weights: tensors by the architecture's own names. Counters of batches (`num_batches_tracked`) may be missing,
            and are left out where they are not integers.
        expected: the network's own tensors.
        source: name of the weights in errors.

    Raises:
        ConfigError: a name is missing or unknown, a shape or a type differs, or a value is not finite.
    """
    missing = [name for name in expected if name not in weights and not is_counter(name)]
    unknown = [name for name in weights if name not in expected]
    if missing or unknown:
        raise names_differ(missing, unknown, source)
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise shapes_differ(weights, expected, source)
    return {
        name: converted(tensor, expected[name], name, source)
        for name, tensor in weights.items()
        if not is_counter(name) or kind(tensor) == "integer"
    }


def names_differ(missing: list[str], unknown: list[str], source: str) -> ConfigError:
    """Return the error for weights with other names than the network's."""
    return ConfigError(
        f"{source} is of another architecture: missing tensors: {len(missing)}{format_example(missing)}, "
        f"unknown: {len(unknown)}{format_example(unknown)}",
        code="mismatch",
    )


def shapes_differ(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str) -> ConfigError:
    """Return the error for weights with other shapes than the network's, of which at least one differs."""
    differing = [name for name, tensor in weights.items() if tensor.shape != expected[name].shape]
    name = differing[0]
    there, here = list(weights[name].shape), list(expected[name].shape)
    if is_head(differing, weights, expected):
        return ConfigError(
            f"{source} is for {there[0]} classes and the network for {here[0]}: "
            f"{name} is {there} in the file and {here} in the network; nothing but the number of classes differs",
            code="mismatch",
        )
    return ConfigError(
        f"{source} is of another architecture or number of classes: "
        f"{name} is {there} in the file and {here} in the network",
        code="mismatch",
    )


def is_head(differing: list[str], weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Return whether tensors are whole layers that differ from the network's in nothing but one number of outputs."""
    layers = {name.rpartition(".")[0] for name in differing}
    whole = [name for name in expected if name.rpartition(".")[0] in layers]
    return (
        set(whole) == set(differing)
        and all(expected[name].ndim and weights[name].shape[1:] == expected[name].shape[1:] for name in whole)
        and len({(weights[name].shape[0], expected[name].shape[0]) for name in whole}) == 1
    )


def converted(tensor: Tensor, expected: Tensor, name: str, source: str) -> Tensor:
    """Return a tensor in the type of the network's tensor of the same name.

    Raises:
        ConfigError: it is not dense, not of the same kind, has values that are not finite or beyond the type's range.
    """
    if not is_dense(tensor) or kind(tensor) != kind(expected):
        raise ConfigError(
            f"{source} has {name} as {tensor.dtype}, {tensor.layout}{', without values' if tensor.is_meta else ''}; "
            f"it must be a dense {kind(expected)} tensor",
            code="wrong_type",
        )
    result = tensor.detach().to(expected.dtype)
    if kind(expected) == "float":
        if not bool(result.isfinite().all()):
            raise ConfigError(f"{source} has values in {name} that are not finite", code="not_finite")
    elif not torch.equal(result.to(tensor.dtype), tensor):
        raise ConfigError(f"{source} has values in {name} beyond the range of {expected.dtype}", code="out_of_range")
    return result


def kind(tensor: Tensor) -> str:
    """Return what a tensor holds: float, integer, bool, complex or quantized values."""
    if tensor.is_quantized:
        return "quantized"
    if tensor.is_complex():
        return "complex"
    if tensor.dtype == torch.bool:
        return "bool"
    return "float" if tensor.is_floating_point() else "integer"


def is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor has a value in memory for each of its elements."""
    return tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_nested


def is_counter(name: str) -> bool:
    """Return whether a name is that of a counter of batches, which changes no output of a trained network."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def format_example(names: list[str]) -> str:
    """Return the first of some names in brackets, or nothing without names."""
    return f" ({names[0]}, ...)" if names else ""
