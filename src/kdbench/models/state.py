"""What a network keeps between passes, and whether all of it is in its state dict or in a checkpoint."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from kdbench.errors import first_line
from kdbench.models.network import write_attribute
from kdbench.models.record import is_scripted, tensors_of
from kdbench.models.weights import storable
from kdbench.system.random import host_state, is_same_host_state, seeded

PLAIN = (bool, int, float, str, type(None))
"""Types of attributes that a checkpoint holds, alone or in lists, tuples and mappings."""
MISSING = object()


class StateError(Exception):
    """State of a network that would be lost."""


@dataclass(frozen=True)
class Changes:
    """What a pass in training mode draws and changes."""

    host_random: bool
    """True if it draws random numbers from Python's or NumPy's generator."""
    changing: tuple[str, ...]
    """Attributes and buffers outside of the state dict that it changes."""


def check_repeatable(body: nn.Module, images: Tensor) -> Changes:
    """Check that a pass in training mode repeats after everything that a checkpoint holds is restored.

    Args:
        body: network; its state is the same afterwards.
        images: a batch.

    Raises:
        StateError: it does not repeat.
    """
    before, state, hidden = kept_state(body), copy.deepcopy(body.state_dict()), hidden_attributes(body)
    body.train()
    with seeded(7), torch.no_grad():
        host = host_state()
        first = body(images)
        host_random = not is_same_host_state(host, host_state())
        for _ in range(2):  # a network may change something at a later pass
            body(images)
    after = kept_state(body)
    changing = tuple(name for name, value in after.items() if not is_equal(value, before.get(name, MISSING)))
    restore(body, state, {name: before.get(name, MISSING) for name in changing})
    with seeded(7), torch.no_grad():
        second = body(images)
    restore(body, state, {name: before.get(name, MISSING) for name in changing})
    a, b = tensors_of(first), tensors_of(second)
    if a.keys() != b.keys() or not all(is_equal(a[place], b[place]) for place in a):
        lost = [name for name, value in hidden_attributes(body).items() if hidden.get(name) != value]
        suspects = f" ({', '.join(lost[:3])})" if lost else ""
        raise StateError(
            "does not repeat its own training: with the same images, weights, buffers and seeds it computes something "
            f"else{suspects}, so a stopped run could not be resumed; draw random numbers from torch's, Python's or "
            "NumPy's global generator, and keep what changes in buffers"
        )
    return Changes(host_random, changing)


def restore(body: nn.Module, state: dict[str, Any], kept: dict[str, Any]) -> None:
    """Restore a state dict, and attributes and buffers outside of it; MISSING removes one that a pass made."""
    body.load_state_dict(state)
    for name, value in kept.items():
        if value is MISSING:
            path, _, attribute = name.rpartition(".")
            delattr(body.get_submodule(path), attribute)
        else:
            write_attribute(body, name, value)


def check_storable(body: nn.Module, build: Callable[[], nn.Module], logits: Callable[[nn.Module], Tensor]) -> None:
    """Check that another network of the architecture, with this one's stored state dict, computes the same.

    Args:
        body: network whose state was changed since it was built.
        build: builds the other one, from other random numbers.
        logits: returns the logits of a network for some images, in evaluation mode.

    Raises:
        StateError: the state cannot be stored, does not fit, or does not hold everything.
    """
    try:
        content = load(save(storable(body.state_dict())))
        other = build()
        other.load_state_dict(content, strict=True)
    except Exception as error:
        raise StateError(f"has weights that cannot be stored and loaded again: {first_line(error)}") from error
    if is_equal(logits(body), logits(other)):
        return
    theirs = kept_state(other) | tensor_attributes(other)
    mine = kept_state(body) | tensor_attributes(body)
    lost = [name for name, value in mine.items() if not is_equal(value, theirs.get(name, MISSING))]
    suspects = f": {', '.join(lost[:3])}" if lost else ""
    raise StateError(
        "computes something else after its weights were stored and loaded again: something is missing in its state "
        f"dict{suspects}; register it with register_buffer, or make it the same for every network that is built"
    )


def is_equal(first: Any, second: Any) -> bool:
    """Return whether two values are equal; of tensors every element, and NaN equals NaN."""
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return type(first) is type(second) and bool(first == second)
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return bool(((first == second) | ((first != first) & (second != second))).all())


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
        if name not in managed
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
