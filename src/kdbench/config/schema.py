"""Typed sections of a config: a dataclass whose fields declare their range, and one function that checks them.

Methods declare their keys with it too, so the keys of a new method are checked without an edit anywhere else. A field
also declares how it counts in a run's identity (`kdbench.rundir.identity`): `neutral` is the value at which it is left
out, so that a new setting changes no existing key; `identity=False` leaves it out at every value.
"""

import dataclasses
import functools
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, cast, get_args, get_origin

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from kdbench.errors import ConfigError, first_line, nearest


def setting(
    allowed: Callable[[Any], bool] | None = None,
    description: str = "",
    neutral: Any = MISSING,
    identity: bool = True,
    absent: Any = MISSING,
) -> Any:
    """Declare a field without default (defaults live in YAML), or with a value for files that lack it.

    Args:
        allowed: whether a value is in range; None allows all values of the field's type.
        description: the range in words, after "it must be".
        neutral: value that changes nothing, left out of a run's identity.
        identity: whether the field can change a run's numbers at all.
        absent: value in files without the field: recorded by earlier versions, or written by users.
    """
    metadata = {"allowed": allowed, "description": description, "neutral": neutral, "identity": identity}
    return field(default=absent, metadata=metadata)


def one_of(*options: str, **kwargs: Any) -> Any:
    """Declare a field whose value is one of some words. Further arguments: see `setting`."""
    words = ", ".join(options[:-1]) + f" or {options[-1]}"
    return setting(lambda value: value in options, words, **kwargs)


def whole(low: int, **kwargs: Any) -> Any:
    """Declare an integer from `low` to the largest that a tensor holds. Further arguments: see `setting`."""
    return setting(lambda value: low <= value < 2**63, f"a whole number of at least {low} and below 2**63", **kwargs)


def number(low: float, high: float = math.inf, *, above: bool = False, **kwargs: Any) -> Any:
    """Declare a finite number in [low, high], or in (low, high] with `above`. NaN is in no range.

    Further arguments: see `setting`.
    """

    def allowed(value: float) -> bool:
        return math.isfinite(value) and (low < value if above else low <= value) and value <= high

    bound = f"above {low:g}" if above else f"of at least {low:g}"
    text = f"a finite number {bound}" + (f" and at most {high:g}" if high < math.inf else "")
    return setting(allowed, text, **kwargs)


def optional(inner: Any, absent: Any = MISSING) -> Any:
    """Declare a field with the range of `inner`, or null; `absent` is its value in configs recorded without it."""
    allowed, description = inner.metadata["allowed"], f"{inner.metadata['description']}, or null"
    others = {name: inner.metadata[name] for name in ("neutral", "identity")}
    return setting(lambda value: value is None or allowed(value), description, **others, absent=absent)


def added(inner: Any, neutral: Any) -> Any:
    """Declare a field that configs of earlier versions lack: there, and where it is neutral, it changes nothing.

    Args:
        inner: field with the range.
        neutral: value that changes nothing; a list is given as a tuple.
    """
    value = list(neutral) if isinstance(neutral, tuple) else neutral
    metadata = dict(inner.metadata)
    if inner.metadata["identity"]:
        metadata["neutral"] = value
    if isinstance(value, list):
        return field(default_factory=lambda: list(value), metadata=metadata)
    return field(default=value, metadata=metadata)


def typed(schema: type[Any], values: Mapping[str, Any], path: str = "") -> Any:
    """Return `values` as an instance of the dataclass `schema`.

    Args:
        schema: dataclass with fields of this module.
        values: keys and values of the section.
        path: where the section stands in the config, for errors.

    Raises:
        ConfigError: an unknown or missing key, a wrong type, or a value out of its field's range.
    """
    prefix = f"{path}." if path else ""
    check_kinds(schema, values, prefix)
    try:
        section = OmegaConf.to_object(OmegaConf.merge(structure_of(cast(Any, schema)), dict(values)))
    except MissingMandatoryValue as error:
        key = f"{prefix}{error.full_key}"
        raise ConfigError(
            f"{key} has no value; give one, for example on the command line", code="missing_value", key=key
        ) from None
    except ConfigKeyError as error:
        valid = [f.name for f in dataclasses.fields(error.object_type or schema)]
        key = f"{prefix}{error.full_key}"
        raise ConfigError(
            f"{key} is not a known key; {nearest(str(error.key), valid)}", code="unknown_key", key=key
        ) from None
    except OmegaConfBaseException as error:
        name = str(error.full_key).partition("[")[0]  # the error may be that of an item of a list
        key, value = f"{prefix}{name}", OmegaConf.select(OmegaConf.create(dict(values)), name)
        raise ConfigError(
            f"{key} is {as_yaml(value)}; {allowed_at(schema, name, error)}", code="wrong_type", key=key
        ) from None
    check_ranges(section, prefix)
    return section


