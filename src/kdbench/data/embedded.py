"""The embedded data set `shapes` as a source of splits."""

import torch

from kdbench.config.sections import DataConfig
from kdbench.data.shapes import draw_shapes
from kdbench.data.source import Source, Split
from kdbench.errors import ConfigError

SEEDS = {"train": 0, "val": 3, "test": 2}  # the difficulty was chosen on images of seed 1
MAX_IMAGES = 100_000


def load_shapes(config: DataConfig) -> Source:
    """Return the images that the config requests, drawn by code. Every ten of them hold each class once.

    Raises:
        ConfigError: more images than the limit.
    """
    return Source(*(draw_split(name, getattr(config, f"num_{name}")) for name in SEEDS))


def draw_split(name: str, count: int) -> Split:
    """Return the first `count` images of a split."""
    if count > MAX_IMAGES:
        raise ConfigError(
            f"data.num_{name} is {count}; data=shapes draws at most {MAX_IMAGES} images",
            code="out_of_range",
            key=f"data.num_{name}",
        )
    images, labels = draw_shapes(count, SEEDS[name])
    return Split(torch.from_numpy(images), torch.from_numpy(labels), torch.arange(count))
