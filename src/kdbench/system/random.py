"""Random numbers: the global generators of Python, NumPy and torch."""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kdbench.system.device import kind_of

HostState = tuple[Any, Any]
"""State of Python's generator and state of NumPy's, as both take them back."""


def host_state() -> HostState:
    """Return the state of the global generators of Python and NumPy."""
    return random.getstate(), np.random.get_state()


def set_host_state(state: HostState) -> None:
    """Set the global generators of Python and NumPy to a state."""
    random.setstate(state[0])
    np.random.set_state(state[1])


def seeded_host_state(seed: int) -> HostState:
    """Return the state of both generators after they were seeded."""
    return random.Random(seed).getstate(), np.random.RandomState(seed % 2**32).get_state()


def is_same_host_state(first: HostState, second: HostState) -> bool:
    """Return whether no number was drawn between two states."""
    return first[0] == second[0] and plain_host_state(first)[1] == plain_host_state(second)[1]


def plain_host_state(state: HostState) -> list[Any]:
    """Return a state as lists of plain numbers, which checkpoints hold."""
    version, words, gauss = state[0]
    kind, keys, *rest = state[1]
    return [[version, list(words), gauss], [str(kind), np.asarray(keys).tolist(), *rest]]


def read_host_state(plain: list[Any]) -> HostState:
    """Return the state that `plain_host_state` wrote."""
    (version, words, gauss), (kind, keys, *rest) = plain
    return (version, tuple(words), gauss), (kind, np.array(keys, np.uint32), *rest)


@contextmanager
def host_seeded(seed: int) -> Iterator[None]:
    """Seed the global generators of Python and NumPy in the block, and restore them after it."""
    before = host_state()
    set_host_state(seeded_host_state(seed))
    try:
        yield
    finally:
        set_host_state(before)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator of the CPU, Python's and NumPy's in the block, and restore all three after it."""
    before = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        with host_seeded(seed):
            yield
    finally:
        torch.set_rng_state(before)


def random_state(device: str) -> dict[str, Tensor]:
    """Return the state of torch's generators: the CPU's, and the GPU's where there is one. Waits for neither."""
    state = {"cpu": torch.get_rng_state()}
    if kind_of(device) == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    elif kind_of(device) == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor], device: str) -> None:
    """Set torch's generators to a state."""
    torch.set_rng_state(state["cpu"])
    if kind_of(device) == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    elif kind_of(device) == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])
