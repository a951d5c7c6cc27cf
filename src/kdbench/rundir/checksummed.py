"""Checksummed files: one line of metadata, then the content, each with its SHA-256, so that damage is noticed."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

MAGIC = "kdbench-1"


class DamagedError(Exception):
    """A file whose bytes do not match their checksum."""


def write(path: Path, metadata: Mapping[str, Any], content: bytes) -> None:
    """Write a file, and read it back.

    Args:
        path: file to write, which no other process reads yet.
        metadata: JSON values that can be read without the content (`read_metadata`).
        content: the bytes.

    Raises:
        OSError: the file cannot be written, or does not read back as it was written.
    """
    line = json.dumps({"metadata": metadata, "sha256": hashlib.sha256(content).hexdigest()}, sort_keys=True)
    with path.open("wb") as file:
        file.write(f"{MAGIC} {hashlib.sha256(line.encode()).hexdigest()} {line}\n".encode())
        file.write(content)
    try:
        read(path)
    except DamagedError as error:
        raise OSError(f"{path.name} does not read back as it was written: {error}") from None


def read(path: Path) -> tuple[dict[str, Any], bytes]:
    """Return metadata and content.

    Raises:
        DamagedError: a checksum does not match.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        header = read_header(file)
        content = file.read()
    if hashlib.sha256(content).hexdigest() != header["sha256"]:
        raise DamagedError("its content does not match its checksum")
    return header["metadata"], content


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata alone; the content, which may be large, is neither read nor checked.

    Raises:
        DamagedError: the checksum of the first line does not match.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return read_header(file)["metadata"]


def read_header(file: BinaryIO) -> dict[str, Any]:
    """Return the first line of an opened file, checked."""
    magic, _, rest = file.readline(1 << 16).rstrip(b"\n").partition(b" ")
    checksum, _, line = rest.partition(b" ")
    if magic != MAGIC.encode() or hashlib.sha256(line).hexdigest().encode() != checksum:
        raise DamagedError("its first line does not match its checksum")
    header = json.loads(line)
    if not isinstance(header.get("metadata"), dict):
        raise DamagedError("its first line holds no metadata: it was written by an older version")
    return header
