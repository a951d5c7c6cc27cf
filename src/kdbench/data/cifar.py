"""CIFAR-10 and CIFAR-100 from the official python batches (Krizhevsky 2009)."""

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torchvision import datasets

from kdbench.config.schema import added, one_of
from kdbench.config.sections import FileKeys
from kdbench.data.archives import Download, FileSet, provide
from kdbench.data.base import ImageData
from kdbench.data.source import Source, Split

NUM_VAL = 5000
"""Validation images: a fixed part of the 50,000 training images."""


class CIFAR10(ImageData):
    """CIFAR-10. The md5 of every file is checked before it is opened."""

    Config: ClassVar[type[Any]] = FileKeys
    own_name: ClassVar[str] = "cifar10"
    fixed = True
    official: ClassVar[Any] = datasets.CIFAR10
    """Torchvision's class, with names, addresses and md5s of the files."""
    labels_key: str = "labels"
    names_key: str = "label_names"

    def load(self) -> Source:
        """Return all 60,000 images.

        Raises:
            ConfigError: a file is missing or damaged, and `data.download` is false or failed.
        """
        root = Path(self.config.root).expanduser()
        provide(root, file_set(self.official), self.name, self.config.download)
        folder = root / self.official.base_folder
        official_train, test = (
            self.read(folder, [name for name, _ in files])
            for files in (self.official.train_list, self.official.test_list)
        )
        train, val = self.divide(official_train, NUM_VAL)
        return Source(train, val, test, unpickled(folder / self.official.meta["filename"])[self.names_key])

    def read(self, folder: Path, names: Sequence[str]) -> Split:
        """Return the images of some files, in their order."""
        parts = [unpickled(folder / name) for name in names]
        images = np.concatenate([part["data"] for part in parts]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return Split.of(np.ascontiguousarray(images), np.concatenate([part[self.labels_key] for part in parts]))


class CIFAR100(CIFAR10):
    """CIFAR-100, with its 100 classes or its 20 groups of five. The md5 of every file is checked."""

    @dataclass
    class Config(FileKeys):
        """Keys of the data set's YAML file."""

        labels: str = added(one_of("fine", "coarse"), "fine")

    own_name: ClassVar[str] = "cifar100"
    fixed = True
    official = datasets.CIFAR100

    def __init__(self, config: Any, name: str) -> None:
        super().__init__(config, name)
        self.labels_key = f"{config.labels}_labels"
        self.names_key = f"{config.labels}_label_names"


def file_set(official: Any) -> FileSet:
    """Return the files that one of torchvision's classes reads."""
    files = [*official.train_list, *official.test_list, (official.meta["filename"], official.meta["md5"])]
    return FileSet(
        {f"{official.base_folder}/{name}": md5 for name, md5 in files},
        (Download(official.filename, official.url, official.tgz_md5),),
        f"unpack {official.filename} (from the data set's home page) into {{root}}, so that it contains "
        f"{official.base_folder}/, or point data.root or KDBENCH_DATA to the folder that contains it",
        official.base_folder,
    )


def unpickled(file: Path) -> dict[str, Any]:
    """Return the content of an official file, whose md5 was checked."""
    with file.open("rb") as opened:
        return pickle.load(opened, encoding="latin1")
