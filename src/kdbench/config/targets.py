"""Classes and functions that a config names by their import paths: import, and what they lack."""

import dataclasses
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any

import hydra.utils

from kdbench.config.sections import DataKeys
from kdbench.errors import ConfigError, first_line, nearest


def check_name(name: Any, path: str) -> None:
    """Check that a name can be part of a run directory's name."""
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}", name):
        raise ConfigError(
            f"{path}.name is {name!r}; it may contain letters, digits, dots, dashes and underscores, at most 64",
            code="out_of_range",
            key=f"{path}.name",
        )


def import_hint(target: str) -> str:
    """Return a remedy if the module that an import path begins with is not found, else an empty text."""
    module = target.partition(".")[0]
    if not module.isidentifier() or module in sys.modules or importlib.util.find_spec(module):
        return ""
    if module == "timm":
        return "; install it: pip install 'kdbench[timm]'"
    return f"; put the module {module} beside the folder of --config-dir, or its folder on PYTHONPATH"


def missing_class(target: str) -> str:
    """Return that a module, which is imported, has no class of the name in an import path; else an empty text."""
    path, _, name = target.rpartition(".")
    module = sys.modules.get(path)
    if module is None or hasattr(module, name):
        return ""
    classes = [key for key, value in vars(module).items() if inspect.isclass(value) and value.__module__ == path]
    return f"{path} has no class {name}; {nearest(name, classes)}"


def import_class(target: Any, group: str, base: str, fault_of: Callable[[Any], str], code: str) -> Any:
    """Return the class that a section names.

    Args:
        target: import path.
        group: the section: method or data.
        base: class that it must extend.
        fault_of: returns what a class lacks, or an empty text.
        code: code of the error for a class that lacks something.

    Raises:
        ConfigError: there is no such class, or it lacks something.
    """
    key = f"{group}._target_"
    if target is None:
        raise ConfigError(
            f"{key} is missing; the file of {group} must name a subclass of {base}, such as _target_: my_code.MyClass",
            code="missing_value",
            key=key,
        )
    try:
        cls: Any = hydra.utils.get_class(str(target))
    except Exception as error:
        why = missing_class(str(target)) or f"{first_line(error)}{import_hint(str(target))}"
        raise ConfigError(
            f"{key} is {target!r}, which cannot be imported: {why}", code="not_importable", key=key
        ) from None
    if fault := fault_of(cls):
        raise ConfigError(f"{key} is {target!r}; {fault}", code=code, key=key)
    return cls


def fault_of_base(cls: Any, base: str, public: str) -> str:
    """Return what a class lacks to be a complete subclass of another, or an empty text.

    Args:
        cls: the class.
        base: import path of the other, which is not imported: that imports torch.
        public: name of the other for users.
    """
    if base not in [f"{one.__module__}.{one.__qualname__}" for one in inspect.getmro(cls)]:
        return f"it must be a subclass of {public}"
    if inspect.isabstract(cls):
        return f"the class must define {' and '.join(sorted(cls.__abstractmethods__))}"
    return ""


def fault_of_data(cls: Any) -> str:
    """Return what a class lacks to be a data set, or an empty text."""
    if fault := fault_of_base(cls, "kdbench.data.base.ImageData", "kdbench.data.ImageData"):
        return fault
    if not (isinstance(cls.Config, type) and dataclasses.is_dataclass(cls.Config) and issubclass(cls.Config, DataKeys)):
        return "its Config must be a dataclass that extends ImageData.Config"
    taken = {"name", "content", "_target_"} & {f.name for f in dataclasses.fields(cls.Config)}
    if taken:
        return f"its Config must have no field {min(taken)}, which is a key of every data set"
    return ""


def fault_of_compression(cls: Any) -> str:
    """Return what a class lacks to be a compression, or an empty text."""
    if fault := fault_of_base(cls, "kdbench.compress.base.Compression", "kdbench.compress.Compression"):
        return fault
    if not dataclasses.is_dataclass(getattr(cls, "Config", None)):
        return "the class must have a dataclass Config with its keys"
    return ""


def fault_of_method(cls: Any) -> str:
    """Return what a class lacks to be a method, or an empty text."""
    if fault := fault_of_base(cls, "kdbench.methods.base.Method", "kdbench.methods.Method"):
        return fault
    if not dataclasses.is_dataclass(getattr(cls, "Config", None)):
        return "the class must have a dataclass Config with the method's keys"
    if not isinstance(getattr(cls, "needs_teacher", None), bool):
        return "the class must declare needs_teacher, True or False"
    return ""


def fault_of_tracker(cls: Any) -> str:
    """Return what a class lacks to be a tracker, or an empty text."""
    if fault := fault_of_base(cls, "kdbench.trackers.base.Tracker", "kdbench.trackers.Tracker"):
        return fault
    own = getattr(cls, "Config", None)
    if not dataclasses.is_dataclass(own) or "group" not in {f.name for f in dataclasses.fields(own)}:
        return "its Config must be a dataclass that extends Tracker.Config"
    return ""


def has_key(target: str, name: str) -> bool:
    """Return whether the class of a method or data set has a key of this name in its `Config`."""
    try:
        cls: Any = hydra.utils.get_class(target)
        return name in {f.name for f in dataclasses.fields(cls.Config)}
    except Exception:  # `import_class` reports it
        return False


def takes_argument(target: str, name: str) -> bool:
    """Return whether a network's builder can be called with an argument of this name by a config."""
    try:
        parameters = inspect.signature(hydra.utils.get_method(target)).parameters.values()
    except Exception:  # `check_arguments` reports it
        return False
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    return name != "num_classes" and (takes_any or name in {p.name for p in parameters})


def check_module_names(modules: Iterable[str]) -> None:
    """Check that the values of --trust can be names of modules.

    Raises:
        ConfigError: one cannot.
    """
    for module in modules:
        if not re.fullmatch(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*", module):
            raise ConfigError(
                f"--trust is {module!r}; it must be the name of a module, such as torchvision.models",
                code="out_of_range",
                key="--trust",
            )
