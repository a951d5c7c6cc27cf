"""Files and objects that arguments of networks, methods and data sets name: a builder may read them."""

import functools
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdbench.config.paths import is_file, is_folder, is_path
from kdbench.errors import ConfigError
from kdbench.rundir.files import hash_of, sha256
from kdbench.rundir.source import local_files, local_origin


def targets_in(arguments: Any) -> list[str]:
    """Return the import paths of the objects that are built from arguments, at any depth."""
    if isinstance(arguments, Mapping):
        own = [str(arguments["_target_"])] if "_target_" in arguments else []
        return own + [target for value in arguments.values() for target in targets_in(value)]
    return [target for value in arguments for target in targets_in(value)] if isinstance(arguments, list) else []


def files_identity(arguments: Any) -> dict[str, Any]:
    """Return the hash of every file, and of the files of every folder, that arguments name: a builder may read them.

    A text is a path if it has a suffix or a slash and something is there. A dotted text is the name of an object, whose
    local source is hashed.

    Raises:
        ConfigError: a folder has too many files to be read.
    """
    found = {}
    for text in texts_in(arguments):
        path = Path(text).expanduser()
        if not (is_path(text) and (path.suffix or "/" in text)):
            continue
        if is_file(path):
            found[text] = sha256_of_file(path)
        elif is_folder(path):
            found[text] = sha256_of_folder(path, text)
        elif re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", text):
            module = text.rpartition(".")[0]
            if origin := local_origin(module):
                files = local_files(origin, module, {})
                found[text] = hashlib.sha256("".join(sorted(map(sha256_of_file, files))).encode()).hexdigest()
    return {"files_sha256": found} if found else {}


MAX_FILES = 1000
"""Largest number of files in a folder that an argument names."""


def sha256_of_folder(folder: Path, text: str) -> str:
    """Return the hash of the files in a folder, without hidden ones and what Python compiles.

    Raises:
        ConfigError: there are more than `MAX_FILES`, or one cannot be read.
    """
    files: list[Path] = []
    for place, below, names in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith(".") and name != "__pycache__")
        files += [Path(place, name) for name in sorted(names) if not name.startswith(".") and not name.endswith(".pyc")]
        if len(files) > MAX_FILES:
            raise ConfigError(
                f"an argument of a network, method or data set names the folder {text}, which has more than "
                f"{MAX_FILES} files; what it reads is part of the run key, so name a smaller folder or a file, or "
                "declare the key of a data set with identity=False",
                code="out_of_range",
                key=text,
            )
    try:
        return hash_of({str(file.relative_to(folder)): sha256_of_file(file) for file in files})
    except OSError as error:
        raise ConfigError(f"a file in {text} cannot be read: {error}", code="not_readable", key=text) from None


def texts_in(value: Any) -> list[str]:
    """Return every text among arguments, at any depth; import paths are none."""
    if isinstance(value, Mapping):
        return [text for key, inner in value.items() if key != "_target_" for text in texts_in(inner)]
    if isinstance(value, list):
        return [text for inner in value for text in texts_in(inner)]
    return [value] if isinstance(value, str) else []


def sha256_of_file(path: Path) -> str:
    """Return the hash of a file; it is kept until the file changes."""
    state = path.stat()
    return _sha256(path.absolute(), state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, changed: int, size: int) -> str:
    return sha256(path)
