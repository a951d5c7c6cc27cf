"""Weights of networks on disk: written as safetensors, read from that or from plain state dicts, never from code."""

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
"""Keys under which training scripts keep the weights; the reference study uses the first."""
PREFIXES = ("module.", "model.")
"""What wrapping modules (DataParallel, the reference study's class) put before every name."""


def save(weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, Any]) -> None:
    """Write weights, and JSON values beside them that say what they belong to."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    # One entry, because safetensors writes several in any order and equal runs shall give equal files.
    save_file(contiguous, path, {METADATA: json.dumps(metadata)})


def read_metadata(path: Path) -> dict[str, Any]:
    """What `save` wrote beside the weights.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {first_line(error)}") from None


def read(path: Path) -> StateDict:
    """Weights from a .safetensors file or a pickled state dict (.pth, .pt), on the CPU.

    State dicts may be wrapped as training scripts do (`model_state_dict`, `state_dict`, `model`), and their names may
    carry a prefix (`module.`, `model.`).

    Raises:
        ConfigError: missing, damaged, no state dict, or a pickle with anything but tensors and plain values in it.
    """
    if not path.is_file():
        raise ConfigError(f"{path} is no file")
    try:
        if is_safetensors(path):
            return load_file(path)
        with warnings.catch_warnings(action="ignore"):  # on pickle protocols; what cannot be read raises anyway
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch goes on to recommend that the protection be switched off.
        asked_for = re.search(r"GLOBAL (\S+)|global (\S+) was not", str(error))
        found = f"it asks for {asked_for[1] or asked_for[2]}" if asked_for else "it is no such file, or damaged"
        raise ConfigError(
            f"{path} is refused: only tensors are read from a pickle, and {found}; save the state dict alone"
        ) from None
    except Exception as error:  # damaged bytes can raise anything
        raise ConfigError(
            f"{path} is damaged or in an unknown format ({type(error).__name__}: {first_line(error)})"
        ) from None
    return unwrapped(content, path)


def is_safetensors(path: Path) -> bool:
    """By name, or by content: the length of a JSON header, then the header."""
    if path.suffix == ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size


def unwrapped(content: Any, path: Path) -> StateDict:
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    ):
        raise ConfigError(f"{path} holds no state dict (names and tensors, or one of {', '.join(WRAPPERS)} with them)")
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    return content


def load_into(network: Network, weights: StateDict, source: str) -> None:
    """Put weights into a network of exactly their architecture.

    Args:
        network: Changed in place.
        weights: By the architecture's own names.
        source: What the weights are called in errors.

    Raises:
        ConfigError: a name is missing or unknown, a shape differs, or a value is not finite.
    """
    here = network.body.state_dict()
    missing = [name for name in here if name not in weights and not name.endswith("num_batches_tracked")]
    unknown = [name for name in weights if name not in here]
    if missing or unknown:
        raise ConfigError(
            f"{source} is of another architecture: {len(missing)} tensors are missing{example(missing)} "
            f"and {len(unknown)} are unknown{example(unknown)}"
        )
    for name, tensor in weights.items():
        if tensor.shape != here[name].shape:
            raise ConfigError(
                f"{source} is of another architecture or number of classes: "
                f"{name} is {list(tensor.shape)} there and {list(here[name].shape)} here"
            )
        counts = name.endswith("num_batches_tracked")
        if tensor.layout != torch.strided or not (tensor.is_floating_point() or counts):
            raise ConfigError(
                f"{source} has {name} as {tensor.dtype}, {tensor.layout}; it must be a dense float tensor"
            )
        if not bool(tensor.isfinite().all()):
            raise ConfigError(f"{source} has values that are not finite in {name}")
    network.body.load_state_dict(here | weights)


def example(names: list[str]) -> str:
    return f" ({names[0]}, ...)" if names else ""
