"""Composition by Hydra: from overrides to a `RunConfig`."""

import threading
from collections.abc import Sequence
from pathlib import Path

from hydra import compose as hydra_compose
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from kdbench.config.composition_errors import composition_error
from kdbench.config.options import initialize_hydra, register_models_once
from kdbench.config.parse import parse
from kdbench.config.paths import is_folder
from kdbench.config.sections import RunConfig
from kdbench.errors import ConfigError

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
