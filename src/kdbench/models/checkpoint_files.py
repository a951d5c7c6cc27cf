"""Weights from files that other programs wrote: their place in the file, prefixes, other names for the same layers.

The content of a file is flattened to dotted names, `state_dict.module.conv1.weight`. A set of weights is a prefix below
which the names are the network's. Names that differ are mapped only where shapes and order leave no doubt.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.errors import ConfigError, nearest
from kdbench.models.weights import (
    StateDict,
    checked,
    is_counter,
    is_dense,
    is_safetensors,
    names_differ,
    read_content,
    shapes_differ,
)

Name = tuple[str, ...]
"""Components of a dotted name."""
Shape = tuple[int, ...]
Fits = Callable[[Shape, Shape], bool]
"""Whether a shape in the file may be that of the network's tensor."""

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
    """Whether the entries are in the order in which the network that wrote them has them."""
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


# Names


@dataclass(frozen=True)
class Item:
    """Name and shape of a tensor."""

    name: Name
    shape: Shape
    holder: int = 0
    """Number of the mapping that holds it."""


@dataclass
class Level:
    """A level of dotted names: tensors, and levels inside, both in order."""

    tensors: dict[str, int] = field(default_factory=dict)
    """Last component to the number of the item."""
    inner: dict[str, "Level"] = field(default_factory=dict)

    @staticmethod
    def of(names: Iterable[Name]) -> "Level":
        """Return the outermost level of numbered names."""
        outermost = Level()
        for number, (*components, last) in enumerate(names):
            level = outermost
            for component in components:
                level = level.inner.setdefault(component, Level())
            level.tensors[last] = number
        return outermost

    def below(self, place: Name = ()) -> Iterator[tuple[Name, int]]:
        """Yield relative name and number of every tensor."""
        for last, number in self.tensors.items():
            yield (*place, last), number
        for component, level in self.inner.items():
            yield from level.below((*place, component))


Layer = dict[str, int]
"""The tensors of one module: last component to the number of the item, without counters of batches."""


