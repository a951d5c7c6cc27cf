"""What goes wrong while Hydra composes a config, in one line that says what to do."""

import functools
import re
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from kdbench.config import CONF_DIR, RunConfig, parse, register_models
from kdbench.errors import ConfigError, first_line, nearest


def run_config(*overrides: str, config_dir: Path | None = None) -> RunConfig:
    """The run that `kdbench OVERRIDES` would carry out, with `--config-dir` if one is given.

    Raises:
        ConfigError: it cannot run.
    """
    register_models_once(config_dir)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            config = compose("config", [*overrides, *search(config_dir)], return_hydra_config=True)
    except Exception as error:  # Hydra's own and what it trips over
        raise explained(error, overrides, config_dir) from None
    return parse({str(key): value for key, value in config.items() if key != "hydra"}, config.hydra.runtime.choices)


@functools.cache
def register_models_once(config_dir: Path | None) -> None:
    """Once in a process: reading all files of model/ takes a third of a composition."""
    register_models(CONF_DIR, *([config_dir] if config_dir else []))


def search(config_dir: Path | None) -> list[str]:
    """What has Hydra look for options in a folder of the user's own too."""
    return [f"hydra.searchpath=[file://{config_dir.absolute()}]"] if config_dir else []


def explained(error: Exception, overrides: Sequence[str], config_dir: Path | None = None) -> ConfigError:
    """A composition error of Hydra or OmegaConf as an error for the user.

    Args:
        error: What was raised.
        overrides: The command line's, to find the one that is wrong.
        config_dir: The user's own, if one was given.
    """
    if isinstance(error, OverrideParseException):
        return ConfigError(
            f"{error.override!r} cannot be read: {first_line(error)}; write key=value, and quote values that hold "
            "spaces, commas, brackets or ~ (for example 'output_root=\"~/runs\"')"
        )
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        if group:
            valid = error.options or (options(group) if group in groups() else [])
            return ConfigError(f"{group}={option} is no option; {nearest(option, valid)}")
        return ConfigError(f"there is no config named {option}")
    unmatched = re.match(r"Could not (?:override|delete|append to config)[^']*'([^']+)'", str(error))
    if unmatched:
        return unknown_key(unmatched[1].partition("@")[0], overrides, config_dir)
    if str(error).startswith("Ambiguous value"):
        return ConfigError(f"{first_line(error)}: several values need -m, which makes one run of each")
    for override in overrides:
        group, _, chosen = override.partition("=")
        if group in groups() and chosen in ("null", ""):  # Hydra trips over it without saying over what
            return ConfigError(f"{override}: {group} takes the name of one option; {nearest(chosen, options(group))}")
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    key = getattr(cause, "full_key", None)
    return ConfigError(f"{f'{key}: ' if key else ''}{first_line(cause)}")


def groups() -> set[str]:
    """Groups that a run chooses one option of."""
    folders = {folder.name for folder in CONF_DIR.iterdir() if folder.is_dir()}
    return folders - {"model", "hydra", "study"} | {"student", "teacher"}


def options(group: str) -> list[str]:
    folder = CONF_DIR / ("model" if group in ("student", "teacher") else group)
    return [file.stem for file in folder.glob("*.yaml")]


def unknown_key(key: str, overrides: Sequence[str], config_dir: Path | None) -> ConfigError:
    """The error for a key that no config has, with the keys that stand beside it."""
    if key.split(".")[0] == "hydra":
        return ConfigError(f"{key} is no key of Hydra's own config; see kdbench --cfg hydra")
    path, _, name = key.rpartition(".")
    beside = OmegaConf.select(composed_without(key, overrides, config_dir), path) if path else None
    if not path:
        beside = composed_without(key, overrides, config_dir)
        valid = {str(k) for k in beside} | groups()
    elif isinstance(beside, DictConfig):
        valid = {str(k) for k in beside}
    else:
        return unknown_key(path, overrides, config_dir)
    if name in valid:
        return ConfigError(f"{key} is there already, and one value is all that it takes; write {key}=VALUE")
    return ConfigError(f"{key} is no known key; {nearest(name, valid)}")


def composed_without(key: str, overrides: Sequence[str], config_dir: Path | None) -> DictConfig:
    """The config as it is without any override but choices of groups, as far as those can be composed."""
    choices = [o for o in overrides if o.partition("=")[0] in groups() and "," not in o]
    previous = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            try:
                return compose("config", [*choices, *search(config_dir)])
            except Exception:  # as above
                return compose("config")
    finally:
        GlobalHydra.instance().clear()
        if previous:
            GlobalHydra.instance().hydra = previous
