"""CIFAR-10 and CIFAR-100 from the official python batches (Krizhevsky 2009)."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from torchvision.datasets import CIFAR10 as TorchvisionCIFAR10

from kdbench.config.sections import FileKeys
from kdbench.data.base import ImageData
from kdbench.data.source import Source, Split

NUM_VAL = 5000
"""Validation images: a fixed part of the 50,000 training images."""


class CIFAR10(ImageData):
    """CIFAR-10. The md5 of every file is checked before it is opened."""

    Config = FileKeys
    own_name: ClassVar[str] = "cifar10"
    fixed = True
    official: ClassVar[Any] = TorchvisionCIFAR10

    def load(self) -> Source:
        """Return all 60,000 images.

        Raises:
            ConfigError: a file is missing or damaged, and `data.download` is false or failed.
        """
        root = Path(self.config.root).expanduser()
        official_train, test = (self.split_of(self.official(root, train=train)) for train in (True, False))
        train, val = self.divide(official_train, NUM_VAL)
        return Source(train, val, test, self.class_names(self.official(root)))

    def split_of(self, dataset: Any) -> Split:
        """Return one of torchvision's two splits, with all its images."""
        labels = torch.tensor(dataset.targets)
        return Split(torch.from_numpy(dataset.data), labels, torch.arange(len(labels)))

    def class_names(self, dataset: Any) -> list[str]:
        """Return the names of the classes."""
        return list(dataset.classes)
