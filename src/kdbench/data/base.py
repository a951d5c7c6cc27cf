"""The contract of a data set: a class that a config names by `_target_`, with its own keys."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from kdbench.config.sections import DataKeys
from kdbench.data.source import Source, Split
from kdbench.data.splits import train_val_split


class ImageData(ABC):
    """A data set. A subclass returns its images from `load`; if it has keys of its own, its `Config` extends this one.

    Args:
        config: keys of the data set, an instance of `Config`.
        name: name of its option, for errors.
    """

    Config: ClassVar[type[Any]] = DataKeys
    own_name: ClassVar[str] = ""
    """Name by which kdbench's own data sets stand in a run's key; others stand there by path and source."""
    fixed: ClassVar[bool] = False
    """True if the keys alone determine every image, as where files are checked by md5. If not, the hash of images and
    labels is part of a run's key. Not inherited: each class declares it for itself."""

    def __init__(self, config: Any, name: str) -> None:
        self.config = config
        self.name = name

    @abstractmethod
    def load(self) -> Source:
        """Return the three splits and the names of the classes, all on the CPU; read images from a file once only.

        Test images are never part of training or validation. Where there is no validation split, `divide` takes one
        from the training images.
        """

    @classmethod
    def title(cls, config: Any, name: str) -> str:
        """Return the name of the data set in tables and names of folders: by default that of its option."""
        return name

    def state(self) -> object:
        """Return something that changes when the files change, and is quick to find; None: they do not change while a
        process uses them."""
        return None

    @staticmethod
    def divide(split: Split, num_second: int) -> tuple[Split, Split]:
        """Return a split in two parts, divided by a seed that no run changes.

        Args:
            split: the images.
            num_second: number of images in the second part.

        Raises:
            ValueError: none would be left for the first part.
        """
        if not 0 < num_second < len(split):
            raise ValueError(f"num_second is {num_second}; of {len(split)} images it may be 1 to {len(split) - 1}")
        first, second = train_val_split(len(split), num_second)
        return split.take(first), split.take(second)
