"""A data set as every run sees it: three splits of uint8 images on the device."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property

import torch
from torch import Tensor

from kdbench.config import DataConfig
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
    """Train, validation and test images of one data set on one device, and how to normalise them."""

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
        """The training images as `kdbench.data.views.crop` takes them: [N, H + 8, W + 8, C] uint8."""
        return pad(self.train.images)

    def normalise(self, images_NCHW: Tensor) -> Tensor:
        """uint8 [N, C, H, W] to float32 of about zero mean and unit variance, as ToTensor and Normalize compute it."""
        values = images_NCHW.to(torch.float32).div_(255)
        return values.sub_(self.mean[:, None, None]).div_(self.std[:, None, None])


_latest: tuple[object, Dataset] | None = None


def load(config: DataConfig, device: str) -> Dataset:
    """The data set on a device; the latest one is kept, so that a sweep in one process loads it once.

    Raises:
        ConfigError: an unknown set, files missing or damaged, or subset sizes that do not fit.
    """
    global _latest
    wanted = (asdict(config), device)
    if _latest is None or _latest[0] != wanted:
        _latest = None  # freed before the next one is loaded
        _latest = (wanted, load_fresh(config, device))
    return _latest[1]


def load_fresh(config: DataConfig, device: str) -> Dataset:
    if config.name not in LOADERS:
        raise ConfigError(f"data.name is {config.name!r}; {nearest(config.name, LOADERS)}")
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
