"""Any image classification of torchvision.datasets."""

import inspect
import logging
import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torchvision
from PIL import Image
from torchvision import datasets

from kdbench.config.schema import optional, setting
from kdbench.data.archives import locked, temporary_folder, writable
from kdbench.data.base import ImageData
from kdbench.data.decode import Decoded, NotAnImageError, Reader, decode, report_conversions
from kdbench.data.decode_cache import decode_cached, fingerprint
from kdbench.data.decoded import DecodedKeys, cache_folder, divided, pixels
from kdbench.data.source import Source, Split
from kdbench.data.torchvision_classes import classification, parameters_of
from kdbench.errors import ConfigError, first_line, nearest

log = logging.getLogger(__name__)

SPLIT_NAMES = {
    "train": ("train", "train-standard", "trainval"),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
"""Names that classes with an argument `split` give to a split; the first that a class has is taken."""
OWN_ARGUMENTS = ("root", "train", "download", "loader", "transform", "target_transform", "transforms")
"""Arguments that are not the user's."""
FOLDER_ATTRIBUTES = ("_base_folder", "_data_path", "_size_root", "_data_dir", "root")
"""Attributes in which classes keep the folder of their files; the first that there is counts."""


class TorchvisionData(ImageData):
    """A data set of torchvision.datasets by the name of its class.

    Splits that the class lacks are divided off the training images.
    """

    @dataclass
    class Config(DecodedKeys):
        """Keys of the data set's YAML file."""

        dataset: str = setting()
        arguments: dict[str, Any] = setting()
        download: bool = setting(identity=False)
        size: int | None = optional(pixels())

    own_name: ClassVar[str] = "torchvision"

    @classmethod
    def title(cls, config: Any, name: str) -> str:
        """Return the name of the class."""
        return str(config.dataset)

    def __init__(self, config: Any, name: str) -> None:
        super().__init__(config, name)
        self.option = "data=torchvision"
        self.root = Path(config.root).expanduser()

    def load(self) -> Source:
        """Return all images, decoded.

        Raises:
            ConfigError: there is no such image classification, its files are missing, damaged or cannot be downloaded,
                or its images do not fit into memory.
        """
        self.cls = classification(self.config.dataset, self.option)
        self.parameters = parameters_of(self.cls)
        self.check_arguments()
        found = self.open_splits()
        missing = tuple(name for name in ("val", "test") if name not in found)
        decoded = self.decode(list(found.values()), copies=2 if missing else 1)
        report_conversions(decoded, self.option)
        labels, names = named_labels(decoded.labels, found["train"])
        splits, start = {}, 0
        for name, dataset in found.items():
            end = start + len(dataset)
            splits[name] = Split.of(decoded.images[start:end], labels[start:end])
            start = end
        return divided(splits, names, self.config, self.option)

    def check_arguments(self) -> None:
        """Check the user's arguments against the signature of the class.

        Raises:
            ConfigError: one is unknown or is missing.
        """
        by_user = [name for name in self.parameters if name not in OWN_ARGUMENTS]
        for name in self.config.arguments:
            if name not in by_user:
                own = f"{name} is set by data.root, data.download or kdbench itself; " if name in OWN_ARGUMENTS else ""
                raise ConfigError(
                    f"data.arguments.{name} is no argument of {self.cls.__name__}; {own}{nearest(name, by_user)}",
                    code="unknown_key",
                    key=f"data.arguments.{name}",
                )
        lacking = [
            name
            for name in by_user
            if self.parameters[name].default is inspect.Parameter.empty and name not in self.config.arguments
        ]
        if lacking:
            raise ConfigError(
                f"{self.option}: {self.cls.__name__} needs data.arguments.{lacking[0]}; give it, for example "
                f"+data.arguments.{lacking[0]}=VALUE",
                code="missing_value",
                key=f"data.arguments.{lacking[0]}",
            )

    def open_splits(self) -> dict[str, Any]:
        """Return the splits that the class has, by name, train first. Those without labels are left out.

        Raises:
            ConfigError: files are missing or cannot be downloaded.
        """
        if "train" in self.parameters:
            found = {"train": self.open(train=True), "test": self.open(train=False)}
        elif "split" in self.parameters and "split" not in self.config.arguments:
            opened = {split: self.open_first(names) for split, names in SPLIT_NAMES.items()}
            found = {split: dataset for split, dataset in opened.items() if dataset is not None}
            if "train" not in found:
                raise ConfigError(
                    f"{self.option}: {self.cls.__name__} has no split train; give data.arguments.split",
                    code="missing_value",
                    key="data.arguments.split",
                )
        else:
            found = {"train": self.open()}
        for split, dataset in list(found.items()):
            if not len(dataset):
                raise ConfigError(
                    f"{self.option}: the split {split} of {self.cls.__name__} has no images",
                    code="invalid_data",
                    key="data.dataset",
                )
            if split != "train" and self.without_labels(dataset):
                log.info("%s: the split %s of %s has no labels and is left out", self.option, split, self.cls.__name__)
                del found[split]
        return found

    def without_labels(self, dataset: Any) -> bool:
        """Return whether the first image of a split has no label."""
        try:
            item = dataset[0]
        except Exception:  # reported with the other images that cannot be read
            return False
        if not isinstance(item, tuple) or len(item) != 2:
            return False
        if isinstance(item[0], Image.Image):
            item[0].close()
        return item[1] is None

    def open_first(self, names: Sequence[str]) -> Any:
        """Return the split with the first of these names that the class has, or None."""
        for name in names:
            try:
                return self.open(split=name)
            except UnknownSplitError:
                continue
        return None

    def open(self, **split: Any) -> Any:
        """Return a split, downloaded if it is not there and `data.download` is true.

        Raises:
            UnknownSplitError: the class has no such split.
            ConfigError: its files are missing or cannot be downloaded.
        """
        try:
            return self.construct(self.root, False, split)
        except (RuntimeError, OSError) as error:
            reason = first_line(error)
        label = self.cls.__name__
        if not self.config.download:
            hint = ", or set data.download=true" if "download" in self.parameters else ""
            raise ConfigError(
                f"{self.option}: {label} was not found under {self.root} ({reason}); put its files there as "
                f"torchvision.datasets.{label} expects them, or point data.root to them{hint}",
                code="not_found",
                key="data.root",
            )
        if "download" not in self.parameters:
            raise ConfigError(
                f"{self.option}: torchvision cannot download {label}, and it was not found under {self.root} "
                f"({reason}); put its files there and set data.download=false",
                code="download_failed",
                key="data.download",
            )
        with writable(self.root), locked(self.root, label, self.name):
            try:
                return self.construct(self.root, False, split)  # another process may have provided it meanwhile
            except (RuntimeError, OSError):
                pass
            try:
                with temporary_folder(self.root, label) as folder:
                    self.construct(folder, True, split)
                    move_into(folder, self.root)
                return self.construct(self.root, False, split)
            except (UnknownSplitError, ConfigError):
                raise
            except Exception as error:  # of the network, the disk or a server
                raise ConfigError(
                    f"data.download=true failed: {first_line(error)}; put the files of {label} into {self.root} as "
                    f"torchvision.datasets.{label} expects them, or point data.root to them",
                    code="download_failed",
                    key="data.download",
                ) from None

    def construct(self, root: Path, download: bool, split: dict[str, Any]) -> Any:
        """Return an instance of the class.

        Raises:
            UnknownSplitError: the class has no such split.
            ConfigError: the class refuses an argument, or needs a package that is missing.
            RuntimeError, OSError: files are missing.
        """
        own = {"root": str(root), "download": download, "loader": Image.open}
        given = {name: value for name, value in own.items() if name in self.parameters}
        try:
            return self.cls(**given, **split, **self.config.arguments)
        except ImportError as error:
            raise ConfigError(
                f"{self.option}: data.dataset is {self.cls.__name__}, which needs a package: {first_line(error)}; "
                "install it",
                code="not_importable",
                key="data.dataset",
            ) from None
        except (TypeError, ValueError) as error:
            if download:  # not of the arguments, which were accepted before
                raise
            if "split" in split and "argument split" in str(error):
                raise UnknownSplitError from None
            raise ConfigError(
                f"{self.option}: {self.cls.__name__} cannot be built with "
                f"data.arguments={dict(self.config.arguments)}: {first_line(error)}",
                code="out_of_range",
                key="data.arguments",
            ) from None

    def decode(self, parts: Sequence[Any], copies: int) -> Decoded:
        """Return the images of some splits, one after the other."""
        starts = np.cumsum([0, *map(len, parts)])
        for part in parts:
            sort_files(part)
        lock = threading.Lock()  # few of these classes are made for several threads

        def place(row: int) -> tuple[int, int]:
            part = int(np.searchsorted(starts, row, side="right")) - 1
            return part, row - int(starts[part])

        def read(row: int) -> tuple[Image.Image, int]:
            part, index = place(row)
            with lock:
                item = parts[part][index]
            return as_image_and_label(item, self.cls.__name__)

        def describe(row: int) -> str:
            part, index = place(row)
            return f"image {index} of part {part + 1}" if len(parts) > 1 else f"image {index}"

        where = f"{self.root} of {self.cls.__name__}"
        reader = Reader(int(starts[-1]), read, describe, where, self.option)
        size = self.config.size
        folder = folder_of(parts[0])
        try:
            if folder is None or any(
                isinstance(getattr(part, "data", None), np.ndarray | torch.Tensor) for part in parts
            ):
                return decode(reader, size, copies)  # in memory already, or not from files
            key = fingerprint(
                sorted(states_of(folder)),
                size=size,
                dataset=self.cls.__name__,
                arguments=dict(self.config.arguments),
                lengths=[len(part) for part in parts],
                torchvision=torchvision.__version__,
            )
            cache = cache_folder(self.config)
            return decode_cached(cache / f"{self.cls.__name__}-{size or 'own'}-{key}.bin", reader, size, copies)
        except NotAnImageError as error:
            raise ConfigError(
                f"{self.option}: data.dataset is {self.cls.__name__}, which is no image classification: {error}",
                code="unsupported_dataset",
                key="data.dataset",
            ) from None


class UnknownSplitError(Exception):
    """A class has no split of that name."""


def as_image_and_label(item: Any, name: str) -> tuple[Image.Image, int]:
    """Return an item of a data set as an image and a label.

    Raises:
        NotAnImageError: it is something else.
    """
    if not isinstance(item, tuple) or len(item) != 2 or not isinstance(item[0], Image.Image):
        kinds = [type(part).__name__ for part in item] if isinstance(item, tuple) else type(item).__name__
        raise NotAnImageError(f"its items are {kinds}, not an image and a label")
    image, label = item
    if isinstance(label, torch.Tensor | np.ndarray | np.generic) and math.prod(label.shape) == 1:
        label = label.item()
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        raise NotAnImageError(f"its labels are of the kind {type(label).__name__}, not whole numbers from 0")
    return image, label


def named_labels(labels: torch.Tensor, dataset: Any) -> tuple[torch.Tensor, list[str]]:
    """Return labels and the names of their classes, without classes that have no image at all.

    Args:
        labels: [N], labels of all splits.
        dataset: the training split, which may have names of classes.
    """
    names = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or []
    count = int(labels.max()) + 1
    if not isinstance(names, Sequence) or isinstance(names, str) or len(names) < count:
        names = [str(label) for label in range(count)]
    present = torch.bincount(labels, minlength=len(names)) > 0
    texts = [name if isinstance(name, str) else ", ".join(map(str, name)) for name in names]
    absent = [text for text, there in zip(texts, present.tolist(), strict=True) if not there]
    if absent:
        log.info("classes without images are left out: %s", ", ".join(absent))
    return (present.cumsum(0) - 1)[labels], [text for text, there in zip(texts, present.tolist(), strict=True) if there]


def folder_of(dataset: Any) -> Path | None:
    """Return the folder that holds a data set's files, or None if it has none."""
    for name in FOLDER_ATTRIBUTES:
        value = getattr(dataset, name, None)
        if isinstance(value, str | Path) and str(value):
            base = getattr(dataset, "base_folder", None) if name == "root" else None
            return Path(value) / base if isinstance(base, str) else Path(value)
    return None


def states_of(folder: Path) -> Iterator[tuple[str, int, int, int]]:
    """Yield path, size, mtime and ctime of each file at any depth of a folder, without hidden ones."""
    for path in folder.rglob("*"):
        relative = path.relative_to(folder)
        if not any(part.startswith(".") for part in relative.parts) and path.is_file():
            stat = path.stat()
            yield relative.as_posix(), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def sort_files(dataset: Any) -> None:
    """Sort the files of a data set that lists them in the order of the file system (SUN397)."""
    files, labels = getattr(dataset, "_image_files", None), getattr(dataset, "_labels", None)
    if isinstance(dataset, datasets.SUN397) and files and labels:
        pairs = sorted(zip(files, labels, strict=True))
        dataset._image_files, dataset._labels = map(list, zip(*pairs, strict=True))


def move_into(source: Path, destination: Path) -> None:
    """Move what a folder holds into another one: whole folders where there are none of their name, else their files."""
    for path in sorted(source.iterdir()):
        target = destination / path.name
        if path.is_dir() and target.is_dir():
            move_into(path, target)
        elif target.is_dir():
            raise OSError(f"{target} is a folder")
        else:
            path.replace(target)
