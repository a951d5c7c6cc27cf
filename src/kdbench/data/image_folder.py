"""Any folder of images in folders by class."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from PIL import Image

from kdbench.data.base import ImageData
from kdbench.data.decode import Reader, report_conversions
from kdbench.data.decode_cache import decode_cached, fingerprint
from kdbench.data.decoded import DecodedKeys, cache_folder, divided, pixels
from kdbench.data.source import Source, Split
from kdbench.errors import ConfigError

log = logging.getLogger(__name__)

EXTENSIONS = frozenset(
    ".png .jpg .jpeg .jpe .bmp .dib .webp .tif .tiff .gif .ppm .pgm .pbm .pnm .avif .jp2 .j2k .tga".split(),
)
SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}


class ImageFile(NamedTuple):
    """A file with an image's extension."""

    path: str
    """Path under the root."""
    num_bytes: int
    mtime_ns: int
    ctime_ns: int


class ImageFolder(ImageData):
    """A folder with a folder per class, or with folders train, val and test that have one.

    Images are found at any depth of a class's folder, in the order of their paths. They are resized so that the shorter
    side is `size`, antialiased, and cropped to the central square.
    """

    @dataclass
    class Config(DecodedKeys):
        """Keys of the data set's YAML file."""

        size: int = pixels()

    own_name: ClassVar[str] = "image_folder"

    def __init__(self, config: Any, name: str) -> None:
        super().__init__(config, name)
        self.option = f"data={name}"
        self.root = Path(config.root).expanduser()
        self.ignored: list[str] = []
        """Folders beside train that are no splits."""
        self.others: Counter[str] = Counter()
        """Number of files in folders of classes that are no images, by extension."""

    def load(self) -> Source:
        """Return all images, decoded.

        Raises:
            ConfigError: the folders are not as described above, an image is damaged, or they do not fit into memory.
        """
        try:
            files = self.find_files()
        except OSError as error:
            raise ConfigError(
                f"{self.option}: data.root cannot be read: {error}; make it readable",
                code="not_readable",
                key="data.root",
            ) from None
        if self.ignored:
            log.info("%s: ignored beside train: %s", self.option, ", ".join(self.ignored))
        if self.others:
            counts = ", ".join(f"{count} {suffix or 'without one'}" for suffix, count in sorted(self.others.items()))
            log.info("%s: ignored files by extension: %s", self.option, counts)
        classes = list(files["train"])
        listed = [
            (split, file, label) for split in files for label, name in enumerate(classes) for file in files[split][name]
        ]
        missing = tuple(name for name in ("val", "test") if name not in files)

        def read(row: int) -> tuple[Image.Image, int]:
            _, file, label = listed[row]
            if not file.num_bytes:
                raise ValueError("the file is empty")
            return Image.open(self.root / file.path), label

        reader = Reader(len(listed), read, lambda row: listed[row][1].path, str(self.root), self.option)
        cache = cache_folder(self.config)
        # The labels are cached with the images, so the layout counts.
        key = fingerprint((file for _, file, _ in listed), size=self.config.size, splits=sorted(files))
        decoded = decode_cached(
            cache / f"images-{self.config.size}-{key}.bin", reader, self.config.size, copies=2 if missing else 1
        )
        report_conversions(decoded, self.option)
        splits = {}
        for name in files:
            rows = [row for row, (split, _, _) in enumerate(listed) if split == name]  # contiguous: no copy
            splits[name] = Split.of(
                decoded.images[rows[0] : rows[-1] + 1], torch.tensor([listed[row][2] for row in rows])
            )
        return divided(splits, classes, self.config, self.option)

    def state(self) -> object:
        """Return the fingerprint of the files, or None where they cannot be listed, which `load` reports."""
        try:
            listed = [file for files in self.find_files().values() for found in files.values() for file in found]
        except (ConfigError, OSError):
            return None
        return fingerprint(listed)

    def find_files(self) -> dict[str, dict[str, list[ImageFile]]]:
        """Return the image files of each split that is there, by class.

        Raises:
            ConfigError: there are no or other folders than expected.
            OSError: a folder cannot be read.
        """
        if not self.root.is_dir():
            raise ConfigError(
                f"{self.option}: data.root is {self.root}, and there is no such folder; give a folder that holds a "
                "folder of images per class",
                code="not_found",
                key="data.root",
            )
        self.others.clear()
        folders = self.split_folders()
        files = {split: self.class_files(folder) for split, folder in folders.items()}
        train = list(files["train"])
        for split, folder in folders.items():
            for name, found in files[split].items():
                if not found:
                    raise self.refuse(
                        f"{folder / name} has no images; add some ({', '.join(sorted(EXTENSIONS))}), or delete it"
                    )
            if list(files[split]) != train:
                lacks, more = sorted({*train} - {*files[split]}), sorted({*files[split]} - {*train})
                differences = [f"{folder} lacks {', '.join(lacks[:5])}"] if lacks else []
                differences += [f"{folders['train']} lacks {', '.join(more[:5])}"] if more else []
                raise self.refuse(
                    f"{folder} must have the class folders of {folders['train']}: {', and '.join(differences)}"
                )
        if len(train) < 2:
            raise self.refuse(f"{folders['train']} has one class folder, {train[0]!r}; at least two are needed")
        return files

    def split_folders(self) -> dict[str, Path]:
        """Return the folder of each split, or the root as that of the training images where there are none."""
        there = {folder.name: folder for folder in subfolders(self.root)}
        found = {split: [there[n] for n in names if n in there] for split, names in SPLIT_FOLDERS.items()}
        others = sorted(there.keys() - {folder.name for folders in found.values() for folder in folders})
        if not there or (others and not (found["train"] and subfolders(found["train"][0]))):
            return {"train": self.root}  # a folder `train` without folders in it is a class
        if not found["train"]:
            raise self.refuse(f"{self.root} has {' and '.join(sorted(there))}, but no folder train; add it")
        for split, folders in found.items():
            if len(folders) > 1:
                raise self.refuse(f"{self.root} has several folders for {split}: keep one of "
                                  f"{' and '.join(folder.name for folder in folders)}")  # fmt: skip
        self.ignored = others
        return {split: folders[0] for split, folders in found.items() if folders}

    def class_files(self, folder: Path) -> dict[str, list[ImageFile]]:
        """Return the image files of each class folder in a folder; both in the order of their names."""
        above = frozenset((stat.st_dev, stat.st_ino) for stat in (self.root.stat(), folder.stat()))
        classes = {sub.name: sorted(image_files(sub, self.root, self.others, above)) for sub in subfolders(folder)}
        if not classes:
            raise self.refuse(
                f"{folder} has no class folders; it must hold a folder of images per class"
                + (
                    ""
                    if folder == self.root or folder.name == "train"
                    else ", or be moved away: then it is divided off"
                )
            )
        return classes

    def refuse(self, text: str) -> ConfigError:
        """Return the error for folders that cannot be used."""
        return ConfigError(f"{self.option}: {text}", code="invalid_data", key="data.root")


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder by name, without hidden ones and those that archivers add."""
    return sorted(
        Path(entry.path)
        for entry in os.scandir(folder)
        if entry.is_dir() and not entry.name.startswith(".") and entry.name != "__MACOSX"
    )


def image_files(
    folder: Path, root: Path, others: Counter[str], above: frozenset[tuple[int, int]]
) -> Iterator[ImageFile]:
    """Yield the image files at any depth of a folder; links are followed, but not in a circle.

    Args:
        folder: the folder.
        root: folder to which the paths are relative.
        others: counts the other files by extension.
        above: device and inode of the folders above it.
    """
    stat = folder.stat()
    if (stat.st_dev, stat.st_ino) in above:
        return
    for entry in os.scandir(folder):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from image_files(Path(entry.path), root, others, above | {(stat.st_dev, stat.st_ino)})
        elif Path(entry.name).suffix.lower() in EXTENSIONS:
            try:
                found = entry.stat()
                state = (found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            except FileNotFoundError:  # a link to nowhere: reported when it is decoded
                state = (1, 0, 0)
            yield ImageFile(Path(entry.path).relative_to(root).as_posix(), *state)
        else:
            others[Path(entry.name).suffix.lower()] += 1
