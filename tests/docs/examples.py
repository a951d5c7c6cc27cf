"""Commands of a page, as given but for the sizes of the tests, and small data in the place of real files."""

import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kdbench.config import RunConfig, compose
from kdbench.data import ImageData, Source, Split
from kdbench.data.cifar import CIFAR100
from kdbench.data.svhn import SVHN
from tests.docs.test_docs import command_lines

SIZES = (
    "data.num_train=64", "data.num_val=50", "data.num_test=60", "recipe.batch_size=32", "teacher.recipe.batch_size=32",
    "runtime.device=cpu", "runtime.precision=fp32",
)  # fmt: skip


def commands_of(page: Path) -> list[str]:
    """Return the commands of `kdbench` itself that a page shows."""
    return [shlex.join(words) for words in command_lines(page) if words[0] == "kdbench"]


def config_of(command: str, sizes: list[str], folder: Path) -> RunConfig:
    """Return the config of a command, with other sizes and with its output in a folder.

    Args:
        command: as the page shows it.
        sizes: further overrides, which count more than those of the command.
        folder: folder of the output.
    """
    words = shlex.split(command)
    config_dir = words[words.index("--config-dir") + 1] if "--config-dir" in words else None
    overrides = [word for word in words[1:] if "=" in word]
    given = {override.lstrip("+").partition("=")[0] for override in overrides}
    added = "+" if "my_configs" in command and "data=" in command else ""  # keys that the file does not list
    kept = [
        added * ("data.num" in override) + override for override in SIZES if override.partition("=")[0] not in given
    ]
    return compose([*overrides, *kept, *sizes, f"output_root={folder / 'outputs'}"], config_dir)


def split(count: int, classes: int) -> Split:
    """Return random images of 32 x 32 pixels."""
    images = np.random.default_rng(count).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    return Split.of(images, np.arange(count) % classes)


def use_random_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let CIFAR-100 and SVHN have random images: their md5s admit no other files."""

    def load(data: ImageData) -> Source:
        classes = 10 if isinstance(data, SVHN) else {"fine": 100, "coarse": 20}[data.config.labels]
        return Source(split(200, classes), split(100, classes), split(100, classes), list(map(str, range(classes))))

    monkeypatch.setattr(CIFAR100, "load", load)
    monkeypatch.setattr(SVHN, "load", load)


def write_images(folder: Path, classes: tuple[str, ...], each: int) -> None:
    """Write random images of several sizes into a folder per class."""
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for number in range(each):
            image = rng.integers(0, 256, (40 + number % 7, 50, 3), dtype=np.uint8)
            Image.fromarray(image).save(folder / name / f"{name}_{number}.jpg")
