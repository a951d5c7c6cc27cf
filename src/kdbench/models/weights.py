"""Weights on disk: written as safetensors, read from safetensors or plain state dicts. No code in them is run."""

import json
import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from kdbench.errors import ConfigError, first_line
from kdbench.models.network import Network

StateDict = dict[str, Tensor]

METADATA = "kdbench"
WRAPPERS = ("model_state_dict", "state_dict", "model")
"""Keys under which training scripts store the weights; the reference study uses the first."""
PREFIXES = ("module.", "model.")
"""Prefixes that wrapping modules (DataParallel, the reference study's class) add to every name."""


def save(weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any]) -> None:
    """Write weights with JSON metadata.

    Args:
        weights: tensors by name.
        path: file to write.
        metadata: architecture, data and other conditions for which the weights are valid, as JSON values.
    """
    # One entry: safetensors writes several in any order, and equal runs must give equal files.
    save_file(storable(weights), path, {METADATA: json.dumps(metadata)})


def storable(weights: Mapping[str, Any]) -> StateDict:
    """Return weights as safetensors takes them: on the CPU, each name with contiguous memory of its own.

    Raises:
        ConfigError: an entry is no tensor, such as what `get_extra_state` returns.
    """
    result: StateDict = {}
    used = set()
    for name, tensor in weights.items():
        if not isinstance(tensor, Tensor):
            raise ConfigError(
                f"the state dict holds {name}, a {type(tensor).__name__}; only tensors can be stored",
                code="not_storable",
            )
        stored = tensor.detach().cpu().contiguous()
        storage = stored.untyped_storage()
        if storage.data_ptr() in used or storage.nbytes() != stored.nbytes:  # tied weights, views
            stored = stored.clone()
        used.add(storage.data_ptr())
        result[name] = stored
    return result


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
    """Return weights from a .safetensors file or a pickled state dict (.pth, .pt), on the CPU.

    State dicts may be wrapped (`model_state_dict`, `state_dict`, `model`), and their names may have a prefix
    (`module.`, `model.`).

    Raises:
        ConfigError: the file is missing, damaged, no state dict, or a pickle that holds more than tensors and plain
            values.
    """
    if not path.is_file():
        raise ConfigError(f"{path} was not found, or is not a file", code="not_found")
    try:
        if is_safetensors(path):
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # on pickle protocols; content that cannot be read raises anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's own message recommends to switch the protection off.
        needed = re.search(r"GLOBAL (\S+)|global (\S+) was not", str(error))
        found = f"it needs {needed[1] or needed[2]}" if needed else "it holds something else, or is damaged"
        raise ConfigError(
            f"{path} is refused: only tensors are read from a pickle, and {found}; save the state dict alone",
            code="untrusted",
        ) from None
    except Exception as error:  # damaged bytes raise many types
        raise ConfigError(
            f"{path} is damaged or in an unknown format ({type(error).__name__}: {first_line(error)})",
            code="damaged",
        ) from None
    return unwrap(content, path)


def is_safetensors(path: Path) -> bool:
    """Return whether a file is in the safetensors format, by its name or its first bytes."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def unwrap(content: Any, path: Path) -> StateDict:
    """Return the state dict in a training script's content, without wrappers and prefixes.

    Raises:
        ConfigError: there is no state dict in it.
    """
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    ):
        raise ConfigError(
            f"{path} holds no state dict (names and tensors, or one of {', '.join(WRAPPERS)} with them)",
            code="damaged",
        )
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    return content


def load_into(network: Network, weights: StateDict, source: str) -> None:
    """Load weights into a network of exactly their architecture.

    Args:
        network: network, changed in place.
        weights: tensors by the architecture's own names.
        source: name of the weights in errors.

    Raises:
        ConfigError: a name is missing or unknown, a shape differs, or a value is not finite.
    """
    here = network.body.state_dict()
    missing = [name for name in here if name not in weights and not name.endswith("num_batches_tracked")]
    unknown = [name for name in weights if name not in here]
    if missing or unknown:
        raise ConfigError(
            f"{source} is of another architecture: missing tensors: {len(missing)}{format_example(missing)}, "
            f"unknown: {len(unknown)}{format_example(unknown)}",
            code="mismatch",
        )
    for name, tensor in weights.items():
        if tensor.shape != here[name].shape:
            raise ConfigError(
                f"{source} is of another architecture or number of classes: "
                f"{name} is {list(tensor.shape)} in the file and {list(here[name].shape)} in the network",
                code="mismatch",
            )
        counts = name.endswith("num_batches_tracked")
        if tensor.layout != torch.strided or not (tensor.is_floating_point() or counts):
            raise ConfigError(
                f"{source} has {name} as {tensor.dtype}, {tensor.layout}; it must be a dense float tensor",
                code="wrong_type",
            )
        if not bool(tensor.isfinite().all()):
            raise ConfigError(f"{source} has values in {name} that are not finite", code="not_finite")
    network.body.load_state_dict(here | weights)


def format_example(names: list[str]) -> str:
    """Return the first of some names in brackets, or nothing without names."""
    return f" ({names[0]}, ...)" if names else ""
