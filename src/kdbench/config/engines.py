"""Engines on a command line: hydra/launcher, hydra/sweeper, the groups below it, and their keys."""

import contextlib
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from hydra import compose as hydra_compose
from omegaconf import DictConfig, OmegaConf

from kdbench.config.options import initialize_hydra
from kdbench.config.paths import CONF_DIR
from kdbench.errors import ConfigError, nearest

GROUPS = ("hydra/launcher", "hydra/sweeper", "hydra/sweeper/sampler", "hydra/sweeper/pruner")
"""Groups of Hydra's config with options of kdbench."""
LOCKSTEP = ("max_learners",)
"""Keys of hydra/launcher=lockstep, which has no file."""
HERE = ("basic", "lockstep", "joblib")
"""Launchers that execute runs on this machine."""
DEFAULTS = ("basic", "kdbench", None)
"""Launcher and sweeper where none is chosen."""


def check_engines(overrides: Sequence[str]) -> None:
    """Check the overrides of a command line that choose engines; Hydra accepts each of these, or says nothing useful.

    Raises:
        ConfigError: an option is given as a key, as a list, or twice, or `runtime.device` is a list.
    """
    chosen: dict[str, str] = {}
    for override in overrides:
        key, _, value = override.lstrip("+").partition("=")
        if key.startswith("hydra.") and key.replace(".", "/") in GROUPS and "=" in override and value[:1] != "{":
            raise option_of_hydra(key.removeprefix("hydra.").replace(".", "/"))
        by_name = re.fullmatch(r"hydra\.sweeper\.(sampler|pruner)\.name", key)
        if by_name:
            raise ConfigError(
                f"{key}={value}: it is chosen with a slash, and brings keys of its own: write "
                f"hydra/sweeper/{by_name[1]}={value}",
                code="usage",
                key=key,
            )
        if key == "runtime.device" and value.startswith("["):
            raise list_of_devices(value)
        if key not in GROUPS:
            continue
        if value.startswith("["):
            raise ConfigError(
                f"{key} is {value}; it must be the name of one option; {nearest('', keys_of(key))}",
                code="wrong_type",
                key=key,
            )
        if chosen.setdefault(key, value) != value:
            raise ConfigError(
                f"{key} is given twice, as {chosen[key]} and as {value}; leave one of the two out",
                code="several_options",
                key=key,
            )


def list_of_devices(value: str) -> ConfigError:
    """Return the error for several devices as a list, with the ways to use them."""
    return ConfigError(
        f"runtime.device is {value}; a run has one device. To distribute the runs of a sweep: -m hydra/launcher=joblib "
        f"hydra.launcher.devices={value}; to train one run on all of them: torchrun --nproc-per-node "
        f"{value.count(',') + 1} -m kdbench ... (docs/scaling.md)",
        code="wrong_type",
        key="runtime.device",
    )


def check_single(choices: Mapping[str, str | None]) -> None:
    """Check that a single run chooses no engine that executes sweeps alone.

    Args:
        choices: option of each group.

    Raises:
        ConfigError: it chooses a launcher that executes runs elsewhere, or a search.
    """
    for group, allowed in (("hydra/launcher", HERE), ("hydra/sweeper", ("basic", "kdbench"))):
        chosen = choices.get(group)
        if chosen is not None and chosen not in allowed:
            raise ConfigError(
                f"{group}={chosen} is for sweeps, and this command is one run in this process; add -m, or leave it out",
                code="needs_multirun",
                key=group,
            )


def refuse_hydra(overrides: Sequence[str], program: str) -> None:
    """Check that the overrides of a command that executes its runs itself have no keys of Hydra's.

    Raises:
        ConfigError: one has.
    """
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key.startswith(("hydra/", "hydra.")):
            raise ConfigError(
                f"{override}: {program} executes everything in this process, without launchers and sweepers; leave it "
                "out",
                code="usage",
                key=key,
            )


def option_of_hydra(group: str) -> ConfigError:
    """Return the error for a launcher or sweeper that is given as a key."""
    key = f"hydra.{group.replace('/', '.')}"
    return ConfigError(
        f"{key} is a section, and its option is chosen with a slash: write hydra/{group}=NAME, or in a file "
        f"'- override /hydra/{group}: NAME' in its defaults",
        code="usage",
        key=key,
    )


def several_of_hydra(key: str, values: str) -> ConfigError:
    """Return the error for a key of Hydra's own config, or a group such as hydra/launcher, with several values."""
    remedy = (
        "give one value" if "/" in key else f"a sweep has one for all its runs; a list takes brackets: {key}=[{values}]"
    )
    return ConfigError(f"{key}={values} has several values; {remedy}", code="several_options", key=key)


