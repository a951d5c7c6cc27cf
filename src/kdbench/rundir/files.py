"""Files written so that a reader finds the old one or the new one, and never a part."""

import contextlib
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from kdbench.errors import ConfigError
from kdbench.rundir.access import WRITE, check_access


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on leaving it is flushed to disk and takes its place, on an error it goes.

    Args:
        path: file to write; its folder exists.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # unique among processes and hosts
    try:
        temporary.touch()
        mode = temporary.stat().st_mode  # as the user's umask has it; libraries create files with modes of their own
        yield temporary
        temporary.chmod(mode)
        sync_file(temporary)
        temporary.replace(path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # the first error of a failing disk is the one to report
            temporary.unlink(missing_ok=True)
        raise


def sync_file(file: Path) -> None:
    """Flush a file to the disk."""
    with file.open("rb+") as opened:
        os.fsync(opened.fileno())


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file: 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_of(content: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that stand for JSON content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def check_no_links(*files: Path) -> None:
    """Check that what is written to these files lands there.

    Raises:
        ConfigError: one is a link.
    """
    for file in files:
        if file.is_symlink():
            raise ConfigError(
                f"{file} is a link to {file.readlink()}; the files of a run must be in its own folder; remove the link",
                code="link",
                key="output_root",
            )


def check_writable(folder: Path, key: str = "output_root") -> None:
    """Check that files can be written under a folder, which need not exist yet. Writes nothing.

    Args:
        folder: the folder.
        key: config key or flag that names it.

    Raises:
        ConfigError: something on the way to it is no folder, is read-only, or is closed to this user.
    """
    try:
        existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    except PermissionError:  # a folder on the way is closed to this user
        existing = None
    except OSError as error:
        raise ConfigError(
            f"{key} is {folder}, which cannot be a folder: {error.strerror}; give another", code="not_writable", key=key
        ) from None
    if existing and not existing.is_dir():
        raise ConfigError(
            f"{key} is {folder}, but {existing} is a file; give another folder", code="not_writable", key=key
        )
    check_access(folder, WRITE, key)
