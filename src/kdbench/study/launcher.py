"""The launcher of a study: `hydra/launcher=NAME` and its keys, as for a sweep."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from kdbench.config.composition_errors import composition_error
from kdbench.config.engines import keys_of
from kdbench.config.options import initialize_hydra, register_models_once
from kdbench.errors import ConfigError, nearest
from kdbench.study.stages import Study
from kdbench.sweep.launcher import GroupLauncher

EXAMPLE = ("student=resnet8", "teacher=none", "method=ce")
"""A run, for a config around the launcher."""


def launcher_of(study: Study) -> GroupLauncher | None:
    """Return the launcher that a study's command line chooses, or None for this process.

    Raises:
        ConfigError: there is none of that name, it has no such key, or it cannot execute a study.
    """
    if not study.launcher:
        return None
    if not any(text.startswith("hydra/launcher=") for text in study.launcher):
        key = study.launcher[0].partition("=")[0]
        raise ConfigError(
            f"{key} is a key of a launcher, and none is chosen; add hydra/launcher=NAME: {', '.join(names())}",
            code="missing_value",
            key="hydra/launcher",
        )
    node = compose_launcher(study.launcher, study.config_dir)
    try:
        launcher = instantiate(node)
    except InstantiationException:  # Hydra's own ones are not made this way
        launcher = None
    if not isinstance(launcher, GroupLauncher):
        raise ConfigError(
            f"{study.launcher[0]}: this launcher does not know groups of runs, and executes sweeps alone; a study "
            f"takes kdbench's own: {', '.join(names())}",
            code="unknown_option",
            key="hydra/launcher",
        )
    return launcher


def compose_launcher(overrides: Sequence[str], config_dir: Path | None) -> Any:
    """Return the section of a launcher, composed by Hydra. Errors: see `kdbench.config.compose`."""
    register_models_once(config_dir)
    try:
        with initialize_hydra(config_dir):
            return hydra_compose("config", [*EXAMPLE, *overrides], return_hydra_config=True).hydra.launcher
    except Exception as error:  # Hydra's own errors, and what it stumbles over
        explained = composition_error(error, overrides, config_dir)
        chosen = next((text for text in overrides if text.startswith("hydra/launcher=")), "")
        if explained.code == "unknown_option":
            text = f"{chosen} is not an option; {nearest(chosen.partition('=')[2], names())}"
            raise ConfigError(text, code="unknown_option", key="hydra/launcher") from None
        raise explained from None


def names() -> list[str]:
    """Return the names of kdbench's own launchers."""
    return sorted(keys_of("hydra/launcher"))
