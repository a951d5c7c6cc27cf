"""Cache files of decoded images: written once, checked when read."""

import hashlib
import json
import logging
import math
import os
import zlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from filelock import FileLock, Timeout

from kdbench.data.access import may_write
from kdbench.data.decode import Decoded, Reader, decode
from kdbench.errors import first_line

log = logging.getLogger(__name__)

CACHE_VERSION = 1


def fingerprint(files: Iterable[tuple[str, int, int, int]], **settings: Any) -> str:
    """Return 16 hexadecimal digits for files, given as (path, bytes, mtime and ctime in nanoseconds), and settings."""
    digest = hashlib.sha256(repr((CACHE_VERSION, PIL.__version__, sorted(settings.items()))).encode())
    for file in files:
        digest.update(repr(file).encode())
    return digest.hexdigest()[:16]


def decode_cached(file: Path, reader: Reader, size: int | None, copies: int = 1) -> Decoded:
    """Return the images from a cache file, or decode them and write it.

    One process decodes while others wait. A damaged file is written anew; where none can be written, the images are
    decoded every time, and a line says so.

    Args:
        file: the cache file, whose name stands for all that the images depend on.
        reader: the images.
        size: see `decode`.
        copies: see `decode`.

    Raises:
        ConfigError: see `decode`.
    """
    if (cached := read_cache(file)) is not None:
        return cached
    if not may_write():
        return decode(reader, size, copies)
    lock = FileLock(file.with_name(f".{file.name}.lock"))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("%s: waiting for another process that decodes the same images", reader.option)
            lock.acquire()
    except (OSError, NotImplementedError) as error:  # the second: a file system without locks
        log.warning(
            "%s: the decoded images are not kept, since data.cache, %s, cannot be written to (%s)",
            reader.option, file.parent, getattr(error, "strerror", None) or error,
        )  # fmt: skip
        return decode(reader, size, copies)
    try:
        if (cached := read_cache(file)) is not None:  # of the process that held the lock
            return cached
        decoded = decode(reader, size, copies)
        try:
            write_cache(file, decoded)
            log.info("%s: the decoded images are kept in %s", reader.option, file)
        except OSError as error:
            log.warning(
                "%s: the decoded images are not kept, since %s cannot be written (%s)",
                reader.option, file, error.strerror or error,
            )  # fmt: skip
        return decoded
    finally:
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


def write_cache(file: Path, decoded: Decoded) -> None:
    """Write a cache file atomically: a line of JSON, then the images' bytes. Its lock is held."""
    header = {
        "shape": list(decoded.images.shape),
        "crc32": zlib.crc32(decoded.images.numpy().data),
        "labels": decoded.labels.tolist(),
        "conversions": dict(decoded.conversions),
    }
    text = json.dumps(header).encode()
    temporary = file.with_name(f".{file.name}.part")  # of an interrupted process too: it is written anew
    try:
        with temporary.open("wb") as opened:
            opened.write(f"{zlib.crc32(text):08x} ".encode() + text + b"\n")
            opened.write(decoded.images.numpy().data)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(file)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def read_cache(file: Path) -> Decoded | None:
    """Return the content of a cache file, mapped into memory, or None if there is none or it is damaged."""
    try:
        with file.open("rb") as opened:
            checksum, _, text = opened.readline().partition(b" ")
            text = text.rstrip(b"\n")
            start = opened.tell()
            length = file.stat().st_size - start
        if int(checksum, 16) != zlib.crc32(text):
            raise ValueError("the checksum of its first line is wrong")
        header = json.loads(text)
        shape = tuple(header["shape"])
        if length != math.prod(shape):
            raise ValueError(f"it has {length} bytes of images instead of {math.prod(shape)}")
        images = np.memmap(file, np.uint8, "c", start, shape)
        if zlib.crc32(images.data) != header["crc32"]:
            raise ValueError("the checksum of its images is wrong")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is damaged and is written anew: %s", file, first_line(error))
        return None
    return Decoded(torch.from_numpy(np.asarray(images)), torch.tensor(header["labels"]), header["conversions"])
