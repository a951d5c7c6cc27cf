"""How a section of a config is typed: a dataclass whose fields say what they may be, and one function that checks.

Methods describe their keys with it too, so a new method's keys are checked without an edit anywhere else.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from kdbench.errors import ConfigError, first_line, nearest


def ranged(allowed: Callable[[Any], bool], description: str) -> Any:
    """A field without default (defaults live in YAML) whose value must satisfy `allowed`."""
    return field(default=MISSING, metadata={"allowed": allowed, "description": description})


def one_of(*options: str) -> Any:
    return ranged(lambda value: value in options, " or ".join(options))


def whole(low: int) -> Any:
    """An integer from `low` to the largest that a tensor holds."""
    return ranged(lambda value: low <= value < 2**63, f"a whole number of at least {low}, below 2**63")


def number(low: float, high: float = math.inf, *, above: bool = False) -> Any:
    """A finite number in [low, high], or in (low, high] with `above`. NaN is in no range."""

    def allowed(value: float) -> bool:
        return math.isfinite(value) and (low < value if above else low <= value) and value <= high

    bound = f"above {low:g}" if above else f"of at least {low:g}"
    return ranged(allowed, f"a finite number {bound}" + (f" and at most {high:g}" if high < math.inf else ""))


def optional(inner: Any) -> Any:
    """The range of `inner`, or null."""
    allowed = inner.metadata["allowed"]
    return ranged(lambda value: value is None or allowed(value), f"{inner.metadata['description']}, or null")


def typed(schema: type[Any], values: Mapping[str, Any], path: str = "") -> Any:
    """`values` as an instance of the dataclass `schema`; `path` is where in the config they stand.

    Raises:
        ConfigError: an unknown or missing key, a wrong type, or a value out of its field's range.
    """
    prefix = f"{path}." if path else ""
    check_kinds(schema, values, prefix)
    try:
        section = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), dict(values)))
    except MissingMandatoryValue as error:
        raise ConfigError(f"{prefix}{error.full_key} has no value; give one, for example on the command line") from None
    except ConfigKeyError as error:
        valid = [f.name for f in dataclasses.fields(error.object_type or schema)]
        raise ConfigError(f"{prefix}{error.full_key} is no known key; {nearest(str(error.key), valid)}") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{prefix}{error.full_key} is {given(values, error)!r}; {allowed_there(error)}") from None
    check_ranges(section, prefix)
    return section


def check_kinds(schema: type[Any], values: Mapping[str, Any], prefix: str) -> None:
    """What OmegaConf is lenient about: sections are mappings, and switches are true or false."""
    for f in dataclasses.fields(schema):
        if f.name not in values:
            continue
        value, path = values[f.name], f"{prefix}{f.name}"
        if f.type is bool and not isinstance(value, bool):
            raise ConfigError(f"{path} is {value!r}; it may be true or false")
        if dataclasses.is_dataclass(f.type):
            if not isinstance(value, Mapping):
                keys = ", ".join(inner.name for inner in dataclasses.fields(f.type))
                raise ConfigError(f"{path} is {value!r}; it is a section with the keys {keys}")
            check_kinds(f.type, value, f"{path}.")  # type: ignore[arg-type]  # a class, no instance


def given(values: Mapping[str, Any], error: OmegaConfBaseException) -> Any:
    """The value that the error is about."""
    return OmegaConf.select(OmegaConf.create(dict(values)), str(error.full_key))


def allowed_there(error: OmegaConfBaseException) -> str:
    """What the field may be whose type the given value does not have."""
    for f in dataclasses.fields(error.object_type) if dataclasses.is_dataclass(error.object_type) else ():
        if f.name == error.key:
            return f"it may be {f.metadata.get('description') or KINDS.get(f.type, first_line(error))}"
    return first_line(error)


KINDS: dict[Any, str] = {str: "text", list[str] | None: "a list of names such as [layer1,layer2], or null"}
"""Types whose fields have no range, in words."""


def check_ranges(section: Any, prefix: str) -> None:
    for f in dataclasses.fields(section):
        value = getattr(section, f.name)
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{prefix}{f.name}.")
        elif isinstance(value, dict):
            for name, inner in value.items():
                if dataclasses.is_dataclass(inner):
                    check_ranges(inner, f"{prefix}{f.name}.{name}.")
        elif "allowed" in f.metadata and not f.metadata["allowed"](value):
            raise ConfigError(f"{prefix}{f.name} is {value!r}; it may be {f.metadata['description']}")
