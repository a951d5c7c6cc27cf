"""Distillation methods: one file each, a pure loss function and a thin class that owns what the loss requires.

Every public function and class of these files is an attribute of this package: `kdbench.methods.logit_kd`.
"""

import importlib
import pkgutil
from typing import Any

from kdbench.methods.base import LossOutput, Method, MethodContext, Progress, Requires, TeacherOutput

__all__ = ["LossOutput", "Method", "MethodContext", "Progress", "Requires", "TeacherOutput"]


def __getattr__(name: str) -> Any:
    """Return a function or class of one of the package's files, so that a new file needs no line here."""
    if not name.startswith("_"):
        for file in pkgutil.iter_modules(__path__):
            module = importlib.import_module(f"{__name__}.{file.name}")
            found = vars(module).get(name)
            if found is not None and getattr(found, "__module__", "") == module.__name__:
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
