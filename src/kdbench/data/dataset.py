"""A data set in use: three splits of uint8 images on the device."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from torch import Tensor

from kdbench.config.sections import DataConfig
from kdbench.data.cifar10 import load_cifar10
from kdbench.data.embedded import load_shapes
from kdbench.data.source import Source, Split
from kdbench.data.splits import balanced_subset
from kdbench.data.views import pad
from kdbench.errors import ConfigError, nearest

LOADERS: dict[str, Callable[[DataConfig], Source]] = {"cifar10": load_cifar10, "shapes": load_shapes}
NUM_CLASSES = 10
IMAGE_SHAPE = (3, 32, 32)


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test images of one data set on one device, with their normalisation."""

    name: str
    train: Split
    val: Split
    test: Split
    mean: Tensor
    """[3] float32, of values in [0, 1]."""
    std: Tensor
    """[3] float32."""

    @cached_property
    def padded(self) -> Tensor:
        """Training images with a black border, as `kdbench.data.views.crop` takes them: [N, H + 8, W + 8, C] uint8."""
        return pad(self.train.images)

    def normalise(self, images_NCHW: Tensor) -> Tensor:
        """Return uint8 images [N, C, H, W] as normalised float32, as ToTensor and Normalize compute it."""
        values = images_NCHW.to(torch.float32).div_(255)
        return values.sub_(self.mean[:, None, None]).div_(self.std[:, None, None])


_latest: tuple[object, Dataset] | None = None


def load(config: DataConfig, device: str) -> Dataset:
    """Return the data set on a device. The latest one is kept, so that a sweep in one process loads it once.

    Raises:
        ConfigError: the set is unknown, its files are missing or damaged, or a subset does not fit.
    """
    global _latest
    wanted = (asdict(config), device)
    if _latest is None or _latest[0] != wanted:
        _latest = None  # freed before the next one is loaded
        _latest = (wanted, load_from_files(config, device))
    return _latest[1]


def load_from_files(config: DataConfig, device: str) -> Dataset:
    """Load the data set from its files."""
    if config.name not in LOADERS:
        raise ConfigError(
            f"data.name is {config.name!r}; {nearest(config.name, LOADERS)}", code="unknown_option", key="data.name"
        )
    source = LOADERS[config.name](config)

    def subset(split: Split, size: int, key: str) -> Split:
        return split.take(balanced_subset(split.labels, size, key), device)

    return Dataset(
        config.name,
        subset(source.train, config.num_train, "data.num_train"),
        subset(source.val, config.num_val, "data.num_val"),
        subset(source.test, config.num_test, "data.num_test"),
        torch.tensor(config.mean, device=device),
        torch.tensor(config.std, device=device),
    )
