"""kdbench: measure what knowledge distillation does, and show it.

The public API. Everything here is loaded when it is first used, so that `import kdbench` is quick.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdbench.config import compose as compose
    from kdbench.rundir.load import load_run as load_run
    from kdbench.rundir.load import load_runs as load_runs
    from kdbench.rundir.student import load_student as load_student
    from kdbench.runner.api import run as run

__version__ = "0.1.0"

__all__ = ["__version__", "compose", "load_run", "load_runs", "load_student", "run"]

_MODULES = {
    "compose": "kdbench.config",
    "run": "kdbench.runner.api",
    "load_run": "kdbench.rundir.load",
    "load_runs": "kdbench.rundir.load",
    "load_student": "kdbench.rundir.student",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'kdbench' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
