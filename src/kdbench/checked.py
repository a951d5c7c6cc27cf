"""A file that tells damage: one line of facts about it, then its content, each with its SHA-256."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

MAGIC = "kdbench-1"


class DamagedError(Exception):
    """The file is not as it was written."""


def write(path: Path, facts: Mapping[str, Any], content: bytes) -> None:
    """Write the file, and read it back.

    Args:
        path: Not yet there, or not looked at by anybody.
        facts: JSON values that can be read without the content (`read_facts`).
        content: Anything.

    Raises:
        OSError: it could not be written, or is not there as it was written.
    """
    line = json.dumps({"facts": facts, "sha256": hashlib.sha256(content).hexdigest()}, sort_keys=True)
    with path.open("wb") as file:
        file.write(f"{MAGIC} {hashlib.sha256(line.encode()).hexdigest()} {line}\n".encode())
        file.write(content)
    try:
        read(path)
    except DamagedError as error:
        raise OSError(f"{path.name} reads back otherwise than it was written: {error}") from None


def read(path: Path) -> tuple[dict[str, Any], bytes]:
    """Facts and content.

    Raises:
        DamagedError: it is not as it was written.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        header = first_line_of(file)
        content = file.read()
    if hashlib.sha256(content).hexdigest() != header["sha256"]:
        raise DamagedError("its content is not what its checksum says")
    return header["facts"], content


def read_facts(path: Path) -> dict[str, Any]:
    """The facts alone; the content, which may be large, is neither read nor checked.

    Raises:
        DamagedError: the line is not as it was written.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        return first_line_of(file)["facts"]


def first_line_of(file: BinaryIO) -> dict[str, Any]:
    magic, _, rest = file.readline(1 << 16).rstrip(b"\n").partition(b" ")
    checksum, _, line = rest.partition(b" ")
    if magic != MAGIC.encode() or hashlib.sha256(line).hexdigest().encode() != checksum:
        raise DamagedError("its first line is not what its checksum says")
    return json.loads(line)
