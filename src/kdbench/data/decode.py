"""Decoding of image files into uint8 arrays, by all cores."""

import logging
import math
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize
from tqdm import tqdm

from kdbench.data.memory import SHARE, free_memory
from kdbench.errors import ConfigError, first_line
from kdbench.system.cpu import available_cores

log = logging.getLogger(__name__)

ORIENTATION = 0x0112
"""EXIF tag of the orientation."""
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""Transposition that turns an image of each orientation upright."""
CHUNK = 32
"""Images that a thread decodes at a time."""
LONGEST = 8
"""Sides of an image in proportion to each other, beyond which it is cropped before it is resized, to save memory."""
LONG = 2.0
"""Seconds after which lines show the progress where there is no terminal."""


class Decoded(NamedTuple):
    """All images of a data set."""

    images: Tensor
    """[N, H, W, 3] uint8."""
    labels: Tensor
    """[N] int64."""
    conversions: Mapping[str, int]
    """Number of images that were converted, by the kind of conversion."""


@dataclass(frozen=True)
class Reader:
    """Access to the images of a data set, by number.

    Args:
        count: number of images.
        read: returns an image, not necessarily loaded yet, and its label. Several threads call it.
        describe: returns the name of an image, for errors.
        where: the place of the images, for errors, after "under".
        option: the option of the data set as the user writes it, for example data=image_folder.
    """

    count: int
    read: Callable[[int], tuple[Image.Image, int]]
    describe: Callable[[int], str]
    where: str
    option: str


class NotAnImageError(TypeError):
    """An item of a data set that is not an image with one label."""


def as_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """Return an image as 8-bit red, green and blue, upright, and the kinds of conversion.

    Grey values become three equal channels, alpha is drawn over black, 16-bit values are divided by 256. Of several
    frames the first is taken.

    Raises:
        ValueError: its values have more than 16 bits.
        Exception: whatever Pillow raises for a damaged file.
    """
    kinds = ["several frames (the first is used)"] if getattr(image, "is_animated", False) else []
    image.load()
    orientation = 1
    with suppress(Exception):  # damaged EXIF data are no reason to refuse an image
        orientation = image.getexif().get(ORIENTATION, 1)
    mode = image.mode
    if mode.startswith("I;16") or mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() >= 2**16:
            raise ValueError(f"values from {values.min()} to {values.max()}; only 8 and 16 bits are supported")
        if mode == "I" and values.max() < 256:
            raise ValueError(f"32-bit values up to {values.max()}, of 8 or of 16 bits; save it with 8 or 16 bits")
        kinds.append("16-bit (divided by 256)")
        image = Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    elif mode == "F":
        raise ValueError("floating-point values; only 8 and 16 bits are supported")
    elif ("A" in mode.upper() and mode != "LAB") or "transparency" in image.info:
        kinds.append("alpha (drawn over black)")
        over = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", over.size, (0, 0, 0, 255)), over).convert("RGB")
    elif mode != "RGB":
        kinds.append({"1": "black and white", "L": "grey", "P": "palette"}.get(mode, mode))
        image = image.convert("RGB")
    if orientation in UPRIGHT:
        kinds.append("turned as their EXIF orientation says")
        image = image.transpose(UPRIGHT[orientation])
    return image, kinds


def resized(image: Image.Image, size: int) -> Image.Image:
    """Return an image resized so that its shorter side is `size`, antialiased, and cropped to its central square.

    An image of exactly that size is returned as it is.
    """
    if image.size == (size, size):
        return image
    width, height = image.size
    longest = LONGEST * min(width, height)
    if max(width, height) > longest:
        image = center_crop(image, [min(height, longest), min(width, longest)])
    return center_crop(resize(image, size, InterpolationMode.BILINEAR), [size, size])


def check_fits(reader: Reader, shape: tuple[int, int], copies: int) -> None:
    """Check that the decoded images fit into the free memory.

    Args:
        reader: the images.
        shape: height and width.
        copies: number of times that they lie in memory; dividing them copies them once.

    Raises:
        ConfigError: they do not.
    """
    needed = 3 * shape[0] * shape[1] * reader.count * copies
    free = free_memory("cpu")
    if needed > SHARE * free:
        fitting = math.isqrt(int(SHARE * free / (3 * reader.count * copies)))
        advice = f"data.size={fitting} would fit" if fitting else "use fewer images"
        raise ConfigError(
            f"{reader.option}: {reader.count} images of {shape[1]} x {shape[0]} pixels need {needed / 1e9:.1f} GB of "
            f"memory, where {free / 1e9:.1f} GB are free; {advice}",
            code="no_memory",
            key="data.size",
        )


def decode(reader: Reader, size: int | None, copies: int = 1) -> Decoded:
    """Decode all images of a data set. The result does not depend on the number of threads.

    Args:
        reader: the images.
        size: height and width in pixels; None: those of the images, which must be equal.
        copies: see `check_fits`.

    Raises:
        ConfigError: an image is damaged or of another size, or they do not fit into memory.
    """
    shape = (size, size) if size else shape_of_first(reader)
    check_fits(reader, shape, copies)
    images = np.empty((reader.count, *shape, 3), np.uint8)
    labels = np.empty(reader.count, np.int64)
    conversions: Counter[str] = Counter()
    faults: list[tuple[int, str]] = []

    def decode_some(rows: range) -> tuple[int, Counter[str], list[tuple[int, str]]]:
        counts: Counter[str] = Counter()
        damaged = []
        for row in rows:
            try:
                opened, labels[row] = reader.read(row)
                with opened:
                    image, kinds = as_rgb(opened)
                    if size:
                        image = resized(image, size)
            except (MemoryError, NotAnImageError):
                raise
            except Exception as error:  # Pillow's decoders raise many kinds
                damaged.append((row, first_line(error)))
                continue
            if (image.height, image.width) != shape:
                raise size_error(reader, row, image, shape)
            images[row] = np.asarray(image)
            counts.update(kinds)
        return len(rows), counts, damaged

    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # it guards servers against files from strangers
    chunks = [range(start, min(start + CHUNK, reader.count)) for start in range(0, reader.count, CHUNK)]
    with warnings.catch_warnings(), DecodingProgress(reader) as progress:
        warnings.filterwarnings("ignore", module="PIL")  # remarks on the files' metadata
        pool = ThreadPoolExecutor(available_cores(), thread_name_prefix="decode")
        try:
            for done, counts, damaged in pool.map(decode_some, chunks):
                conversions.update(counts)
                faults += damaged
                progress.add(done)
        finally:
            pool.shutdown(cancel_futures=True)
            Image.MAX_IMAGE_PIXELS = limit
    if faults:
        raise decoding_error(reader, faults)
    return Decoded(torch.from_numpy(images), torch.from_numpy(labels), dict(sorted(conversions.items())))


def shape_of_first(reader: Reader) -> tuple[int, int]:
    """Return height and width of the first image."""
    try:
        with reader.read(0)[0] as opened:
            image, _ = as_rgb(opened)
    except (MemoryError, NotAnImageError):
        raise
    except Exception as error:
        raise decoding_error(reader, [(0, first_line(error))]) from None
    return image.height, image.width


def size_error(reader: Reader, row: int, image: Image.Image, shape: tuple[int, int]) -> ConfigError:
    """Return the error for images of several sizes."""
    return ConfigError(
        f"{reader.option}: {reader.describe(row)} has {image.width} x {image.height} pixels and "
        f"{reader.describe(0)} has {shape[1]} x {shape[0]}; give data.size, to which all are resized",
        code="mismatch",
        key="data.size",
    )


def decoding_error(reader: Reader, faults: list[tuple[int, str]]) -> ConfigError:
    """Return the error for images that cannot be decoded, given as numbers and reasons."""
    row, reason = min(faults)
    several = f"{len(faults)} of {reader.count} images" if len(faults) > 1 else "an image"
    first = ", the first is" if len(faults) > 1 else ":"
    return ConfigError(
        f"{reader.option}: {several} under {reader.where} cannot be decoded{first} {reader.describe(row)} ({reason}); "
        "replace or delete what is damaged",
        code="damaged",
        key="data.root",
    )


def report_conversions(decoded: Decoded, option: str) -> None:
    """Log how many images were converted, and how."""
    if decoded.conversions:
        listed = ", ".join(f"{count} {kind}" for kind, count in decoded.conversions.items())
        log.info("%s: of %d images, converted to 8-bit RGB: %s", option, len(decoded.labels), listed)


class DecodingProgress:
    """Progress of decoding: a bar on a terminal, a line at every tenth elsewhere.

    Args:
        reader: the images.
    """

    def __init__(self, reader: Reader) -> None:
        self.option, self.total, self.done = reader.option, reader.count, 0
        self.started = time.monotonic()
        self.bar = tqdm(
            desc="decoding", total=self.total, unit=" images", unit_scale=True, dynamic_ncols=True,
            disable=not sys.stderr.isatty(), leave=False,
        )  # fmt: skip

    def add(self, images: int) -> None:
        """Count decoded images."""
        tenth = 10 * self.done // self.total
        self.done += images
        self.bar.update(images)
        is_long = time.monotonic() - self.started > LONG
        if self.bar.disable and is_long and 10 * self.done // self.total > tenth and self.done < self.total:
            log.info("%s: decoded %d%% of %d images", self.option, 100 * self.done // self.total, self.total)

    def __enter__(self) -> "DecodingProgress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.bar.close()
        if exception[0] is None:
            log.info("%s: decoded %d images in %.1f s", self.option, self.total, time.monotonic() - self.started)
