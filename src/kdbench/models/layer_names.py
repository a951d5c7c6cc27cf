"""Other names for the same layers: which tensor of a file stands for which one of a network.

Equal names are matched first; names that differ only where shapes and order leave no doubt.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdbench.models.weights import is_counter

Name = tuple[str, ...]
"""Components of a dotted name."""
Shape = tuple[int, ...]
Fits = Callable[[Shape, Shape], bool]
"""Returns True if a shape in the file may be that of the network's tensor."""


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
            near = [f for f in there if is_neighbour(f, name) and self.layers_fit(there[f], here[own[0]])]
            near += [n for n in here if is_neighbour(n, own[0]) and self.layers_fit(there[name], here[n])]
            if not near:
                self.pair(name, own[0], there, here)

    @staticmethod
    def shapes(items: list[Item], layers: dict[Name, Layer]) -> dict[Name, tuple[tuple[str, Shape], ...]]:
        """Return the shapes of the tensors of each layer."""
        return {
            name: tuple(sorted((last, items[number].shape) for last, number in layer.items()))
            for name, layer in layers.items()
        }


def is_neighbour(one: Name, other: Name) -> bool:
    """Return whether two names differ in exactly one component: the same layer of two blocks, or two layers of one."""
    return len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) == 1


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
        others = [c for name, c in content.items() if name != component]
        if component not in content or any(
            inside.inner.keys() & one.inner.keys() or inside.tensors.keys() & one.tensors.keys() for one in others
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
                and not any(child in image for one in group if one != child for image in images_of[one])
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
