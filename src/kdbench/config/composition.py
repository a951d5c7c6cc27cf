"""Composition by Hydra: from overrides to a `RunConfig`, and Hydra's errors in one line that says what to do."""

import contextlib
import re
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdbench.config.parse import option_as_key, parse
from kdbench.config.paths import CONF_DIR, is_folder
from kdbench.config.sections import RunConfig
from kdbench.config.targets import has_key, takes_argument
from kdbench.errors import ConfigError, first_line, nearest

ONE_AT_A_TIME = threading.RLock()
"""Held while the Python API uses what belongs to the whole process: Hydra, torch's random numbers, tracing."""


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> RunConfig:
    """Return the run that `kdbench OVERRIDES` would carry out.

    Args:
        overrides: as on the command line, for example `["student=resnet8", "method=ce"]`.
        config_dir: folder of further options, as `--config-dir` takes it.

    Raises:
        ConfigError: the run cannot be composed, or a value is not allowed; in one line.
    """
    is_list = isinstance(overrides, Sequence) and not isinstance(overrides, str)
    if not is_list or not all(isinstance(override, str) for override in overrides):
        raise ConfigError(
            f"overrides is {overrides!r}; it must be a list of texts such as ['student=resnet8', 'method=ce']",
            code="wrong_type",
        )
    if not isinstance(config_dir, str | Path | None):
        raise ConfigError(
            f"config_dir is {config_dir!r}; it must be the path of a folder", code="wrong_type", key="config_dir"
        )
    folder = Path(config_dir) if config_dir is not None else None
    if folder is not None and not is_folder(folder):
        raise ConfigError(
            f"--config-dir: the folder {folder} was not found",
            code="not_found",
            key="--config-dir",
        )
    with ONE_AT_A_TIME:
        register_models_once(folder)
        try:
            with initialize_hydra(folder) as loader:
                given = with_networks_of_pair(overrides, loader)
                config = hydra_compose("config", given, return_hydra_config=True)
        except Exception as error:  # Hydra's own errors, and what it stumbles over
            raise composition_error(error, overrides, folder) from None
    with ONE_AT_A_TIME:
        run = parse_composed(config)
    vars(run)["composed_as"] = repr(run)  # `kdbench.run` refuses a config that was changed since: nothing checked it
    return run


def is_as_composed(run: RunConfig) -> bool:
    """Return whether a config is one that `compose` returned, with the same values."""
    return vars(run).get("composed_as") == repr(run)


def with_networks_of_pair(overrides: Sequence[str], loader: ConfigLoader) -> list[str]:
    """Return the overrides of a run with student and teacher of a given pair, where an experiment is given too.

    The file of an experiment counts more than that of the pair, and may choose other networks; what the user gives
    counts more than both.
    """
    given = {text.partition("=")[0]: text for text in overrides}
    if not {"pair", "experiment"} <= given.keys():
        return list(overrides)
    try:
        choices = loader.load_configuration("config", [given["pair"]], RunMode.RUN).hydra.runtime.choices
    except Exception:  # Hydra composes again, and reports it
        return list(overrides)
    return [*overrides, *(f"{group}={choices[group]}" for group in ("student", "teacher") if group not in given)]


def parse_composed(config: DictConfig, number: int | None = None) -> RunConfig:
    """Return the run of a config that Hydra composed, with the values of its own node for `${hydra:KEY}`.

    Args:
        config: with Hydra's node.
        number: place of the run within its sweep, counted from 0; None for a single run.
    """
    instance = HydraConfig.instance()
    surrounding = instance.cfg
    if number is not None:
        config.hydra.job.num, config.hydra.job.id = number, str(number)
    instance.set_config(config)
    try:
        return parse(without_hydra(config), config.hydra.runtime.choices)
    finally:
        instance.cfg = surrounding


def without_hydra(config: DictConfig) -> DictConfig:
    """Return a composed config without Hydra's own node, its interpolations unresolved."""
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


@contextlib.contextmanager
def initialize_hydra(config_dir: Path | None) -> Iterator[ConfigLoader]:
    """Initialise Hydra for the options of kdbench and of a further folder, and yield its loader of configs.

    Afterwards the instance that a surrounding Hydra application uses is back. The folder becomes a part of the search
    path directly, as for `kdbench --config-dir`: an override of `hydra.searchpath` cannot hold every folder's name.
    """
    previous = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    version.setbase("1.3")
    search_path = create_config_search_path(str(CONF_DIR))
    if config_dir is not None:
        search_path.prepend("command-line", f"file://{config_dir.absolute()}", SearchPathQuery(provider="schema"))
    try:
        yield Hydra.create_main_hydra2("kdbench", search_path).config_loader
    finally:
        GlobalHydra.instance().clear()
        if previous:
            GlobalHydra.instance().hydra = previous


_registered: tuple[tuple[Path, int, int], ...] = ()
"""The model files that are registered, each with its time of change and size."""


def register_models_once(config_dir: Path | None) -> None:
    """Register the models of kdbench and of a further folder; code beside that folder can be imported from now on."""
    if config_dir and (beside := str(config_dir.absolute().parent)) not in sys.path:
        sys.path.append(beside)  # last, so that it hides no installed package
    register_models(CONF_DIR, *([config_dir] if config_dir else []))