@functools.cache
def structure_of(schema: type[Any]) -> DictConfig:
    """Return the structured config of a dataclass, which takes a third of a check: made once, and only to be copied."""
    return cast(DictConfig, OmegaConf.structured(schema))


def check_kinds(schema: type[Any], values: Mapping[str, Any], prefix: str) -> None:
    """Check what OmegaConf is lenient about or reports without a key: sections, lists, and switches."""
    for f in dataclasses.fields(schema):
        if f.name in values:
            words = f.metadata.get("description") or KINDS.get(f.type, "")
            check_kind(f.type, values[f.name], f"{prefix}{f.name}", words)


def check_kind(kind: Any, value: Any, path: str, words: str = "") -> None:
    """Check the kind of a value: see `check_kinds`. `words` says what a list or section must be."""
    if isinstance(kind, types.UnionType):
        if value is None:
            return
        kind = next(member for member in get_args(kind) if member is not type(None))
    if kind is bool and not isinstance(value, bool):
        raise ConfigError(f"{path} is {as_yaml(value)}; it must be true or false", code="wrong_type", key=path)
    if get_origin(kind) is list and not isinstance(value, list | tuple):
        raise ConfigError(
            f"{path} is {as_yaml(value)}; it must be {words or 'a list such as [a,b]'}", code="wrong_type", key=path
        )
    if not (dataclasses.is_dataclass(kind) or get_origin(kind) is dict):
        return
    if not isinstance(value, Mapping):
        words = words or "a section of keys with values"
        if dataclasses.is_dataclass(kind):
            words = f"a section with the keys {', '.join(inner.name for inner in dataclasses.fields(kind))}"
        raise ConfigError(f"{path} is {as_yaml(value)}; it must be {words}", code="wrong_type", key=path)
    if dataclasses.is_dataclass(kind):
        check_kinds(cast(type[Any], kind), value, f"{path}.")
    else:
        for name, inner in value.items():
            check_kind(get_args(kind)[1], inner, f"{path}.{name}")


def as_yaml(value: Any) -> str:
    """Return a value as the user writes it: null, true and false as in YAML, everything else as in Python."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value)
    return {"None": "null", "True": "true", "False": "false"}.get(repr(value), repr(value))


def allowed_at(schema: type[Any], path: str, error: OmegaConfBaseException) -> str:
    """Return in words what a field allows, or the error's own message where the field does not declare it.

    Args:
        schema: dataclass of the section.
        path: name of the field, after those of the sections within the section.
        error: the error that the value of the field caused.
    """
    found: Any = None
    for name in path.split("."):
        found = next((f for f in dataclasses.fields(schema) if f.name == name), None)
        if found is None:
            return first_line(error)
        if isinstance(found.type, type) and dataclasses.is_dataclass(found.type):
            schema = found.type
    words = found.metadata.get("description") or KINDS.get(found.type)
    return f"it must be {words}" if words else first_line(error)


KINDS: dict[Any, str] = {
    str: "text",
    list[str]: "a list of texts such as [a,b]",
    list[int]: "a list of whole numbers such as [0,1,2]",
    list[str] | None: "a list of names such as [layer1,layer2], or null",
}
"""Types whose fields have no range, in words."""


def check_ranges(section: Any, prefix: str) -> None:
    """Check every value of a section and of the sections in it against its field's range."""
    for f in dataclasses.fields(section):
        value = getattr(section, f.name)
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{prefix}{f.name}.")
        elif isinstance(value, dict):
            for name, inner in value.items():
                if dataclasses.is_dataclass(inner):
                    check_ranges(inner, f"{prefix}{f.name}.{name}.")
        allowed = None if dataclasses.is_dataclass(value) else f.metadata.get("allowed")
        if allowed and not allowed(value):
            key = f"{prefix}{f.name}"
            raise ConfigError(
                f"{key} is {as_yaml(value)}; it must be {f.metadata['description']}", code="out_of_range", key=key
            )
