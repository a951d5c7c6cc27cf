"""Errors of Hydra and OmegaConf as errors for the user: in one line, which says what to do."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra import compose as hydra_compose
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdbench.config.engines import misplaced, option_of_hydra, several_of_hydra, unknown_key_of_hydra
from kdbench.config.options import groups, initialize_hydra, options
from kdbench.config.parse import option_as_key
from kdbench.config.paths import CONF_DIR
from kdbench.config.targets import has_key, takes_argument
from kdbench.errors import ConfigError, first_line, nearest

SET_BY_SEARCHES = {"trial"}
"""Keys of a run that are no settings of a command line."""


def composition_error(error: Exception, overrides: Sequence[str], config_dir: Path | None = None) -> ConfigError:
    """Return an error of Hydra or OmegaConf as an error for the user.

    Args:
        error: raised while Hydra composed.
        overrides: the command line's, to find the one that is wrong.
        config_dir: folder of further options.
    """
    if isinstance(error, ConfigError):
        return error
    if isinstance(error, OverrideParseException):
        written = str(error.override)
        return ConfigError(
            f"{written!r} cannot be read; {remedy_for(written)}"
            if "=" in written
            else f"{written!r} has no =; write key=value",
            code="unreadable_override",
            key=written.partition("=")[0].lstrip("+~"),
        )
    for override in overrides:
        if re.match(r"[+~]*[=@]", override):  # Hydra reads an empty key as a number or as a group, and fails later
            return ConfigError(f"{override!r} has no key; write key=value", code="unreadable_override", key="")
    for override in overrides:
        if fault := fault_of_choice(override, config_dir):
            return fault
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        file = error.missing_cfg_file
        group, _, option = file.rpartition("/") if file.startswith("hydra/") else file.partition("/")
        if option:
            folders = [CONF_DIR, *([config_dir] if config_dir else [])] if group in groups() else []
            valid = {*(error.options or []), *(name for folder in folders for name in options(group, folder))}
            return ConfigError(
                f"{group}={option} is not an option; {nearest(option, valid)}", code="unknown_option", key=group
            )
        return ConfigError(f"there is no config named {group}", code="unknown_option", key="--config-name")
    unmatched = re.match(r"Could not (?:override|delete|append to config)[^']*'([^']+)'", str(error))
    if unmatched:
        return unknown_key(unmatched[1].partition("@")[0], overrides, config_dir)
    in_file = re.match(r"In '([^']+)': Could not override '([^'@]+)(@[^']+)?'", str(error))
    if in_file:
        file, group, package = in_file.groups()
        remedy = "begin the file with the line '# @package _global_'" if package else nearest(group, groups())
        return ConfigError(
            f"{file}.yaml: there is no group {group}{' below its own' if package else ''} to override; {remedy}",
            code="invalid_option_file",
            key=file,
        )
    if str(error).startswith("Input config does not have a `_target_`"):
        return option_of_hydra("launcher")
    refused = r"Error in call to target .*Launcher.* unexpected keyword argument '(\w+)'"
    not_accepted = re.match(refused, str(error), re.DOTALL)
    if not_accepted:
        return unknown_key_of_hydra(f"hydra.launcher.{not_accepted[1]}", overrides, config_dir)
    of_hydra = re.match(r"Sweeping over Hydra's configuration[^']*'([^=]+)=(.*)'$", str(error), re.DOTALL)
    if of_hydra:
        key, values = of_hydra.groups()
        return several_of_hydra(key.lstrip("+"), values)
    several = re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(([^'=]+)=.*)'", str(error))
    if several and several[2] == "tracker":
        return several_trackers(several[1])
    if several and several[2].startswith("hydra"):
        return several_of_hydra(several[2], several[1].partition("=")[2])
    if several:
        decimal = re.fullmatch(r"(\d+),(\d+)", several[1].partition("=")[2])
        is_float = isinstance(OmegaConf.select(composed_without(several[2], overrides, config_dir), several[2]), float)
        remedy = f", or write {decimal[1]}.{decimal[2]} for a decimal" if decimal and is_float else ""
        return ConfigError(
            f"{several[1]} has several values; add -m for a run of each{remedy}", code="needs_multirun", key=several[2]
        )
    missing = re.match(r"Additional config directory '(.*)' not found|provider=([^ ]+) .*path=(.*) is not", str(error))
    if missing:
        key = missing[2] or "--config-dir"
        return ConfigError(
            f"{key}: the folder {missing[1] or missing[3]} was not found",
            code="not_found",
            key=key,
        )
    is_no_name = str(error).startswith("Config group override must be a string")
    for override in overrides:
        group, _, chosen = override.partition("=")
        no_name = chosen in ("null", "") or (is_no_name and re.fullmatch(r"[\d.]+|true|false", chosen))
        if group in groups() and no_name:  # Hydra does not say which override it is
            return ConfigError(
                f"{override}: {group} takes the name of one option; {nearest(chosen, options(group))}",
                code="unknown_option",
                key=group,
            )
    twice = re.match(r"Multiple values for (\w+)\. |(\w+) appears more than once in the final defaults", str(error))
    if twice:
        group = twice[1] or twice[2]
        return ConfigError(
            f"{group} is chosen twice; a file that chooses it writes '- override /{group}: NAME' in its defaults",
            code="several_options",
            key=group,
        )
    missing_group = re.match(r"You must specify '(\w+)'", str(error))
    if missing_group:
        group = missing_group[1]
        pair = next((o for o in reversed(overrides) if o.startswith("pair=")), "")
        remedy = (
            f"{pair} does not choose one: its file must begin with '# @package _global_' and list "
            f"'- override /{group}: NAME' in its defaults"
        )
        return ConfigError(
            f"no {group} is chosen; {remedy if pair else f'give {group}=NAME'}", code="missing_option", key=group
        )
    if type(error).__module__.startswith("yaml"):
        return ConfigError(f"not valid YAML: {' '.join(str(error).split())}", code="invalid_yaml")
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = getattr(cause, "full_key", None)
    return ConfigError(f"{f'{key}: ' if key else ''}{first_line(cause)}", code="composition", key=str(key or ""))


TRACKERS = "a list of names such as [tensorboard,mlflow], or [] for none"


def several_trackers(text: str) -> ConfigError:
    """Return the error for an override that gives several values of `tracker`, where a run takes a list."""
    names = re.sub(r"[\[\]]", "", text.partition("=")[2])
    return ConfigError(f"{text}: tracker takes {TRACKERS}; write tracker=[{names}]", code="usage", key="tracker")


def fault_of_choice(override: str, config_dir: Path | None) -> ConfigError | None:
    """Return the error for an override of `tracker` that gives no list of names; Hydra does not say which it is."""
    if not re.fullmatch(r"[+]*tracker=.*", override, re.DOTALL):
        return None
    try:
        read = OverridesParser.create().parse_override(override)
    except Exception:  # reported as an override that cannot be read
        return None
    if read.is_sweep_override():
        return None
    value = read.value()
    if all(isinstance(name, str) and name for name in (value if isinstance(value, list) else [value])):
        return None
    return ConfigError(
        f"{override}: tracker takes {TRACKERS}; {nearest('', trackers(config_dir))}", code="wrong_type", key="tracker"
    )


def trackers(config_dir: Path | None) -> set[str]:
    """Return the names of all trackers, kdbench's and the user's."""
    return {name for folder in (CONF_DIR, config_dir) if folder for name in options("tracker", folder)}


def unknown_tracker_key(key: str, overrides: Sequence[str], config_dir: Path | None) -> ConfigError:
    """Return the error for a key of `tracker` that no config has: the tracker is not chosen, or has no such key."""
    _, _, rest = key.partition(".")
    name, _, inner = rest.partition(".")
    chosen = OmegaConf.select(composed_without(key, overrides, config_dir), "tracker") or {}
    if not rest:
        return ConfigError(f"tracker takes {TRACKERS}", code="wrong_type", key="tracker")
    if inner and name in chosen:
        hint = nearest(inner, {str(own) for own in chosen[name]} - {"_target_"})
        return ConfigError(f"{key} is not a known key; {hint}", code="unknown_key", key=key)
    valid = trackers(config_dir)
    if name in valid:
        others = [str(other) for other in chosen]
        hint = f"the tracker {name} is not chosen; add it: tracker=[{','.join([*others, name])}]"
    else:
        hint = nearest(name, valid)
    return ConfigError(f"{key} is not a known key; {hint}", code="unknown_key", key=key)


def remedy_for(written: str) -> str:
    """Return how to write an override that Hydra cannot read: its value in quotes, as a shell takes it."""
    key, _, value = written.partition("=")
    function = re.match(r"(\w+)\(", value)
    is_known = function is not None and function[1] in FUNCTIONS
    if function and not is_known and re.fullmatch(OF_NUMBERS, value):
        return instead_of_function(key, function[1], value)
    as_text = quoted(key, [value])
    if (
        as_text is None or is_known or value[:1] in ("[", "{")
    ):  # more likely a list, a mapping or a sweep with a mistake
        return (
            "quote a value that contains spaces, commas, brackets, parentheses or ~, for example "
            "'output_root=\"~/runs (1)\"'"
        )
    as_sweep = quoted(key, value.split(",")) if "," in value and "(" not in value else None
    return f"write {as_text}{f', or with -m {as_sweep} for a run of each' if as_sweep else ''}"


FUNCTIONS = (
    "bool", "choice", "extend_list", "float", "glob", "int", "interval", "json_str", "range", "shuffle", "sort", "str",
    "tag",
)  # fmt: skip
"""Functions of Hydra's override grammar."""