def register_models(*config_dirs: Path) -> None:
    """Offer every file of each folder's model/ as `student=NAME` and as `teacher=NAME`; later folders win.

    The models of an earlier call are withdrawn. Files that are registered and unchanged are not read again: reading
    all of them takes a third of a composition.
    """
    global _registered
    folders = [folder.absolute() / "model" for folder in config_dirs if is_folder(folder / "model")]
    files = [file for folder in folders for file in sorted(folder.rglob("*.yaml"))]
    state = tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    if state == _registered:
        return
    nodes = {file: read_model(file) for file in files}
    store = ConfigStore.instance()
    for file, _, _ in _registered:
        for group in ("student", "teacher"):
            withdraw(store.repo, group, file)
    store.store(group="teacher", name="none", node={})
    for file, node in nodes.items():
        folder = subfolder_of(file)
        for group in ("student", "teacher"):
            group_path = f"{group}/{folder}" if folder else group
            store.store(group=group_path, name=file.stem, package=group, node=node, provider=str(file))
    _registered = state


def subfolder_of(file: Path) -> str:
    """Return the folders between model/ and a model's file: timm for model/timm/vit.yaml."""
    parts = file.parent.parts
    last = len(parts) - 1 - parts[::-1].index("model")
    return "/".join(parts[last + 1 :])


def withdraw(repo: dict[str, Any], group: str, file: Path) -> None:
    """Remove a model's file from the options of a group."""
    for part in (group, *subfolder_of(file).split("/")):
        repo = repo[part] if part else repo
    repo.pop(f"{file.stem}.yaml", None)


def read_model(file: Path) -> DictConfig:
    """Return the content of a model's YAML file.

    Raises:
        ConfigError: it is not valid YAML, or no mapping.
    """
    try:
        node = OmegaConf.load(file)
    except Exception as error:  # the YAML library raises many types
        raise ConfigError(
            f"{file} is not valid YAML: {' '.join(str(error).split())}", code="invalid_yaml", key=file.stem
        ) from None
    if not isinstance(node, DictConfig):
        raise ConfigError(
            f"{file} does not describe a model: it must contain keys and values, among them _target_",
            code="invalid_yaml",
            key=file.stem,
        )
    return OmegaConf.create({"logits": None, "weights": None} | dict(node))  # keys of every network


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
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.partition("/")
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
    several = re.match(r"(?:Ambiguous value for argument|Sweep parameters) '(([^'=]+)=.*)'", str(error))
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


def option_of_hydra(group: str) -> ConfigError:
    """Return the error for a launcher or sweeper that is given as a key."""
    return ConfigError(
        f"hydra.{group} is a section, and its option is chosen with a slash: write hydra/{group}=NAME, or in a file "
        f"'- override /hydra/{group}: NAME' in its defaults",
        code="usage",
        key=f"hydra.{group}",
    )


def remedy_for(written: str) -> str:
    """Return how to write an override that Hydra cannot read: its value in quotes, as a shell takes it."""
    key, _, value = written.partition("=")
    as_text = quoted(key, [value])
    if as_text is None or re.match(r"[\[{]|\w+\(", value):  # more likely a list, a mapping or a sweep with a mistake
        return (
            "quote a value that contains spaces, commas, brackets, parentheses or ~, for example "
            "'output_root=\"~/runs (1)\"'"
        )
    as_sweep = quoted(key, value.split(",")) if "," in value else None
    return f"write {as_text}{f', or with -m {as_sweep} for a run of each' if as_sweep else ''}"


def quoted(key: str, values: Sequence[str]) -> str | None:
    """Return an override with its values in quotes, as a shell takes it, or None if Hydra would read other values."""
    try:
        quotes = [QuotedString(value, Quote.double).with_quotes() for value in values]
        parser = OverridesParser.create()
        read = [parser.parse_override(f"{key}={text}").value() for text in quotes]
    except Exception:  # the key cannot be read either
        return None
    return shlex.quote(f"{key}={','.join(quotes)}") if read == list(values) else None


def groups() -> set[str]:
    """Return the groups of which a run chooses one option."""
    folders = {folder.name for folder in CONF_DIR.iterdir() if folder.is_dir()}
    return folders - {"model", "hydra", "study"} | {"student", "teacher"}


def options(group: str, config_dir: Path = CONF_DIR) -> list[str]:
    """Return the names of a group's options in a config folder; those of models and experiments may lie in folders."""
    folder = config_dir / ("model" if group in ("student", "teacher") else group)
    files = folder.rglob("*.yaml") if folder.name in ("model", "experiment") else folder.glob("*.yaml")
    return [file.relative_to(folder).with_suffix("").as_posix() for file in files]


def unknown_key(key: str, overrides: Sequence[str], config_dir: Path | None) -> ConfigError:
    """Return the error for a key that no config has, with the keys that stand beside it."""
    if key.split(".")[0] == "hydra":
        return ConfigError(
            f"{key} is not a key of Hydra's own config; see kdbench --cfg hydra", code="unknown_key", key=key
        )
    path, _, name = key.rpartition(".")
    if path.split(".")[0] == "teacher" and "teacher=none" in overrides:
        return ConfigError(
            f"teacher=none is a run without a teacher, which has no {key}; remove one of the two",
            code="unknown_key",
            key=key,
        )
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
    hint = f"did you mean {' or '.join(elsewhere)}?" if elsewhere else nearest(name, valid)
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
    choices = [o for o in overrides if o.partition("=")[0] in groups() and "," not in o]
    with initialize_hydra(config_dir):
        try:
            return hydra_compose("config", choices)
        except Exception:  # the choices are what cannot be composed
            return hydra_compose("config")
