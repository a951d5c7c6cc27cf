"""The embedded data set `shapes`."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from kdbench.config.schema import added, setting
from kdbench.config.sections import DataKeys
from kdbench.data.base import ImageData
from kdbench.data.shapes import class_names, draw_shapes
from kdbench.data.source import Source, Split
from kdbench.errors import ConfigError

SEEDS = {"train": 0, "val": 3, "test": 2}  # the difficulty was chosen on images of seed 1
DEFAULT_SIZES = {"train": 10_000, "val": 2_000, "test": 2_000}
MAX_IMAGES = 100_000


class Shapes(ImageData):
    """Ten or a hundred classes of 32 x 32 colour images, drawn by code."""

    @dataclass
    class Config(DataKeys):
        """Keys of the data set's YAML file."""

        num_classes: int = added(setting(lambda value: value in (10, 100), "10 or 100"), 10)

    own_name: ClassVar[str] = "shapes"
    fixed = True

    def load(self) -> Source:
        """Return the images that the config requests. Every ten (or hundred) of them hold each class once.

        Raises:
            ConfigError: more images than the limit.
        """
        train, val, test = map(self.draw, SEEDS)
        return Source(train, val, test, class_names(self.config.num_classes))

    def draw(self, name: str) -> Split:
        """Return the images of a split: the first of its endless sequence."""
        count = getattr(self.config, f"num_{name}")
        if name == "train" and count is not None and not self.config.validation:
            # num_train counts the validation images too, which are trained on; at least one is drawn.
            count = max(1, count - (self.config.num_val or DEFAULT_SIZES["val"]))
        count = DEFAULT_SIZES[name] if count is None else count
        if count > MAX_IMAGES:
            raise ConfigError(
                f"data.num_{name} is {count}; data=shapes draws at most {MAX_IMAGES} images",
                code="out_of_range",
                key=f"data.num_{name}",
            )
        images, labels = draw_shapes(count, SEEDS[name], self.config.num_classes)
        return Split(torch.from_numpy(images), torch.from_numpy(labels), torch.arange(count))
