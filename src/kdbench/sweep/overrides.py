"""Overrides as text, by Hydra's grammar: written so that the same values are read back, and expanded as by -m."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString, ValueType
from hydra.errors import HydraException
from hydra.types import RunMode

from kdbench.config.composition_errors import composition_error
from kdbench.config.given import check_repeated_names
from kdbench.config.options import initialize_hydra, register_models_once
from kdbench.errors import ConfigError, first_line, nearest

PLAIN = re.compile(r"[A-Za-z_/][A-Za-z0-9_./-]*")
"""Texts that need no quotes; `KEYWORDS` do."""
CHOOSING = ("student", "teacher", "method", "pair", "experiment")
"""Groups that decide which keys the sections below have."""
OPEN_SECTIONS = ("student.", "teacher.", "method.")
"""Beginnings of the keys of sections that depend on an option."""
OWN_SWEEPERS = ("kdbench", "optuna")
"""Sweepers that compose every run anew, so that a key may depend on its options."""
KEYWORDS = ("null", "true", "false", "nan", "inf")


def override(key: str, *values: Any) -> str:
    """Return the override that gives a key a value, or each of several values in a sweep.

    Args:
        key: as on the command line, for example `recipe.lr` or `student`.
        values: plain YAML values: null, switches, numbers, texts of any characters, lists and mappings of these.

    Raises:
        ConfigError: Hydra's grammar has no text for a value, such as a mapping with a key that needs quotes.
    """
    plain = [escape_interpolations(value) for value in values]
    text = f"{key}={','.join(map(written, plain))}"
    found = value_of(text) if len(plain) > 1 else [parse(text).value()]
    if repr(found) != repr(plain):  # 1, 1.0 and true are equal, but not the same value
        raise ConfigError(
            f"{key}: Hydra's override grammar cannot express {values!r}; {text} would be read as {found!r}",
            code="unreadable_override",
            key=key,
        )
    return text


def written(value: Any) -> str:
    """Return a value as Hydra's grammar writes it."""
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{written(inner)}' for key, inner in value.items())}}}"
    if isinstance(value, str):
        is_plain = PLAIN.fullmatch(value) and value.lower() not in KEYWORDS
        return value if is_plain else QuotedString(value, Quote.single).with_quotes()
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value)


def escape_interpolations(value: Any) -> Any:
    """Return a value whose texts OmegaConf takes literally, `${` included."""
    if isinstance(value, list):
        return [escape_interpolations(inner) for inner in value]
    if isinstance(value, dict):
        return {key: escape_interpolations(inner) for key, inner in value.items()}
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda match: rf"{match[1] * 2}\${{", value)
    return value


@functools.cache
def parse(text: str) -> Override:
    """Return an override as Hydra reads it; not to be changed, it is kept for the next call.

    Raises:
        ConfigError: Hydra cannot read it.
    """
    try:
        return OverridesParser.create().parse_overrides([text])[0]
    except HydraException as error:
        raise composition_error(error, [text]) from None


def key_of(text: str) -> str:
    """Return the key that an override sets, without a prefix such as + and without its package."""
    return parse(text).key_or_group


def value_of(text: str) -> Any:
    """Return the value that an override gives, as plain data; a list where it gives several values in a sweep.

    Raises:
        ConfigError: it cannot be read, or its values cannot be listed.
    """
    read = parse(text)
    return (
        [parse(f"{read.key_or_group}={value}").value() for value in values_of(read)] if is_sweep(text) else read.value()
    )


def is_sweep(text: str) -> bool:
    """Return whether an override has several values, so that only -m accepts it."""
    return parse(text).is_sweep_override()