def keys_of(group: str, config_dir: Path | None = None) -> dict[str, set[str]]:
    """Return the keys of each option of a group, kdbench's and the user's, by the option's name."""
    found = {"lockstep": set(LOCKSTEP)} if group == "hydra/launcher" else {}
    for folder in (CONF_DIR, config_dir):
        for file in sorted((folder / group).glob("*.yaml")) if folder else ():
            try:
                node = OmegaConf.load(file)
            except Exception:  # Hydra reports it, where it is chosen
                continue
            if isinstance(node, DictConfig):
                chosen = [
                    str(name) for one in node.get("defaults") or () if isinstance(one, DictConfig) for name in one
                ]
                found[file.stem] = ({str(key) for key in node} | set(chosen)) - {"defaults", "_target_"}
    return found


def owners_of(group: str, key: str, config_dir: Path | None) -> list[str]:
    """Return the options of a group that have a key."""
    return [name for name, keys in keys_of(group, config_dir).items() if key in keys]


def misplaced(key: str, overrides: Sequence[str], config_dir: Path | None) -> ConfigError | None:
    """Return the error for a key of a run that is a group or a key of an engine, or None where it is neither."""
    first, _, rest = key.lstrip("+").partition(".")
    given = next((text.lstrip("+") for text in overrides if text.lstrip("+").partition("=")[0] == key), f"{key}=VALUE")
    group = next((name for name in GROUPS if name.rpartition("/")[2] == first), None)
    if group:
        below = group.removesuffix(first)
        written = f"{group.replace('/', '.')}.{given.partition('.')[2]}" if rest else f"{below}{given}"
        return ConfigError(f"{key} is not a known key; write {written}", code="unknown_key", key=key)
    for group in ("hydra/sweeper", "hydra/launcher"):
        if owners := owners_of(group, key, config_dir):
            return ConfigError(
                f"{key} is not a key of a run; write {group.replace('/', '.')}.{given}, with {group}="
                f"{' or '.join(owners)}",
                code="unknown_key",
                key=key,
            )
    return None


def unknown_key_of_hydra(key: str, overrides: Sequence[str], config_dir: Path | None) -> ConfigError:
    """Return the error for a key that Hydra's config, with the chosen launcher and sweeper, does not have."""
    if "/" in key:
        return unknown_group(key)
    chosen = [o for o in overrides if o.startswith(("hydra/", "experiment=")) and "," not in o]
    section, name = key.rpartition(".")[::2]
    with initialize_hydra(config_dir):
        composed = hydra_compose("config", return_hydra_config=True)
        with contextlib.suppress(Exception):  # the choices are what cannot be composed
            composed = hydra_compose("config", chosen, return_hydra_config=True)
    if error := key_of_another(key, composed, config_dir):
        return error
    beside = OmegaConf.select(composed, section, throw_on_missing=False) if section else None
    while section and not isinstance(beside, DictConfig):
        section, name = section.rpartition(".")[::2]
        beside = OmegaConf.select(composed, section) if section else None
    valid = {str(own) for own in beside} - {"_target_"} if isinstance(beside, DictConfig) else set()
    hint = nearest(name, valid) if valid else "see kdbench --cfg hydra"
    return ConfigError(f"{key} is not a known key; {hint}", code="unknown_key", key=key)


def unknown_group(group: str) -> ConfigError:
    """Return the error for a group of Hydra's that there is not, or not without a search."""
    if group in GROUPS:
        return ConfigError(
            f"{group} is a group of hydra/sweeper=optuna, which is not chosen; add hydra/sweeper=optuna",
            code="unknown_key",
            key=group,
        )
    return ConfigError(f"{group} is not a group; {nearest(group, GROUPS)}", code="unknown_key", key=group)


def key_of_another(key: str, composed: DictConfig, config_dir: Path | None) -> ConfigError | None:
    """Return the error for a key of another launcher, sweeper, sampler or pruner than the chosen one, or None.

    Args:
        key: as given.
        composed: Hydra's config with the chosen ones.
        config_dir: folder of further options.
    """
    parts = key.split(".")
    for size in (2, 3):  # hydra.launcher.KEY, hydra.sweeper.sampler.KEY
        group, name = "/".join(parts[:size]), ".".join(parts[size : size + 1])
        if group not in GROUPS or not name or name in (OmegaConf.select(composed, ".".join(parts[:size])) or ()):
            continue
        chosen, known = composed.hydra.runtime.choices.get(group), keys_of(group, config_dir)
        owners = owners_of(group, name, config_dir)
        if chosen not in DEFAULTS:
            if not owners:
                return None
            remedy = f"is a key of {group}={' or '.join(owners)}, and {group}={chosen} is chosen"
        elif len(owners) == 1:
            remedy = f"is a key of {group}={owners[0]}, which is not chosen; add {group}={owners[0]}"
        else:
            close = difflib.get_close_matches(name, sorted(set().union(*known.values())), n=1) if not owners else []
            able = owners or [option for option, keys in known.items() if set(close) <= keys]
            remedy = (
                f"{'needs an option' if owners else 'is not a known key, and no option'} of {group}"
                f"{'' if owners else ' is chosen'}; add {group}=NAME: {', '.join(sorted(able))}"
                f"{f'; did you mean {close[0]}?' if close else ''}"
            )
        return ConfigError(f"{key} {remedy}", code="unknown_key", key=key)
    return None
