"""Hash of the source of code from elsewhere: of classes and functions that are neither kdbench's nor installed."""

import ast
import functools
import hashlib
import importlib.util
import inspect
import site
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import hydra.utils

from kdbench.config.paths import PACKAGE
from kdbench.errors import ConfigError
from kdbench.rundir.files import sha256

INSTALLED = tuple(
    Path(folder).resolve()
    for folder in {
        *(sysconfig.get_path(scheme) for scheme in ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
    }
)
"""Folders of the standard library and of installed packages; not the environment's own, in which projects may lie."""
_hashes: "WeakKeyDictionary[ModuleType, WeakKeyDictionary[Any, str | None]]" = WeakKeyDictionary()
"""By the module that names an object, which may be another than the one that defines it, then by the object."""


def source_identity(*targets: str) -> dict[str, str]:
    """Return the hash of the source of classes or functions that are neither kdbench's nor installed; else nothing.

    The hash covers the file that defines each, the module under which its target names it, and the local files that
    these import, so that an edited loss or layer is another run. It is taken once per process, module and object: the
    code that was imported is what counts.

    Raises:
        ConfigError: there is no source file to hash.
    """
    digests = [digest for target in dict.fromkeys(targets) if (digest := digest_of(target))]
    if len(digests) > 1:
        digests = [hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()]
    return {"source_sha256": digests[0]} if digests else {}


def digest_of(target: str) -> str | None:
    """Return the hash of the source of one class or function, or None. Errors: see `source_identity`."""
    found = defining_object(hydra.utils.get_object(target))
    of_module = _hashes.setdefault(sys.modules[target_module(target)], WeakKeyDictionary())
    if found not in of_module:
        of_module[found] = source_hash(found, target)
    return of_module[found]


def defining_object(found: Any) -> Any:
    """Return the function or class behind a partial, a bound method, a decorated function or a callable instance."""
    while isinstance(found, functools.partial):
        found = found.func
    found = inspect.unwrap(getattr(found, "__func__", found))
    return found if inspect.isclass(found) or inspect.isroutine(found) else type(found)


def source_hash(found: Any, target: str) -> str | None:
    """Return the hash of the local files that define an object and its name, or None if there are none."""
    roots = {target_module(target), str(found.__module__)}
    files: dict[Path, None] = {}
    digests = []
    for name in sorted(roots):
        if name == "__main__":
            raise ConfigError(
                f"{target} is not defined in a file, so its source cannot be recorded; put it into a module",
                code="no_source",
                key="_target_",
            )
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and is_local(Path(file)):
            digests += [sha256(path) for path in local_files(Path(file), name, files)]
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest() if digests else None


def target_module(target: str) -> str:
    """Return the module in which an import path names an object."""
    parts = target.split(".")
    return next((name for n in range(len(parts) - 1, 0, -1) if (name := ".".join(parts[:n])) in sys.modules), parts[0])


def is_local(file: Path) -> bool:
    """Return whether a source file is neither part of kdbench nor of an installed package."""
    installed = (*INSTALLED, PACKAGE.resolve())
    for path in (file.absolute(), file.resolve()):  # some installers link packages from a cache
        if {"site-packages", "dist-packages"} & set(path.parts) or any(map(path.is_relative_to, installed)):
            return False
    return file.suffix == ".py"


def local_files(file: Path, module: str, found: dict[Path, None]) -> Iterator[Path]:
    """Yield a local source file and every local one that it imports, directly or not."""
    if file in found:
        return
    found[file] = None
    yield file
    for name in imported_modules(file, module):
        origin = local_origin(name)
        if origin:
            yield from local_files(origin, name, found)


def local_origin(module: str) -> Path | None:
    """Return the local source file of a module, or None. Packages that are not local are not imported."""
    try:
        for end in [n for n, character in enumerate(module) if character == "."]:
            package = importlib.util.find_spec(module[:end])  # imports the packages above it
            if package is None or (package.origin and not is_local(Path(package.origin))):
                return None
        spec = importlib.util.find_spec(module)
    except Exception:  # a package above it fails to import, or there is none
        return None
    return Path(spec.origin) if spec and spec.origin and is_local(Path(spec.origin)) else None


def imported_modules(file: Path, module: str) -> Iterator[str]:
    """Yield the absolute names that the import statements of a file may mean, modules or not."""
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError:  # a file for other Pythons, imported under a condition
        return
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".") if package else []
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            source = ".".join(part for part in (base, node.module) if part)
            if source:
                yield source
            yield from (".".join(part for part in (source, alias.name) if part) for alias in node.names)
