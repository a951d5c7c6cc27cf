"""Memory of a data set: refused before training where it does not fit."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch

from kdbench.config.sections import DataConfig
from kdbench.data.source import Split
from kdbench.data.views import Views
from kdbench.errors import ConfigError

SHARE = 0.9
"""Share of the free memory that images may take; networks need the rest, and more on a GPU."""


def check_memory(splits: Sequence[Split], views: Views, config: DataConfig, device: str) -> None:
    """Check that the images of a data set, with a padded copy of the training images, fit where they are to lie.

    Args:
        splits: training, validation and test images, on the CPU.
        views: views of the training images.
        config: config of the data set.
        device: device of the training.

    Raises:
        ConfigError: they do not.
    """
    train = splits[0]
    height, width, channels = train.images.shape[1:]
    padded = (height + 2 * views.padding) * (width + 2 * views.padding) * channels * len(train) if views.padding else 0
    kept = sum(split.num_bytes for split in splits)
    host = config.params.memory == "host"
    check_bytes(kept + padded, len(train), "cpu" if host else device, config, images_there=kept)


def check_bytes(needed: int, images: int, device: str, config: DataConfig, images_there: int = 0) -> None:
    """Check that images fit into the free memory of a device.

    Args:
        needed: bytes.
        images: number of training images.
        device: where they are to lie.
        config: config of the data set.
        images_there: bytes of images that lie on the CPU already.

    Raises:
        ConfigError: they do not fit.
    """
    free = free_memory(device)
    if device == "cpu":
        free += images_there
    if needed <= SHARE * free:
        return
    fitting = math.floor(images * SHARE * free / needed)
    host = ", or use data.memory=host" if device != "cpu" else ""
    raise ConfigError(
        f"data={config.name} needs {needed / 1e9:.1f} GB on {device}, where {free / 1e9:.1f} GB are free; "
        f"data.num_train={fitting} (of {images} images) would fit, or smaller images{host}",
        code="no_memory",
        key="data.num_train",
    )


def free_memory(device: str) -> float:
    """Return the free memory of a device in bytes; infinite where the system does not say."""
    if torch.device(device).type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # for tensors of this process
        return torch.cuda.mem_get_info(device)[0] + kept
    if torch.device(device).type == "cpu":
        try:
            lines = Path("/proc/meminfo").read_text().splitlines()
            return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
        except (OSError, StopIteration, ValueError):
            return math.inf
    return math.inf
