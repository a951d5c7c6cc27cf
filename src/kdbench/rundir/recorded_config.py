"""Configs read back from run directories, as data that may come from anywhere.

The class paths in them are resolved inside `kdbench.models`, `kdbench.methods` and `kdbench.data`, and in modules that
the user names.
No other module is imported, since importing runs its code, and no interpolation is resolved.
"""

import dataclasses
import importlib
import inspect
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from omegaconf import OmegaConf

from kdbench.config import DataConfig, MethodConfig, RunConfig, parse
from kdbench.config.parse import parse_data
from kdbench.config.schema import typed
from kdbench.config.targets import fault_of_data, fault_of_method
from kdbench.errors import ConfigError, first_line
from kdbench.rundir.identity import BASELINE, GivenWeights
from kdbench.rundir.summary import GIVEN

MODELS, METHODS, DATA, COMPRESS = "kdbench.models", "kdbench.methods", "kdbench.data", "kdbench.compress"
UNNAMED = {"cifar10": "kdbench.data.cifar.CIFAR10", "shapes": "kdbench.data.embedded.Shapes"}
"""The data sets of configs that were recorded when data sets had no `_target_`, by name."""
COMPRESSED = "kdbench.models.compressed."
"""Beginning of the builders whose argument `base` is another network."""
GIVEN_WEIGHTS = f"{GivenWeights.__module__}.{GivenWeights.__qualname__}"


def read_config(file: Path, trusted: Sequence[str] = ()) -> RunConfig:
    """Return the run that a config.yaml describes.

    Args:
        file: written by `RunDirectory.write_config`, or by anyone else.
        trusted: modules whose own classes and functions may be named in it, beside those of kdbench.

    Raises:
        ConfigError: it cannot be read, is no config of a run, or names code that is not trusted.
    """
    tree = read_tree(file)
    for key in ("trust", "tracker"):  # what may be imported is said by the command, not by the file
        tree.pop(key, None)
    for group in ("student", "teacher"):
        check_model(tree.get(group), group, trusted)
    check_class(tree.get("compress"), "compress", (COMPRESS, *trusted))
    if "data" in tree:
        tree["data"] = checked_data(tree["data"], trusted)
    method = tree.get("method")
    if not isinstance(method, dict) or method.get("_target_") != GIVEN_WEIGHTS:
        check_method(method, trusted)
        return parse(tree)
    # How given weights were trained is unknown: in the place of the method stands a record of the file.
    params = typed(
        GivenWeights, {key: value for key, value in method.items() if key not in ("name", "_target_")}, "method"
    )
    run = parse(tree | {"method": BASELINE})
    return dataclasses.replace(run, method=MethodConfig(GIVEN, GivenWeights, params))


def read_data_config(file: Path, trusted: Sequence[str] = ()) -> DataConfig:
    """Return the data set that a config.yaml describes, if its class is one of kdbench's own or is trusted.

    Raises:
        ConfigError: the file cannot be read, describes no data set, or names a class that is not trusted.
    """
    node = checked_data(read_tree(file).get("data"), trusted)
    if not isinstance(node, dict):
        raise ConfigError(f"{file} does not describe a data set", code="damaged", key="data")
    return parse_data(node, recorded=True)


def read_tree(file: Path) -> dict[str, Any]:
    """Return the content of a config.yaml as plain data, in which nothing is resolved.

    Raises:
        ConfigError: it cannot be read, is no mapping, or has interpolations.
    """
    try:
        tree: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except Exception as error:  # damaged bytes raise many types
        raise ConfigError(f"{file} cannot be read: {first_line(error)}", code="damaged", key="config.yaml") from None
    if not isinstance(tree, dict):
        raise ConfigError(
            f"{file} does not contain a config: it must be a mapping with student, method, data, ...",
            code="damaged",
            key="config.yaml",
        )
    for text in texts(tree):
        if "${" in text:
            raise ConfigError(
                f"{file} contains {text!r}; a recorded config must not contain interpolations",
                code="untrusted",
                key="config.yaml",
            )
    return tree


def texts(node: Any) -> Iterator[str]:
    """Yield every text in plain data, keys included."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for item in (*node, *node.values()) if isinstance(node, dict) else node:
            yield from texts(item)


def check_model(node: Any, group: str, trusted: Sequence[str]) -> None:
    """Check that what builds a network is trusted; of kdbench's own functions, only those that take `num_classes`."""
    if not isinstance(node, dict) or "_target_" not in node:
        return  # no teacher, or nothing that can be called
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    if str(node["_target_"]).startswith(COMPRESSED) and "base" in arguments:
        check_base(arguments.pop("base"), f"{group}.base", trusted)
    for inner, target in targets_within(arguments, group):
        resolve(target, inner, trusted)
    if node.get("weights") is not None and not isinstance(node.get("weights_hash"), str):
        raise ConfigError(
            f"{group}.weights is recorded without the hash of its file", code="damaged", key=f"{group}.weights"
        )
    path = f"{group}._target_"
    found = resolve(node["_target_"], path, (MODELS, *trusted))
    if lies_in(found.__module__, (MODELS,)) and "num_classes" not in inspect.signature(found).parameters:
        raise ConfigError(
            f"{path} is {node['_target_']!r}, which does not take num_classes, so it is not an architecture",
            code="untrusted",
            key=path,
        )