@dataclass
class Names:
    """The names of a file's tensors, and which of the network's names they stand for."""

    file: list[Item]
    network: list[Item]
    fits: Fits
    ordered: bool
    pairs: dict[int, int] = field(default_factory=dict)
    """Number in the network to number in the file."""
    renamed: list[str] = field(default_factory=list)

    def match(self) -> None:
        """Fill `pairs`: equal names first, then layers whose shapes or order leave no doubt."""
        self.match_levels(Level.of(item.name for item in self.file), Level.of(item.name for item in self.network))
        used = {self.file[number].holder for number in self.pairs.values()}
        there = layers(self.file, lambda item: not used or item.holder in used)
        here = layers(self.network)
        self.match_spelling(there, here)
        self.match_order(there, here)
        self.match_shapes(there, here)

    # Level by level

    def match_levels(self, file: Level, network: Level) -> None:
        """Match the tensors below two levels that stand for each other."""
        file = unwrapped(file, network)
        network = unwrapped(network, file)
        for last in network.tensors.keys() & file.tensors.keys():
            self.pairs[network.tensors[last]] = file.tensors[last]
        for component in network.inner:
            if component in file.inner:
                self.match_levels(file.inner[component], network.inner[component])
        there = [component for component in file.inner if component not in network.inner]
        here = [component for component in network.inner if component not in file.inner]
        mapped = self.match_children(file, network, there, here)
        if not mapped and len(there) == 1 and is_wrapper(file):
            self.match_levels(file.inner[there[0]], network)
        elif not mapped and len(here) == 1 and is_wrapper(network):
            self.match_levels(file, network.inner[here[0]])

    def match_children(self, file: Level, network: Level, there: list[str], here: list[str]) -> bool:
        """Match levels inside two levels that have other names and the same content; return whether there are any.

        Where several on one side have the same content, the order decides, if names with rising numbers confirm it.
        """
        mapped: dict[str, str] = {}
        for name in there:
            own = [n for n in network.inner if self.are_alike(file.inner[name], network.inner[n])]
            alike = [f for f in file.inner if own and self.are_alike(file.inner[f], network.inner[own[0]])]
            if len(own) != len(alike):
                continue
            if len(own) > 1 and not (self.ordered and is_clear(alike, own, there, here)):
                continue
            mapped |= {f: n for f, n in zip(alike, own, strict=True) if f == name and n in here}
        for f, n in mapped.items():
            numbers = dict(file.inner[f].below())
            self.pairs |= {number: numbers[name] for name, number in network.inner[n].below() if name in numbers}
            self.renamed.append(f"{f} -> {n}")
        return bool(mapped)

    def are_alike(self, file: Level, network: Level) -> bool:
        """Return whether two levels have the same names inside, and shapes that fit."""
        there = {name: self.file[number].shape for name, number in file.below() if not is_counter(name[-1])}
        here = {name: self.network[number].shape for name, number in network.below() if not is_counter(name[-1])}
        return there.keys() == here.keys() and all(self.fits(there[name], here[name]) for name in here)

    # Layer by layer

    def unmatched(self, there: dict[Name, Layer], here: dict[Name, Layer]) -> tuple[list[Name], list[Name]]:
        """Return the layers of the file and of the network of which no tensor is matched."""
        used = set(self.pairs.values())
        return (
            [name for name, layer in there.items() if not used & set(layer.values())],
            [name for name, layer in here.items() if not self.pairs.keys() & set(layer.values())],
        )

    def layers_fit(self, file: Layer, network: Layer) -> bool:
        """Return whether two layers have the same tensors, in shapes that fit."""
        return file.keys() == network.keys() and all(
            self.fits(self.file[file[last]].shape, self.network[network[last]].shape) for last in network
        )

    def pair(self, name: Name, own: Name, there: dict[Name, Layer], here: dict[Name, Layer]) -> None:
        """Match a layer of the file and one of the network, with their counters."""
        for last, number in here[own].items():
            self.pairs[number] = there[name][last]
        counters = {item.name: n for n, item in enumerate(self.file) if is_counter(item.name[-1])}
        for number, item in enumerate(self.network):
            if item.name[:-1] == own and (*name, item.name[-1]) in counters:
                self.pairs[number] = counters[(*name, item.name[-1])]
        self.renamed.append(difference(name, own))

    def match_spelling(self, there: dict[Name, Layer], here: dict[Name, Layer]) -> None:
        """Match layers whose names differ in nothing but dots, hyphens, underscores and capitals."""
        file, network = (by_spelling(names) for names in self.unmatched(there, here))
        for text, names in file.items():
            own = network.get(text, [])
            if len(names) == len(own) == 1 and self.layers_fit(there[names[0]], here[own[0]]):
                self.pair(names[0], own[0], there, here)

    def match_order(self, there: dict[Name, Layer], here: dict[Name, Layer]) -> None:
        """Match the layers of a file in order, if all shapes agree and no two layers could be exchanged."""
        file, network = self.unmatched(there, here)
        if not self.ordered or not file or len(there) != len(here):
            return
        images = dict(zip(there, here, strict=True))
        for name, own in images.items():
            matched = name not in file or own not in network
            if matched and not any(
                self.pairs.get(here[own][last]) == n for last, n in there[name].items() if last in here[own]
            ):
                return
            if not self.layers_fit(there[name], here[own]):
                return
        back = {own: name for name, own in images.items()}
        if is_exchangeable(images, set(file), self.shapes(self.file, there)) or is_exchangeable(
            back, set(network), self.shapes(self.network, here)
        ):
            return
        for name in file:
            self.pair(name, images[name], there, here)

    def match_shapes(self, there: dict[Name, Layer], here: dict[Name, Layer]) -> None:
        """Match layers whose shapes are unique among those without a match, and among their neighbours."""
        file, network = self.unmatched(there, here)
        for name in file:
            own = [n for n in network if self.layers_fit(there[name], here[n])]
            alike = [f for f in file if own and self.layers_fit(there[f], here[own[0]])]
            if len(own) != 1 or len(alike) != 1:
                continue
            near = [f for f in there if f != name and f[:-1] == name[:-1] and self.layers_fit(there[f], here[own[0]])]
            near += [n for n in here if n != own[0] and n[:-1] == own[0][:-1] and self.layers_fit(there[name], here[n])]
            if not near:
                self.pair(name, own[0], there, here)

    @staticmethod
    def shapes(items: list[Item], layers: dict[Name, Layer]) -> dict[Name, tuple[tuple[str, Shape], ...]]:
        """Return the shapes of the tensors of each layer."""
        return {
            name: tuple(sorted((last, items[number].shape) for last, number in layer.items()))
            for name, layer in layers.items()
        }


def layers(items: list[Item], condition: Callable[[Item], bool] = lambda item: True) -> dict[Name, Layer]:
    """Return the layers of named tensors by the names of their modules, in order."""
    found: dict[Name, Layer] = {}
    for number, item in enumerate(items):
        if condition(item) and not is_counter(item.name[-1]):
            found.setdefault(item.name[:-1], {})[item.name[-1]] = number
    return found


