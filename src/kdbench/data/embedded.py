"""The embedded data set as a source of splits."""

import torch

from kdbench.config import DataConfig
from kdbench.data.shapes import draw_shapes
from kdbench.data.source import Source
from kdbench.errors import ConfigError

TRAIN_SEED, TEST_SEED = 0, 2  # seed 1 was looked at when the difficulty was chosen
MOST_IMAGES = 100_000


def load_shapes(config: DataConfig) -> Source:
    """As many images as the config asks for, drawn anew each time.

    Training and validation images are parts of one sequence, split like those of every other set.

    Raises:
        ConfigError: more images than are worth drawing.
    """
    for key, asked in (("data.num_train + data.num_val", config.num_train + config.num_val),
                       ("data.num_test", config.num_test)):  # fmt: skip
        if asked > MOST_IMAGES:
            raise ConfigError(f"{key} is {asked}; data=shapes draws at most {MOST_IMAGES} images")
    train_images, train_labels = draw_shapes(config.num_train + config.num_val, TRAIN_SEED)
    test_images, test_labels = draw_shapes(config.num_test, TEST_SEED)
    return Source(
        torch.from_numpy(train_images),
        torch.from_numpy(train_labels),
        torch.from_numpy(test_images),
        torch.from_numpy(test_labels),
        config.num_val,
    )