def expand(overrides: Sequence[str], loader: ConfigLoader | None = None) -> list[tuple[str, ...]]:
    """Return the overrides of each run of `kdbench -m OVERRIDES`, in its order.

    Args:
        overrides: with any sweep of Hydra's grammar: `a,b`, `choice(...)`, `range(...)`, `glob(...)`.
        loader: where `glob` finds options; the package's own by default.

    Raises:
        ConfigError: an override cannot be read, has no value at all, or has a name twice in a mapping.
    """
    check_repeated_names(overrides)
    try:
        parsed = OverridesParser.create(loader or options_of(None)).parse_overrides(list(overrides))
        for one in parsed:
            if not values_of(one):
                raise ConfigError(why_empty(one), code="empty_sweep", key=one.key_or_group)
        (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise composition_error(error, overrides) from None
    return [tuple(job) for job in jobs]


def why_empty(read: Override) -> str:
    """Return the message for an override without a value."""
    glob = read._value
    if isinstance(glob, Glob) and read.config_loader:
        if names := read.config_loader.get_group_options(read.key_or_group):
            hint = nearest(re.sub(r"[*?]|\[.*\]", "", glob.include[0]) if glob.include else "", names)
            return f"{read.input_line} matches no option of {read.key_or_group}; {hint}"
        return f"{read.input_line}: {read.key_or_group} has no options for glob to match; list its values as a,b"
    return f"{read.input_line} has no values; a sweep needs at least one value of each key"


def values_of(read: Override) -> list[str]:
    """Return each value of an override as text.

    Raises:
        ConfigError: they cannot be listed.
    """
    if read.value_type is ValueType.INTERVAL_SWEEP:
        problem = (
            "an interval has no list of values; use range(start,stop,step) or choice(a,b), or search it with "
            "hydra/sweeper=optuna"
        )
    elif not read.is_sweep_override():
        return [read.get_value_element_as_str()]
    else:
        try:
            return list(read.sweep_string_iterator())
        except (HydraException, ValueError) as error:  # a step of 0
            problem = first_line(error)
    raise ConfigError(f"{read.input_line}: {problem}", code="unreadable_override", key=read.key_or_group)


def starts_sweep(overrides: Sequence[str], config_dir: Path | None = None) -> bool:
    """Return whether overrides without -m start a sweep, as `hydra.mode` in the file of an experiment does."""
    if not any(text.startswith(("experiment=", "hydra.mode=")) for text in overrides):
        return False
    choices = [text for text in overrides if not text.lstrip("+").startswith(OPEN_SECTIONS)]
    with initialize_hydra(config_dir) as loader:
        try:
            config = loader.load_configuration("config", choices, RunMode.MULTIRUN, validate_sweep_overrides=False)
        except Exception:  # Hydra composes again, and reports it
            return False
    return bool(config.hydra.mode == RunMode.MULTIRUN)


def defer_keys(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a sweep in such a form that keys which depend on an option are applied to its runs alone.

    Before a sweep, Hydra composes one config of every override with a single value, with the default of each group
    that the sweep varies: an option that may not have the key. A sweep of one value is left to the sweep.
    """
    try:
        read = [parse(text) for text in overrides]
    except ConfigError:
        return list(overrides)  # Hydra reports it
    keys = {one.key_or_group for one in read}
    varies = any(one.is_sweep_override() and one.key_or_group in CHOOSING for one in read)
    varies = varies or any(key == "experiment" or key.startswith("hydra.sweeper.params") for key in keys)
    sweepers = {one.value() for one in read if one.key_or_group == "hydra/sweeper"}
    if not varies or not sweepers <= set(OWN_SWEEPERS):
        return list(overrides)
    return [
        one_value_sweep(one) if one.key_or_group.startswith(OPEN_SECTIONS) else text
        for one, text in zip(read, overrides, strict=True)
    ]


def one_value_sweep(read: Override) -> str:
    """Return an override as a sweep of its only value, or as it is if it is a sweep already."""
    assert read.input_line is not None
    if read.is_sweep_override():
        return read.input_line
    text = f"{read.get_key_element()}=choice({read.get_value_element_as_str()})"
    try:
        return text if repr(value_of(text)) == repr([read.value()]) else read.input_line
    except ConfigError:  # an empty value
        return read.input_line


def options_of(config_dir: Path | None) -> ConfigLoader:
    """Return Hydra's loader for the options of kdbench and of a further folder, in which `glob` looks for names."""
    register_models_once(config_dir)
    with initialize_hydra(config_dir) as loader:
        return loader
