"""Checks that a state dict or a checkpoint holds all that a network keeps between passes."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from kdbench.errors import first_line
from kdbench.models.attributes import hidden_attributes, kept_state, tensor_attributes, write_attribute
from kdbench.models.record import tensors_of
from kdbench.models.weights import load_state, storable
from kdbench.system.random import host_state, is_same_host_state, seeded

MISSING = object()


class StateError(Exception):
    """State of a network that would be lost."""


@dataclass(frozen=True)
class Changes:
    """Random numbers and state that a pass in training mode uses."""

    host_random: bool
    """True if it draws random numbers from Python's or NumPy's generator."""
    changing: tuple[str, ...]
    """Attributes and buffers outside of the state dict that it changes."""


def check_repeatable(body: nn.Module, images: Tensor) -> Changes:
    """Check that a pass in training mode repeats after everything that a checkpoint holds is restored.

    Args:
        body: network, fresh; it is not to be used afterwards.
        images: a batch.

    Raises:
        StateError: it does not repeat.
    """
    before, state, hidden = kept_state(body), copy.deepcopy(body.state_dict()), hidden_attributes(body)
    body.train()
    with seeded(7), torch.no_grad():
        host = host_state()
        first = [body(images.clone()) for _ in range(3)]  # a network may change something at a later pass
        host_random = not is_same_host_state(host, host_state())
    after = kept_state(body)
    changing = tuple(name for name, value in after.items() if not is_equal(value, before.get(name, MISSING)))
    restore(body, state, {name: before.get(name, MISSING) for name in changing})
    body.train()
    with seeded(7), torch.no_grad():
        second = [body(images.clone()) for _ in range(3)]
    a, b = tensors_of(first), tensors_of(second)
    if a.keys() != b.keys() or not all(is_equal(a[place], b[place]) for place in a):
        lost = [name for name, value in hidden_attributes(body).items() if hidden.get(name) != value]
        names = f" ({', '.join(lost[:3])})" if lost else ""
        raise StateError(
            "does not repeat its own training: with the same images, weights, buffers and seeds it computes something "
            f"else{names}, so a stopped run could not be resumed; draw random numbers from torch's, Python's or "
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
        own = other.state_dict().keys()
        if own != content.keys():
            raise KeyError(f"another network of it has other names: {min(own ^ content.keys())}")
        load_state(other, content)
    except Exception as error:
        raise StateError(f"has weights that cannot be stored and loaded again: {first_line(error)}") from error
    if is_equal(logits(body), logits(other)):
        return
    theirs = kept_state(other) | tensor_attributes(other)
    mine = kept_state(body) | tensor_attributes(body)
    lost = [name for name, value in mine.items() if not is_equal(value, theirs.get(name, MISSING))]
    names = f": {', '.join(lost[:3])}" if lost else ""
    raise StateError(
        "computes something else after its weights were stored and loaded again: something is missing in its state "
        f"dict{names}; register it with register_buffer, or make it the same for every network that is built"
    )


def is_equal(first: Any, second: Any) -> bool:
    """Return whether two values are equal; of tensors every element, and NaN equals NaN."""
    if not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return type(first) is type(second) and (first is second or repr(first) == repr(second))  # NaN, too
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    return bool(((first == second) | ((first != first) & (second != second))).all())
