"""SVHN: house numbers, cropped digits (Netzer et al. 2011)."""

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torchvision import datasets

from kdbench.config.sections import FileKeys
from kdbench.data.archives import Download, FileSet, provide
from kdbench.data.base import ImageData
from kdbench.data.source import Source, Split

NUM_VAL = 5000
"""Validation images: a fixed part of the 73,257 training images."""
SPLITS = ("train", "test")


class SVHN(ImageData):
    """SVHN in the format of cropped digits, without its `extra` images. The md5 of both files is checked."""

    Config: ClassVar[type[Any]] = FileKeys
    own_name: ClassVar[str] = "svhn"
    fixed = True

    def load(self) -> Source:
        """Return all 99,289 images.

        Raises:
            ConfigError: a file is missing or damaged, and `data.download` is false or failed.
        """
        root = Path(self.config.root).expanduser()
        provide(root, file_set(), self.name, self.config.download)
        official_train, test = (self.read(root, split) for split in SPLITS)
        train, val = self.divide(official_train, NUM_VAL)
        return Source(train, val, test, [str(digit) for digit in range(10)])

    def read(self, root: Path, split: str) -> Split:
        """Return one of the two official splits; the digit 0, whose label in the file is 10, has label 0."""
        dataset: Any = datasets.SVHN(root, split=split)
        return Split.of(np.ascontiguousarray(dataset.data.transpose(0, 2, 3, 1)), dataset.labels)


def file_set() -> FileSet:
    """Return the files of the two official splits, each of which is published alone."""
    published = [datasets.SVHN.split_list[split] for split in SPLITS]
    names = " and ".join(filename for _, filename, _ in published)
    return FileSet(
        {filename: md5 for _, filename, md5 in published},
        tuple(Download(filename, url, md5) for url, filename, md5 in published),
        f"put {names} (from the data set's home page) into {{root}}, or point data.root or KDBENCH_DATA to the folder "
        "that contains them",
    )
