"""Distillation methods: one file each, a pure loss function and a thin class that owns what the loss requires.

Every public function and class of these files is an attribute of this package: `kdbench.methods.logit_kd`.
"""

import functools
import importlib
import pkgutil
from typing import Any

from kdbench.methods.base import LossOutput, Method, MethodContext, Progress, Requires, TeacherOutput

__all__ = ["LossOutput", "Method", "MethodContext", "Progress", "Requires", "TeacherOutput"]


def __getattr__(name: str) -> Any:
    """Return a function or class of one of the package's files, so that a new file needs no line here."""
    if not name.startswith("_"):
        if name not in public_names():
            public_names.cache_clear()  # a file may have been half imported at the first call
        if name in public_names():
            return public_names()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return these names, for completion."""
    return sorted({*globals(), *public_names()})


@functools.cache
def public_names() -> dict[str, Any]:
    """Return every public function and class of the package's files by name."""
    modules = [importlib.import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__)]
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__
    }
