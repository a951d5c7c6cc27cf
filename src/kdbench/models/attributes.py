"""Attributes and buffers of a network that its state dict does not hold."""

import copy
import pickle
from typing import Any

from torch import Tensor, nn

from kdbench.models.record import is_scripted

PLAIN = (bool, int, float, str, type(None))
"""Types of attributes that a checkpoint holds, alone or in lists, tuples and mappings."""


def kept_state(body: nn.Module) -> dict[str, Any]:
    """Return a copy of what a checkpoint holds of a network beside its state dict.

    These are buffers that are not persistent, and attributes of numbers and texts.
    """
    saved = body.state_dict().keys()
    buffers = {name: buffer.clone() for name, buffer in body.named_buffers() if name not in saved}
    plain = {name: copy.deepcopy(value) for name, value in own_attributes(body).items() if is_plain(value)}
    return buffers | plain


def own_attributes(body: nn.Module) -> dict[str, Any]:
    """Return the attributes of every module, by dotted name, that torch does not manage."""
    managed = vars(nn.Module()).keys()
    return {
        f"{path}.{name}" if path else name: value
        for path, module in body.named_modules()
        if not is_scripted(module)
        for name, value in vars(module).items()
        if name not in managed and not type(module).__module__.startswith("torch.nn.modules.")
    }


def tensor_attributes(body: nn.Module) -> dict[str, Tensor]:
    """Return the attributes that are tensors, and neither parameters nor buffers."""
    return {name: value for name, value in own_attributes(body).items() if isinstance(value, Tensor)}


def is_plain(value: Any) -> bool:
    """Return whether a value consists of numbers and texts alone."""
    if type(value) in (list, tuple):
        return all(map(is_plain, value))
    if type(value) is dict:
        return all(map(is_plain, [*value, *value.values()]))
    return type(value) in PLAIN


def hidden_attributes(body: nn.Module) -> dict[str, bytes]:
    """Return the attributes that no checkpoint holds as bytes, to see which change."""
    found = {}
    for name, value in own_attributes(body).items():
        if not is_plain(value):
            try:
                found[name] = pickle.dumps(value)
            except Exception:  # nothing is known of it
                continue
    return found


def write_attribute(body: nn.Module, name: str, value: Any) -> None:
    """Set an attribute by its dotted name; a buffer is written in place."""
    path, _, attribute = name.rpartition(".")
    module = body.get_submodule(path)
    if isinstance(value, Tensor):
        getattr(module, attribute).copy_(value)
    else:
        setattr(module, attribute, copy.deepcopy(value))