OF_NUMBERS = r"\w+\(\s*([-+]?[\d.][-+.\w]*)\s*,\s*([-+]?[\d.][-+.\w]*)\s*(?:,.*)?\)"
"""A function of two numbers and perhaps more, as the distributions of a search are elsewhere."""


def instead_of_function(key: str, name: str, value: str) -> str:
    """Return how to write a value such as loguniform(0.1,1), whose function Hydra's grammar does not have."""
    ends = re.fullmatch(OF_NUMBERS, value)
    low, high = ends.groups() if ends and ("log" in name or "uniform" in name or "int" in name) else ("a", "b")
    span = f"interval({low},{high})"
    return (
        f"there is no function {name}; with hydra/sweeper=optuna write '{key}={span}', or for even draws of the "
        f"logarithm '{key}=tag(log,{span})'; choice, range and glob list values"
    )


def quoted(key: str, values: Sequence[str]) -> str | None:
    """Return an override with its values in quotes, as a shell takes it, or None if Hydra would read other values."""
    try:
        quotes = [QuotedString(value, Quote.double).with_quotes() for value in values]
        parser = OverridesParser.create()
        read = [parser.parse_override(f"{key}={text}").value() for text in quotes]
    except Exception:  # the key cannot be read either
        return None
    return shlex.quote(f"{key}={','.join(quotes)}") if read == list(values) else None


