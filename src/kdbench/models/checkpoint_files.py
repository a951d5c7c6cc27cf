"""Weights from files that other programs wrote: their place in the file, prefixes, other names for the same layers.

The content of a file is flattened to dotted names, `state_dict.module.conv1.weight`. A set of weights is a prefix below
which the names are the network's. Names that differ are mapped only where shapes and order leave no doubt.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.errors import ConfigError, nearest
from kdbench.models.layer_names import Fits, Item, Name, Names, Shape
from kdbench.models.weights import (
    METHOD_PART,
    StateDict,
    checked,
    is_counter,
    is_dense,
    is_safetensors,
    names_differ,
    read_content,
    read_metadata,
    shapes_differ,
)

PROFILED = ("total_ops", "total_params")
"""Buffers that thop adds to the layers that it counts."""
OUTERMOST = "."
"""Value of `teacher.checkpoint_key` for weights that lie in no other mapping and have no prefix."""
MAX_CONTAINERS, MAX_DEPTH = 100_000, 100
"""Limits for mappings and lists in a file, which may contain each other without end."""
MAX_SHOWN = 5
"""Limit for the names in a remark."""


def read_checkpoint(
    path: Path, expected: Mapping[str, Tensor], key: str | None, head_of: int | None = None
) -> tuple[StateDict, list[str]]:
    """Return the weights of a file under the network's own names, and remarks for the user, one line each.

    Args:
        path: .safetensors file, or a pickle of tensors and plain values (.pth, .pt).
        expected: the network's own state dict, in its order.
        key: place of the weights in the file, dotted, for example `state_dict_ema`, or a prefix of their names; None
            where only one set of weights fits. `.` is the outermost level.
        head_of: number of classes of the network whose head may be another in the file, for another number of classes;
            its tensors are left out. None where everything must fit.

    Raises:
        ConfigError: the file cannot be read, no weights in it fit the network, or several sets do and differ.
    """

    def fits(there: Shape, here: Shape) -> bool:
        return there == here or (head_of is not None and differ_in_outputs(there, here) and here[0] == head_of)

    only = "" if head_of is None else "; only the head may differ, in its number of classes"
    if key is None and is_safetensors(path) and (method := read_metadata(path).get(METHOD_PART)):
        raise ConfigError(
            f"{path} holds a student of method={method}, which predicts with a part of its method; its network alone "
            "gives other logits, so it cannot be used by itself",
            code="no_student",
        )
    search = Search(
        entries=flatten(read_content(path), expected, path),
        expected=tensors_of(expected),
        fits=fits,
        ordered=not is_safetensors(path),
        source=str(path),
    )
    try:
        found = search.find(key)
    except ConfigError as error:
        raise ConfigError(f"{error}{only}", code=error.code, key=error.key) from None
    remarks = []
    if found.renamed:
        remarks.append(f"{path}: names mapped: {first_of(found.renamed)}")
    left_out = search.left_out(found) if key is None else []
    if left_out:
        place = f"under {'.'.join(found.place)} " if found.place else ""
        remarks.append(f"{path}: weights {place}are read; left out: {first_of(left_out)}")
    tensors = search.tensors(found)
    head = {name: len(tensor) for name, tensor in tensors.items() if tensor.shape != expected[name].shape}
    if len(set(head.values())) > 1:
        sizes = ", ".join(f"{name} is for {size}" for name, size in head.items())
        raise ConfigError(f"{path} has several numbers of classes: {sizes}{only}", code="mismatch")
    rest = {name: tensor for name, tensor in tensors.items() if name not in head}
    here = {name: tensor for name, tensor in search.expected.items() if name not in head}
    return checked(rest, here, str(path)), remarks


def tensors_of(state: Mapping[str, Any]) -> StateDict:
    """Return the entries of a state dict that are tensors; a network may have others (`_extra_state`)."""
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def differ_in_outputs(there: Shape, here: Shape) -> bool:
    """Return whether two shapes differ in dimension 0 only."""
    return len(there) == len(here) > 0 and there[0] != here[0] and there[1:] == here[1:]


def first_of(names: Sequence[str]) -> str:
    """Return the first of some names, each once, and the number of others."""
    different = list(dict.fromkeys(names))
    more = f" and {len(different) - MAX_SHOWN} more" if len(different) > MAX_SHOWN else ""
    return f"{', '.join(different[:MAX_SHOWN])}{more}"


# Content of a file


@dataclass(frozen=True)
class Entry:
    """A named tensor in a file."""

    name: Name
    holder: int
    """Number of the mapping that holds it."""
    tensor: Tensor

    @property
    def shape(self) -> Shape:
        """Return its shape."""
        return tuple(self.tensor.shape)


def flatten(content: Any, expected: Mapping[str, Tensor], path: Path) -> list[Entry]:
    """Return the named tensors of nested mappings, lists and tuples, in order.

    Tensors in lists and under numbers have no name, as in the state of an optimiser, and are left out.

    Raises:
        ConfigError: there are none.
    """
    entries: list[Entry] = []
    waiting: list[tuple[Name, Any]] = [((), content)]
    visited = 0
    while waiting:
        place, container = waiting.pop()
        visited += 1
        inner: list[tuple[Name, Any]] = []
        for name, value in items(container):
            below = (*place, *str(name).split("."))
            if visited > MAX_CONTAINERS or len(below) > MAX_DEPTH:
                raise ConfigError(
                    f"{path} is damaged: it has more than {MAX_CONTAINERS} mappings and lists, or more than "
                    f"{MAX_DEPTH} inside each other; save the state dict alone",
                    code="damaged",
                )
            if isinstance(value, Tensor):
                if isinstance(name, str) and (name in expected or not is_profiled(name)):
                    entries.append(Entry(below, visited, value))
            elif isinstance(value, (Mapping, list, tuple)):
                inner.append((below, value))
        waiting += reversed(inner)
    if not entries:
        raise ConfigError(
            f"{path} holds no state dict: no tensors with names were found; save one: "
            "torch.save(network.state_dict(), FILE)",
            code="damaged",
        )
    return entries


def items(container: Any) -> Iterator[tuple[str | int, Any]]:
    """Yield the entries of a mapping under texts and numbers, or those of a list or tuple by position."""
    if isinstance(container, Mapping):
        yield from ((name, value) for name, value in container.items() if isinstance(name, (str, int)))
    elif isinstance(container, (list, tuple)):
        yield from enumerate(container)


def is_profiled(name: str) -> bool:
    """Return whether a name is that of a buffer that a profiler adds."""
    return name.rpartition(".")[2] in PROFILED


# The place of the weights in a file


@dataclass
class Found:
    """The tensors at a place in a file that have a name in the network."""

    place: Name
    """Prefix of their names in the file."""
    pairs: dict[str, int]
    """Name in the network to number of the entry."""
    renamed: list[str]
    """Mapped names, as `linear -> fc`."""


@dataclass
class Search:
    """The search for a network's weights among the tensors of a file."""

    entries: list[Entry]
    expected: StateDict
    fits: Fits
    ordered: bool
    """True if the entries are in the order of the network that was saved."""
    source: str
    """Name of the file in errors."""

    def find(self, key: str | None) -> Found:
        """Return the set of weights that fits.

        Raises:
            ConfigError: none fits, several do and differ, or there is nothing under the key.
        """
        place = self.place_of(key)
        numbers = self.at(place, range(len(self.entries)))
        fitting = self.fitting(numbers)
        exact = [found for found in fitting if found.place == place]
        if key == OUTERMOST or (key is not None and exact):
            fitting = exact
        if not fitting:
            raise self.misfit(numbers)
        first, *others = fitting
        if all(self.are_equal(first, other) for other in others):
            return first
        keys = self.keys(fitting)
        raise ConfigError(
            f"{self.source} holds several sets of weights that fit the network and differ: {', '.join(keys)}; "
            f"choose one, for example teacher.checkpoint_key={keys[-1]}",
            code="ambiguous",
            key="teacher.checkpoint_key",
        )

    def tensors(self, found: Found) -> StateDict:
        """Return the tensors of a set of weights by the network's names, in the network's order."""
        return {name: self.entries[found.pairs[name]].tensor for name in self.expected if name in found.pairs}

    def place_of(self, key: str | None) -> Name:
        """Return the prefix of names that a key stands for.

        Raises:
            ConfigError: there is none, or there are several.
        """
        if key is None or key == OUTERMOST:
            return ()
        wanted = tuple(key.split("."))
        places = {  # `teacher` may stand for `state_dict.teacher`
            entry.name[: start + len(wanted)]
            for entry in self.entries
            for start in range(len(entry.name) - len(wanted))
            if entry.name[start : start + len(wanted)] == wanted
        }
        if wanted in places:
            return wanted
        outermost = sorted(p for p in places if not any(p != other and p[: len(other)] == other for other in places))
        if len(outermost) == 1:
            return outermost[0]
        fitting = [] if outermost else self.keys(self.fitting(list(range(len(self.entries)))))
        valid = [".".join(place) for place in outermost] or fitting or {entry.name[0] for entry in self.entries}
        found = "several places" if outermost else "no weights"
        raise ConfigError(
            f"{self.source} has {found} for teacher.checkpoint_key={key}; {nearest(key, valid)}",
            code="not_found",
            key="teacher.checkpoint_key",
        )

    def at(self, place: Name, numbers: Iterable[int]) -> list[int]:
        """Return those of some entries whose names have a prefix."""
        return [n for n in numbers if self.entries[n].name[: len(place)] == place != self.entries[n].name]

    def fitting(self, numbers: list[int]) -> list[Found]:
        """Return every set of weights among some entries that fits the network."""
        required = sum(not is_counter(name) for name in self.expected)
        counts: dict[Name, int] = {}
        for number in numbers:
            name = self.entries[number].name
            for length in range(len(name)):
                counts[name[:length]] = counts.get(name[:length], 0) + 1
        different: dict[frozenset[int], Found] = {}
        for place in sorted((place for place, count in counts.items() if count >= required), key=len):
            found = self.match(place, numbers, self.fits)
            if self.is_complete(found, numbers, self.fits):
                different[frozenset(found.pairs.values())] = found  # the innermost of several places
        return list(different.values())

    def match(self, place: Name, numbers: Iterable[int], fits: Fits) -> Found:
        """Return which entries at a place have a name in the network."""
        inside = self.at(place, numbers)
        there = [
            Item(self.entries[n].name[len(place) :], self.entries[n].shape, self.entries[n].holder) for n in inside
        ]
        here = [Item(tuple(name.split(".")), tuple(tensor.shape)) for name, tensor in self.expected.items()]
        names = Names(there, here, fits, self.ordered)
        names.match()
        own = list(self.expected)
        return Found(place, {own[n]: inside[t] for n, t in names.pairs.items()}, names.renamed)

    def is_complete(self, found: Found, numbers: Iterable[int], fits: Fits) -> bool:
        """Return whether a set of weights is the whole network's, and nothing else, in shapes that fit."""
        return (
            not self.missing(found)
            and not self.unknown(found, numbers)
            and all(fits(self.entries[n].shape, tuple(self.expected[name].shape)) for name, n in found.pairs.items())
        )

    def missing(self, found: Found) -> list[str]:
        """Return the network's names that a set of weights lacks."""
        return [name for name in self.expected if name not in found.pairs and not is_counter(name)]

    def unknown(self, found: Found, numbers: Iterable[int]) -> list[int]:
        """Return the entries beside a set of weights, at the same place, that have no name in the network."""
        return self.beside(found, self.at(found.place, numbers))

    def left_out(self, found: Found) -> list[str]:
        """Return the names of tensors in the same mappings as a set of weights, at any place."""
        return [".".join(self.entries[n].name) for n in self.beside(found, range(len(self.entries)))]

    def beside(self, found: Found, numbers: Iterable[int]) -> list[int]:
        """Return those of some entries that are in the same mappings as a set of weights, and not part of it."""
        used = set(found.pairs.values())
        holders = {self.entries[number].holder for number in used}
        return [
            number
            for number in numbers
            if number not in used
            and (self.entries[number].holder in holders or not holders)
            and not is_counter(self.entries[number].name[-1])
        ]

    def are_equal(self, one: Found, other: Found) -> bool:
        """Return whether two sets of weights are the same numbers."""
        for name in one.pairs.keys() & other.pairs.keys():
            a, b = self.entries[one.pairs[name]].tensor, self.entries[other.pairs[name]].tensor
            comparable = is_dense(a) and is_dense(b) and a.dtype == b.dtype
            if a is not b and not is_counter(name) and not (comparable and torch.equal(a, b)):
                return False
        return True

    def keys(self, several: Sequence[Found]) -> list[str]:
        """Return the shortest `teacher.checkpoint_key` for each of several sets of weights."""
        keys = []
        for found in several:
            others = [other.place for other in several if other is not found]
            lengths = range(1, len(found.place) + 1)
            alone = (n for n in lengths if not any(other[:n] == found.place[:n] for other in others))
            keys.append(".".join(found.place[: next(alone, len(found.place))]) or OUTERMOST)
        return keys

    # Errors

    def misfit(self, numbers: list[int]) -> ConfigError:
        """Return the error for a file in which no set of weights fits: what differs at the most similar place."""
        place = self.most_similar(numbers)
        for fits in (self.fits, lambda there, here: there == here or differ_in_outputs(there, here)):
            found = self.match(place, numbers, fits)
            missing, unknown = self.missing(found), self.unknown(found, numbers)
            if not missing and not unknown:  # the second time around: a head of other shape and name
                tensors = self.tensors(found)
                wrong = {
                    n: t for n, t in tensors.items() if not self.fits(tuple(t.shape), tuple(self.expected[n].shape))
                }
                return shapes_differ(wrong, self.expected, self.source)
        found = self.match(place, numbers, self.fits)
        missing, unknown = self.missing(found), self.unknown(found, numbers)
        names = [".".join(self.entries[number].name) for number in unknown]
        if sorted(self.entries[n].shape for n in unknown) == sorted(tuple(self.expected[n].shape) for n in missing):
            there, here = ([name.rpartition(".")[0] for name in some] for some in (names, missing))
            if set(there) & set(here):  # the names of tensors differ, not those of layers
                there, here = names, missing
            return ConfigError(
                f"{self.source} has other names than the network, and shapes and order leave doubt which is which: "
                f"{first_of(there)} in the file, {first_of(here)} in the network; rename them in the file",
                code="mismatch",
            )
        return names_differ(missing, names, self.source)

    def most_similar(self, numbers: list[int]) -> Name:
        """Return the prefix below which the most names are the network's, or else the most tensors are."""
        same: dict[Name, int] = {}
        for number in numbers:
            name = self.entries[number].name
            for start in range(len(name)):
                if ".".join(name[start:]) in self.expected:
                    same[name[:start]] = same.get(name[:start], 0) + 1
        if same:
            return max(same, key=lambda place: same[place])
        holders = [self.entries[number].holder for number in numbers]
        largest = max(holders, key=holders.count)
        names = [self.entries[number].name[:-1] for number in numbers if self.entries[number].holder == largest]
        shared = min(names, key=len)
        return next(shared[:n] for n in range(len(shared), -1, -1) if all(name[:n] == shared[:n] for name in names))