def unwrapped(level: Level, other: Level) -> Level:
    """Return a level without wrappers: levels that the other side lacks, around levels that it has here.

    DataParallel, for example, is a wrapper that is called `module`.
    """
    content: dict[str, Level] = {}
    for component, wrapper in level.inner.items():
        if component in other.inner:
            continue
        inside = wrapper
        while is_wrapper(inside) and not inside.inner.keys() & other.inner.keys():
            inside = next(iter(inside.inner.values()))
        named = inside.inner and not any(name.isdecimal() for name in inside.inner)
        free = other.inner.keys() - level.inner.keys(), other.tensors.keys() - level.tensors.keys()
        if named and inside.inner.keys() <= free[0] and inside.tensors.keys() <= free[1]:
            content[component] = inside
    inner: dict[str, Level] = {}
    tensors = dict(level.tensors)
    for component, below in level.inner.items():
        inside = content.get(component, Level())
        rivals = [c for name, c in content.items() if name != component]
        if component not in content or any(
            inside.inner.keys() & rival.inner.keys() or inside.tensors.keys() & rival.tensors.keys() for rival in rivals
        ):
            inner[component] = below
        else:
            inner |= inside.inner
            tensors |= inside.tensors
    return Level(tensors, inner)


def is_wrapper(level: Level) -> bool:
    """Return whether a level has nothing but one level inside."""
    return not level.tensors and len(level.inner) == 1


def is_clear(file: Sequence[str], network: Sequence[str], there: Sequence[str], here: Sequence[str]) -> bool:
    """Return whether levels of the same content stand for each other in order.

    Args:
        file: their names in the file, in order.
        network: their names in the network, in order.
        there: names that only the file has.
        here: names that only the network has.
    """
    pairs = list(zip(file, network, strict=True))
    if any(f != n and (f not in there or n not in here) for f, n in pairs):
        return False
    other = [(f, n) for f, n in pairs if f != n]
    return len(other) == 1 or (rise([f for f, n in other]) and rise([n for f, n in other]))


def rise(names: Sequence[str]) -> bool:
    """Return whether names differ in numbers only, and these rise: `conv1`, `conv2`."""
    numbers = [[int(digits) for digits in re.findall(r"\d+", name)] for name in names]
    texts = {re.sub(r"\d+", "#", name) for name in names}
    return len(texts) == 1 and all(a < b for a, b in itertools.pairwise(numbers))


def is_exchangeable(
    images: Mapping[Name, Name], renamed: set[Name], shapes: Mapping[Name, tuple[tuple[str, Shape], ...]]
) -> bool:
    """Return whether parts of a network with other names could stand in another order without a difference in shapes.

    Args:
        images: names of layers on one side, in order, and on the other side.
        renamed: layers whose names differ.
        shapes: shapes of each layer.
    """
    parts: dict[Name, dict[str, list[Name]]] = {}
    for name in images:
        for length in range(len(name)):
            parts.setdefault(name[:length], {}).setdefault(name[length], []).append(name)
    for children in parts.values():
        alike: dict[tuple[Any, ...], list[str]] = {}
        for child, names in children.items():
            alike.setdefault(tuple(shapes[name] for name in names), []).append(child)
        for group in alike.values():
            images_of = {child: [images[name] for name in children[child]] for child in group}
            kept = [
                child
                for child in group
                if all(child in image for image in images_of[child])
                and not any(child in image for rival in group if rival != child for image in images_of[rival])
            ]
            other = [child for child in group if child not in kept and renamed & set(children[child])]
            if len(other) > 1 and not rise(other):
                return True
    return False


def by_spelling(names: Iterable[Name]) -> dict[str, list[Name]]:
    """Return names by what remains of them without dots, hyphens, underscores and capitals."""
    found: dict[str, list[Name]] = {}
    for name in names:
        found.setdefault(re.sub(r"[._-]", "", ".".join(name)).lower(), []).append(name)
    return found


def difference(name: Name, own: Name) -> str:
    """Return what differs between two names, as `norm.1 -> norm1`."""
    shorter = min(len(name), len(own)) - 1
    start = next((n for n in range(shorter) if name[n] != own[n]), max(shorter, 0))
    end = next((n for n in range(shorter - start) if name[-1 - n] != own[-1 - n]), max(shorter - start, 0))
    return f"{'.'.join(name[start : len(name) - end])} -> {'.'.join(own[start : len(own) - end])}"