def unknown_key(key: str, overrides: Sequence[str], config_dir: Path | None) -> ConfigError:
    """Return the error for a key that no config has, with the keys that stand beside it."""
    if re.match(r"hydra[./]", key):
        return unknown_key_of_hydra(key, overrides, config_dir)
    if key.split(".")[0] == "tracker":
        return unknown_tracker_key(key, overrides, config_dir)
    path, _, name = key.rpartition(".")
    if path.split(".")[0] == "teacher" and "teacher=none" in overrides:
        return ConfigError(
            f"teacher=none is a run without a teacher, which has no {key}; remove one of the two",
            code="unknown_key",
            key=key,
        )
    if error := misplaced(key, overrides, config_dir):
        return error
    beside = OmegaConf.select(composed_without(key, overrides, config_dir), path) if path else None
    elsewhere: list[str] = []
    if not path:
        beside = composed_without(key, overrides, config_dir)
        valid = {str(k) for k in beside} | groups()
        elsewhere = [
            f"{k!s}.{name}" for k, section in beside.items() if isinstance(section, DictConfig) and name in section
        ]
    elif isinstance(beside, DictConfig):
        valid = {str(k) for k in beside}
    elif isinstance(beside, str) and path in groups():
        return option_as_key(path, beside)
    else:
        return unknown_key(path, overrides, config_dir)
    if name in valid and isinstance(beside, DictConfig) and isinstance(beside[name], DictConfig) and path:
        return ConfigError(
            f"{key} is a section; add or change its keys one by one: write +{key}.NAME=VALUE",
            code="existing_key",
            key=key,
        )
    if name in valid:
        return ConfigError(
            f"{key} already exists and takes a single value; write {key}=VALUE",
            code="existing_key",
            key=key,
        )
    hint = f"did you mean {' or '.join(elsewhere)}?" if elsewhere else nearest(name, valid - SET_BY_SEARCHES)
    if path in ("student", "teacher") and takes_argument(str(beside.get("_target_")), name):
        given = next((text for text in overrides if text.startswith(f"{key}=")), f"{key}=VALUE")
        return ConfigError(
            f"{key} is not a key of the file of {path}, whose builder accepts it as an argument: write "
            f"{shlex.quote(f'+{given}')}; {hint}",
            code="unknown_key",
            key=key,
        )
    if path in ("data", "method") and isinstance(beside, DictConfig) and has_key(str(beside.get("_target_")), name):
        given = next((text for text in overrides if text.startswith(f"{key}=")), f"{key}=VALUE")
        return ConfigError(
            f"{key} is not in the file of {path}, and its class has such a key: add it to the file, or write "
            f"{shlex.quote(f'+{given}')}",
            code="unknown_key",
            key=key,
        )
    return ConfigError(f"{key} is not a known key; {hint}", code="unknown_key", key=key)


def composed_without(key: str, overrides: Sequence[str], config_dir: Path | None) -> DictConfig:
    """Return the config with no overrides but the choices of groups, as far as those can be composed."""
    lists = [o for o in overrides if o.startswith("tracker=[")]
    choices = [o for o in overrides if o.partition("=")[0] in groups() and (o in lists or "," not in o)]
    with initialize_hydra(config_dir):
        try:
            return hydra_compose("config", choices)
        except Exception:  # the choices are what cannot be composed
            return hydra_compose("config")
