"""A data set in use: three splits of uint8 images on the device."""

import dataclasses
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from kdbench.config.sections import DataConfig, DataKeys
from kdbench.data.base import ImageData
from kdbench.data.memory import check_memory
from kdbench.data.source import DataSpec, Source, Split
from kdbench.data.splits import balanced_subset
from kdbench.data.views import Views, views_of
from kdbench.errors import ConfigError, RunError, described_at, first_line
from kdbench.system.memory import is_out_of_memory

log = logging.getLogger(__name__)

DECIMALS = 4
"""Decimals of a mean and standard deviation that are measured."""


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test images of one data set on one device, with their normalisation."""

    name: str
    spec: DataSpec
    train: Split
    val: Split
    test: Split
    views: Views
    """Augmentation of the training images by crop and flip."""
    device: str
    """Device of the batches, the labels and, unless they stay on the host, the images."""
    on_host: bool = False
    """True if the images stay in the memory of the host."""
    validation: bool = True
    """True if no validation image is trained on. If not, nothing may be selected by them."""

    @cached_property
    def mean(self) -> Tensor:
        """[C] float32, of values in [0, 1]."""
        return torch.tensor(self.spec.mean, device=self.device)

    @cached_property
    def std(self) -> Tensor:
        """[C] float32."""
        return torch.tensor(self.spec.std, device=self.device)

    @cached_property
    def padded(self) -> Tensor:
        """Training images with a black border, as `Views.crop` takes them: [N, H + 2p, W + 2p, C] uint8."""
        return self.views.pad(self.train.images)

    def normalise(self, images_NCHW: Tensor) -> Tensor:
        """Return uint8 images [N, C, H, W] as normalised float32, as ToTensor and Normalize compute it."""
        values = images_NCHW.to(torch.float32).div_(255)
        return values.sub_(self.mean[:, None, None]).div_(self.std[:, None, None])


_latest: tuple[str, Dataset] | None = None
_specs: dict[str, DataSpec] = {}
"""Properties of the data sets that this process has loaded, by `case_of`."""
_resolved: dict[str, DataConfig] = {}
"""Resolved configs, by `case_of`."""


def load(config: DataConfig, device: str) -> Dataset:
    """Return the data set on a device. The latest one is kept, so that a sweep in one process loads it once.

    Raises:
        ConfigError: its files are missing or damaged, a subset does not fit, it does not fit into memory, or the images
            are not those of the config's content.
    """
    global _latest
    case = case_of(config, device)
    if _latest is None or _latest[0] != case:
        _latest = None  # freed before the next one is loaded
        _latest = (case, load_from_files(config, device))
    dataset = _latest[1]
    if config.content is not None and hash_of_splits(dataset) != config.content:
        raise ConfigError(
            f"data={config.name}: the images or labels are others than those of the run ({config.content[:12]}...); "
            "restore them, or start the run again",
            code="data_changed",
            key="data",
        )
    return dataset


def spec_of(config: DataConfig, device: str) -> DataSpec:
    """Return the properties of a data set, loaded if this process has not loaded it yet. Errors: see `load`."""
    case = case_of(config, device)
    if case not in _specs:
        _specs[case] = load(resolve_data(config, device), device).spec
    return _specs[case]


def resolve_data(config: DataConfig, device: str) -> DataConfig:
    """Return the config with every null replaced, and with the hash of the images where the class does not fix them.

    Raises:
        ConfigError: see `load`.
    """
    global _latest
    keys, case = config.params, case_of(config, device)
    fixed = is_fixed(config)
    if fixed and None not in (keys.num_train, keys.num_val, keys.num_test, keys.mean):
        return config
    if case in _resolved:
        return _resolved[case]
    dataset = load(dataclasses.replace(config, content=None), device)
    sizes = {"num_train": len(dataset.train), "num_val": len(dataset.val), "num_test": len(dataset.test)}
    normalisation = {"mean": list(dataset.spec.mean), "std": list(dataset.spec.std)}
    resolved = dataclasses.replace(
        config,
        params=dataclasses.replace(keys, **sizes, **normalisation),
        content=None if fixed else hash_of_splits(dataset),
    )
    height, width = dataset.spec.input_shape[1:]
    log.info(
        "data=%s: %d training, %d validation and %d test images of %d x %d, %d classes",
        config.name, *sizes.values(), width, height, dataset.spec.num_classes,
    )  # fmt: skip
    _latest = (case_of(resolved, device), dataset)  # the same images: not to be loaded again
    _resolved[case] = _resolved[case_of(resolved, device)] = resolved
    return resolved


def is_fixed(config: DataConfig) -> bool:
    """Return whether a data set's class itself declares that the keys determine every image; subclasses inherit no such
    declaration, since they may change the images."""
    return bool(vars(config.target).get("fixed", False))


def case_of(config: DataConfig, device: str) -> str:
    """Return a text that is equal for configs of the same data set, with the same state of its files, on a device."""
    return repr((config.path, id(config.target), config.params, instance_of(config).state(), device))


def instance_of(config: DataConfig) -> ImageData:
    """Return the data set of a config.

    Raises:
        ConfigError: its class cannot be built from its keys and its name.
    """
    try:
        return config.target(config.params, config.name)
    except Exception as error:  # of a user's own code
        raise ConfigError(
            f"data={config.name}: {config.target.__name__} cannot be built "
            f"({type(error).__name__}: {first_line(error)}); its __init__ must take (config, name)",
            code="data_failed",
            key="data",
        ) from error


def hash_of_splits(dataset: Dataset) -> str:
    """Return the hash of all images, labels and indices of a data set."""
    hashes = [split.sha256 for split in (dataset.train, dataset.val, dataset.test)]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def load_from_files(config: DataConfig, device: str) -> Dataset:
    """Load the data set from its files."""
    keys: DataKeys = config.params
    source = read_source(instance_of(config), config)
    on_host = keys.memory == "host"

    def subset(split: Split, size: int | None, key: str) -> Split:
        return split if size in (None, len(split)) else split.take(balanced_subset(split.labels, size, key))

    train, val, test = (
        subset(split, getattr(keys, f"num_{name}"), f"data.num_{name}")
        for name, split in (("train", training_pool(source, keys)), ("val", source.val), ("test", source.test))
    )
    if not keys.validation and len(train) < len(source.train) + len(source.val):
        log.info(
            "data=%s: %d of %d training images are used; data.num_train=null: all of them",
            config.name, len(train), len(source.train) + len(source.val),
        )  # fmt: skip
    if len(train) < len(source.class_names):
        raise ConfigError(
            f"data.num_train is {keys.num_train}, and data={config.name} has {len(source.class_names)} classes; give "
            "one image for each, or more",
            code="out_of_range",
            key="data.num_train",
        )
    views = views_of(keys)
    check_memory([train, val, test], views, config, device)
    height, width, channels = train.images.shape[1:]
    mean, std = keys.mean, keys.std
    if mean is None or std is None:
        mean, std = measured_normalisation(train.images, config)
    if keys.augment and keys.padding >= min(height, width):
        raise ConfigError(
            f"data.padding is {keys.padding}, and images have {height} x {width} pixels; it must be below both: a crop "
            "has to show a part of the image",
            code="out_of_range",
            key="data.padding",
        )
    if len(mean) != channels:
        raise ConfigError(
            f"data.mean and data.std have {len(mean)} numbers, and the images of data={config.name} have {channels} "
            "channels; give one number per channel, or null for both: those of the training images",
            code="mismatch",
            key="data.mean",
        )
    names = tuple(map(str, source.class_names))
    spec = DataSpec(len(names), (channels, height, width), names, tuple(mean), tuple(std))
    images_on = "cpu" if on_host else device
    return Dataset(
        config.name,
        spec,
        train.to(device, images_on),
        val.to(device, images_on, pinned=True),
        test.to(device, images_on, pinned=True),
        views,
        device,
        on_host,
        keys.validation,
    )


def training_pool(source: Source, keys: DataKeys) -> Split:
    """Return the images that may be trained on: without `validation`, those of both splits.

    They are in the order of their indices in the original set. Where the splits are sets of their own, which share
    indices, the validation images follow the others, with indices after theirs.
    """
    train, val = source.train, source.val
    if keys.validation:
        return train
    indices = val.indices
    if bool(torch.isin(indices, train.indices).any()):
        indices = indices + int(train.indices.max()) + 1
    pooled = Split(
        torch.cat([train.images, val.images]),
        torch.cat([train.labels, val.labels]),
        torch.cat([train.indices, indices]),
    )
    order = torch.argsort(pooled.indices)
    return pooled if bool((order.diff() == 1).all()) else pooled.take(order)


def read_source(data: ImageData, config: DataConfig) -> Source:
    """Return the splits of a data set, checked.

    Raises:
        ConfigError: it cannot be loaded, or its splits cannot be trained on.
    """
    option = f"data={config.name}"
    try:
        source = data.load()
    except (ConfigError, RunError):
        raise
    except Exception as error:  # of a user's own code
        if is_out_of_memory(error):
            raise
        raise ConfigError(
            f"{option}: {config.target.__name__}.load failed with {described_at(error, config.target)}",
            code="data_failed",
            key="data",
        ) from error

    def refuse(text: str) -> ConfigError:
        return ConfigError(f"{option}: {text}", code="invalid_data", key="data")

    if not isinstance(source, Source):
        raise refuse(f"{config.target.__name__}.load returned a {type(source).__name__}; it must return a Source")
    if len(source.class_names) < 2:
        raise refuse(f"it has {len(source.class_names)} class; at least two are needed")
    shape = list(source.train.images.shape[1:])
    for name in ("train", "val", "test"):
        split = getattr(source, name)
        if not isinstance(split, Split) or not len(split):
            raise refuse(f"its split {name} has no images")
        if split.images.dtype != torch.uint8 or split.images.ndim != 4 or list(split.images.shape[1:]) != shape:
            raise refuse(
                f"images of {name} are {split.images.dtype} {list(split.images.shape)}; they must be uint8 "
                f"{['N', *shape]}, as those of train"
            )
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= len(source.class_names):
            raise refuse(
                f"labels of {name} are {low} to {high}; with {len(source.class_names)} class names they must be 0 to "
                f"{len(source.class_names) - 1}"
            )
    for name in ("train", "val", "test"):
        check_split(getattr(source, name), name, refuse)
    missing = torch.bincount(source.train.labels, minlength=len(source.class_names)) == 0
    if bool(missing.any()) and not is_fixed(config):
        raise refuse(f"class {source.class_names[int(missing.nonzero()[0])]!r} has no training images")
    return source


def check_split(split: Split, name: str, refuse: Callable[[str], ConfigError]) -> None:
    """Check that a split has a label and an index of its own for each image."""
    images = len(split.images)
    if split.labels.shape != (images,) or split.indices.shape != (images,):
        raise refuse(
            f"split {name} has {images} images, labels {list(split.labels.shape)} and indices "
            f"{list(split.indices.shape)}; there must be one of each per image"
        )
    if split.labels.dtype != torch.int64 or split.indices.dtype != torch.int64:
        raise refuse(
            f"labels and indices of split {name} are {split.labels.dtype} and {split.indices.dtype}, not int64"
        )
    if int(split.indices.min()) < 0 or len(split.indices.unique()) < images:
        raise refuse(f"split {name} has the same index for several images; indices must be distinct and at least 0")


def measured_normalisation(images_NHWC: Tensor, config: DataConfig) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation of each channel of images, of values in [0, 1], rounded.

    Raises:
        ConfigError: a channel has the same value everywhere.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(images_NHWC.shape[3]):
        counts = torch.bincount(images_NHWC[..., channel].flatten(), minlength=256).double()
        mean = (counts @ values) / counts.sum()
        means.append(round(float(mean), DECIMALS))
        deviations.append(round(float(((counts @ (values - mean).square()) / counts.sum()).sqrt()), DECIMALS))
    if min(deviations) <= 0:
        raise ConfigError(
            f"data={config.name}: channel {deviations.index(min(deviations))} has the same value in all training "
            "images, so data.std cannot be measured; check the images, or give data.mean and data.std",
            code="invalid_data",
            key="data.std",
        )
    return means, deviations
