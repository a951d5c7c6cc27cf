"""Data sets of decoded images: their keys, and their division into splits by fractions, class by class."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdbench.config.paths import is_path
from kdbench.config.schema import optional, setting
from kdbench.config.sections import FOLDER, DataKeys
from kdbench.data.source import Source, Split
from kdbench.data.splits import SPLIT_SEED
from kdbench.errors import ConfigError

MAX_SIZE = 4096


def pixels() -> Any:
    """Declare a field with the height and width of images."""
    return setting(lambda value: 1 <= value <= MAX_SIZE, f"a whole number of pixels from 1 to {MAX_SIZE}")


def share() -> Any:
    """Declare a field with a share of the training images."""
    return setting(lambda value: 0 < value < 1, "a number above 0 and below 1")


@dataclass
class DecodedKeys(DataKeys):
    """The keys of a data set of image files."""

    root: str = setting(is_path, FOLDER, identity=False)
    val_fraction: float = share()
    test_fraction: float = share()
    cache: str | None = optional(setting(is_path, FOLDER, identity=False), absent=None)


def cache_folder(keys: DecodedKeys) -> Path:
    """Return the folder for decoded images."""
    return Path(keys.cache).expanduser() if keys.cache else Path(keys.root).expanduser() / ".kdbench"


def divided(splits: Mapping[str, Split], class_names: Sequence[str], keys: DecodedKeys, option: str) -> Source:
    """Return the splits that are there, with the missing ones divided off the training images.

    Args:
        splits: train, and val and test where they are there.
        class_names: names of the classes.
        keys: keys of the data set.
        option: the option of the data set as the user writes it.

    Raises:
        ConfigError: see `divide_off`.
    """
    missing = tuple(name for name in ("val", "test") if name not in splits)
    fractions = {"val": keys.val_fraction, "test": keys.test_fraction}
    every = {**splits, **divide_off(splits["train"], missing, fractions, option)}
    return Source(every["train"], every["val"], every["test"], class_names)


def divide_off(train: Split, missing: tuple[str, ...], fractions: dict[str, float], option: str) -> dict[str, Split]:
    """Return the training images and the splits that were missing, divided off them by a seed that no run changes.

    Of each class, a split receives its share of the images, rounded, and at least one image if enough are left; the
    training images keep at least one of each class. The test images do not depend on the fraction of the others.

    Args:
        train: the images to divide.
        missing: names of the missing splits: val, test, both or neither.
        fractions: share of each missing split, above 0 and below 1.
        option: the option of the data set as the user writes it.

    Returns:
        splits by name: train and the missing ones.

    Raises:
        ConfigError: the fractions leave nothing to train on, or a split has no images.
    """
    if not missing:
        return {"train": train}
    if sum(fractions[name] for name in missing) >= 1:
        keys = " and ".join(f"data.{name}_fraction={fractions[name]:g}" for name in missing)
        raise ConfigError(
            f"{option}: {keys} leave nothing to train on; their sum must be below 1",
            code="out_of_range",
            key=f"data.{missing[0]}_fraction",
        )
    rows: dict[str, list[Tensor]] = {name: [] for name in ("train", *missing)}
    for label in range(int(train.labels.max()) + 1):
        members = (train.labels == label).nonzero().flatten()
        left = members[torch.randperm(len(members), generator=torch.Generator().manual_seed(SPLIT_SEED))]
        for name in sorted(missing):  # test, then val
            share = min(max(1, round(fractions[name] * len(members))), max(0, len(left) - 1))
            rows[name].append(left[:share])
            left = left[share:]
        rows["train"].append(left)
    divided = {name: train.take(torch.cat(parts).sort().values) for name, parts in rows.items()}
    for name, split in divided.items():
        if not len(split):
            raise ConfigError(
                f"{option}: {len(train)} images are too few to divide off a split {name}; provide it, or more images",
                code="invalid_data",
                key="data.root",
            )
    return divided