def check_base(node: Any, path: str, trusted: Sequence[str]) -> None:
    """Check that the argument `base` of a compressed network describes a network that is trusted."""
    if not isinstance(node, dict) or node.get("_partial_") is not True or not isinstance(node.get("_target_"), str):
        raise ConfigError(
            f"{path} does not describe a network: it must be a section with _target_ and _partial_: true",
            code="untrusted",
            key=path,
        )
    check_model({key: value for key, value in node.items() if key != "_partial_"}, path, trusted)


def targets_within(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the place and the import path of each object that is built from arguments, at any depth."""
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if key == "_target_":
                yield f"{path}._target_", value
            else:
                yield from targets_within(value, f"{path}.{key}")


def checked_data(node: Any, trusted: Sequence[str]) -> Any:
    """Return the section of the data, with its class where an earlier version recorded none; check that it is trusted.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(node, dict):
        return node
    if "_target_" not in node and node.get("name") in UNNAMED:
        unused = ("root", "download") if node["name"] == "shapes" else ()
        node = {key: value for key, value in node.items() if key not in unused}
        return node | {"_target_": UNNAMED[node["name"]]}
    if "_target_" in node:
        found = resolve(node["_target_"], "data._target_", (DATA, *trusted))
        fault = fault_of_data(found) if inspect.isclass(found) else "it must be a subclass of kdbench.data.ImageData"
        if fault:
            raise ConfigError(f"data._target_ is {node['_target_']!r}; {fault}", code="no_data", key="data._target_")
    return node


def check_class(node: Any, group: str, trusted: Sequence[str]) -> None:
    """Check that the class that a section names is trusted; the section may be absent."""
    if isinstance(node, dict) and "_target_" in node:
        resolve(node["_target_"], f"{group}._target_", trusted)


def check_method(node: Any, trusted: Sequence[str]) -> None:
    """Check that a method is trusted and is one."""
    if not isinstance(node, dict) or "_target_" not in node:
        return
    found = resolve(node["_target_"], "method._target_", (METHODS, *trusted))
    fault = fault_of_method(found) if inspect.isclass(found) else "it must be a subclass of kdbench.methods.Method"
    if fault:
        raise ConfigError(
            f"method._target_ is {node['_target_']!r}; {fault}",
            code="no_method",
            key="method._target_",
        )


def resolve(target: Any, path: str, trusted: Sequence[str]) -> Any:
    """Return the class or function that `target` names, if it is defined in a trusted module or below one.

    Args:
        target: import path, not trusted.
        path: where in the config it stands.
        trusted: modules; these and what lies below them may be imported, and no other.

    Raises:
        ConfigError: it is defined elsewhere, or not there.
    """
    where = " or ".join(trusted) or "a trusted module"
    refusal = ConfigError(
        f"{path} is {target!r}, which is not defined in {where}; it was not imported; "
        "if you trust its code, add --trust MODULE (with kdbench trust=[MODULE], in Python trusted=[MODULE])",
        code="untrusted",
        key=path,
    )
    names = target.split(".") if isinstance(target, str) else []
    module = next((name for name in trusted if names[: name.count(".") + 1] == name.split(".")), None)
    if module is None or any(name.startswith("_") for name in names):
        raise refusal
    try:
        found = importlib.import_module(module)
        for name in names[module.count(".") + 1 :]:
            if isinstance(found, ModuleType) and not hasattr(found, name):
                importlib.import_module(f"{found.__name__}.{name}")
            found = getattr(found, name)
            # A module holds others by the names under which it imports them: kdbench.models.resnet.torchvision.
            if isinstance(found, ModuleType) and not lies_in(found.__name__, trusted):
                raise refusal
    except ConfigError:
        raise
    except Exception as error:  # an import can raise anything
        raise ConfigError(
            f"{path} is {target!r}, which cannot be imported: {first_line(error)}", code="not_importable", key=path
        ) from None
    if not (inspect.isclass(found) or inspect.isfunction(found)) or not lies_in(str(found.__module__), trusted):
        raise refusal
    return found


def lies_in(module: str, trusted: Sequence[str]) -> bool:
    """Return whether a module is one of the trusted ones or lies below one."""
    return any(module == name or module.startswith(f"{name}.") for name in trusted)
