"""CIFAR-10 from the official python batches (Krizhevsky 2009)."""

import shutil
from pathlib import Path

import torch
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity

from kdbench.config.sections import DataConfig
from kdbench.data.source import Source, Split
from kdbench.data.splits import train_val_split
from kdbench.errors import ConfigError, first_line

FILES = [*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]]
NUM_VAL = 5000


def load_cifar10(config: DataConfig) -> Source:
    """Return all 60,000 images. The md5 of every file is checked before it is opened.

    Raises:
        ConfigError: a file is missing or damaged, and `data.download` is false or failed.
    """
    root = Path(config.root).expanduser()
    damage = find_damage(root)
    if damage and config.download:
        existed = root.exists()
        try:
            CIFAR10(root, download=True)
        except Exception as error:
            if not existed:
                shutil.rmtree(root, ignore_errors=True)
            raise ConfigError(
                f"data.download=true failed: {first_line(error)}; {instructions(root)}",
                code="download_failed",
                key="data.download",
            ) from None
    elif damage:
        code, text = damage
        raise ConfigError(
            f"data=cifar10: {text}; {instructions(root)}, or set data.download=true", code=code, key="data.root"
        )
    official_train, official_test = (as_split(CIFAR10(root, train=train)) for train in (True, False))
    train, val = train_val_split(len(official_train), NUM_VAL)
    return Source(official_train.take(train, "cpu"), official_train.take(val, "cpu"), official_test)


def as_split(dataset: CIFAR10) -> Split:
    """Return one of torchvision's two splits, with all its images."""
    labels = torch.tensor(dataset.targets)
    return Split(torch.from_numpy(dataset.data), labels, torch.arange(len(labels)))


def find_damage(root: Path) -> tuple[str, str] | None:
    """Return error code and text for files under `root` that are missing or damaged, or None if all are intact."""
    folder = root / CIFAR10.base_folder
    if not folder.is_dir():
        return "not_found", f"the folder {folder} was not found"
    missing = [name for name, _ in FILES if not (folder / name).is_file()]
    if missing:
        return "not_found", f"{folder} lacks {', '.join(missing)}"
    damaged = [name for name, md5 in FILES if not check_integrity(str(folder / name), md5)]
    if damaged:
        return "damaged", f"{folder} has damaged files (wrong md5): {', '.join(damaged)}"
    return None


def instructions(root: Path) -> str:
    """Return the instructions for providing the files."""
    return (
        f"unpack {CIFAR10.filename} (from the data set's home page) into {root}, so that it contains "
        f"{CIFAR10.base_folder}/, or point data.root or KDBENCH_DATA to the folder that contains it"
    )
