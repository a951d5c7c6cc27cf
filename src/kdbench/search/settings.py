"""The keys of `hydra/sweeper=optuna`, checked, and the samplers by name."""

import hashlib
import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.config.schema import optional, setting, typed, whole
from kdbench.errors import ConfigError, first_line, nearest
from kdbench.runner.trials import JOURNAL, PRUNERS, check_arguments, without_warnings

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

SECTION = "hydra.sweeper"
GRID = "grid"
SAMPLERS = {
    "tpe": "TPESampler",
    "random": "RandomSampler",
    "cmaes": "CmaEsSampler",
    "gp": "GPSampler",
    "qmc": "QMCSampler",
    "nsgaii": "NSGAIISampler",
    GRID: "RandomSampler",  # the search itself takes the settings in turn
}
"""Class of Optuna by the name of the sampler."""
SAME_SEED = ("qmc",)
"""Samplers that continue one sequence, and so keep their seed."""
SINGLE_OBJECTIVE = ("cmaes",)
DIRECTIONS = ("maximize", "minimize")
NATURAL = {"val_acc": "maximize"}
"""Direction of an objective; the others are costs."""


@dataclass
class SearchKeys:
    """The keys of conf/hydra/sweeper/optuna.yaml."""

    n_trials: int = whole(1)
    n_jobs: int = whole(1)
    per: Any = setting()
    study_name: str | None = optional(
        setting(
            lambda name: re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name) is not None,
            "a name of letters, digits, _, . and -",
        )
    )
    storage: str | None = optional(setting(lambda value: value.strip() != "", "a file or the URL of a database"))
    direction: Any = setting()
    defaults_first: bool = setting()
    max_failures: int = whole(1)
    sampler: dict[str, Any] = field(default_factory=dict)
    pruner: dict[str, Any] = field(default_factory=dict)
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def groups(self) -> tuple[str, ...]:
        """Groups whose options get equal trials."""
        per = [self.per] if isinstance(self.per, str) else self.per or []
        return tuple(per)

    @property
    def prunes(self) -> bool:
        return bool(self.pruner["name"] != "none")

    def arguments(self) -> list[str]:
        """Return the space that the file has, as overrides."""
        return [f"{key}={value}" for key, value in self.params.items()]


def read_keys(node: Mapping[str, Any]) -> SearchKeys:
    """Return the checked keys of the sweeper.

    Args:
        node: Hydra's section of the sweeper, as plain data.

    Raises:
        ConfigError: a value is not allowed, or Optuna is not installed.
    """
    check_optuna()
    values = {key: value for key, value in node.items() if key != "_target_"}
    values["params"] = values.get("params") or {}
    for name in ("sampler", "pruner"):
        if not isinstance(values.get(name), Mapping) or "name" not in values[name]:
            raise ConfigError(
                f"{SECTION}.{name} is {values.get(name)!r}; it is chosen with a slash: write hydra/sweeper/{name}=NAME",
                code="usage",
                key=f"{SECTION}.{name}",
            )
    keys: SearchKeys = typed(SearchKeys, values, SECTION)
    for name, valid in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        given = getattr(keys, name)["name"]
        if given not in valid:
            raise ConfigError(
                f"{SECTION}.{name}.name is {given!r}; {nearest(str(given), valid)}",
                code="unknown_option",
                key=f"{SECTION}.{name}.name",
            )
    is_list = keys.per is None or isinstance(keys.per, str | list)
    if not is_list or not all(isinstance(group, str) for group in keys.groups):
        raise ConfigError(
            f"{SECTION}.per is {keys.per!r}; it must be a list of groups, such as [method]",
            code="wrong_type",
            key=f"{SECTION}.per",
        )
    build_sampler(keys.sampler, 0)
    return keys


def check_optuna() -> None:
    """Check that Optuna is installed.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "hydra/sweeper=optuna needs the package optuna; install it with: pip install 'kdbench[optuna]'",
            code="missing_extra",
            key="hydra/sweeper",
        )


def build_sampler(keys: Mapping[str, Any], seed: int) -> "BaseSampler":
    """Return a sampler.

    Args:
        keys: `name`, `seed`, and arguments of its class.
        seed: seed in the place of that of the keys.

    Raises:
        ConfigError: a value is not allowed, or its package is not installed.
    """
    import optuna

    name, arguments = keys["name"], {key: value for key, value in keys.items() if key != "name"}
    own = arguments.get("seed", 0)
    if type(own) is not int or own < 0:
        raise ConfigError(
            f"{SECTION}.sampler.seed is {own!r}; it must be a whole number of at least 0",
            code="out_of_range",
            key=f"{SECTION}.sampler.seed",
        )
    cls = getattr(optuna.samplers, SAMPLERS[name])
    check_arguments(cls, arguments, "sampler", name)
    arguments["seed"] = own if name in SAME_SEED else seed
    if name in SAME_SEED:  # for keys that only some options have: by its own seed it would draw the same each time
        arguments["independent_sampler"] = optuna.samplers.RandomSampler(seed=seed)
        arguments["warn_independent_sampling"] = False
    try:
        with without_warnings():
            sampler: BaseSampler = cls(**arguments)
            if name == "cmaes" and importlib.util.find_spec("cmaes") is None:  # Optuna looks at the first draw
                raise ModuleNotFoundError(name="cmaes")
            return sampler
    except ImportError as error:
        package = (error.name or "cmaes").partition(".")[0]
        raise ConfigError(
            f"hydra/sweeper/sampler={name} needs the package {package}; install it with: pip install {package}",
            code="missing_extra",
            key="hydra/sweeper/sampler",
        ) from None
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"{SECTION}.sampler ({name}): {first_line(error)}", code="out_of_range", key=f"{SECTION}.sampler"
        ) from None


def directions_of(keys: SearchKeys, objectives: Sequence[str]) -> list[str]:
    """Return the direction of each objective.

    Raises:
        ConfigError: a direction is not known, there are not as many as objectives, or what was chosen beside several
            objectives works with one.
    """
    given = keys.direction
    listed = [NATURAL.get(name, "minimize") for name in objectives] if given is None else given
    listed = [listed] if isinstance(listed, str) else listed
    if not isinstance(listed, list) or len(listed) != len(objectives) or any(d not in DIRECTIONS for d in listed):
        raise ConfigError(
            f"{SECTION}.direction is {given!r}; it must be maximize or minimize for each of objectives="
            f"[{','.join(objectives)}], or null",
            code="out_of_range",
            key=f"{SECTION}.direction",
        )
    if len(objectives) > 1 and keys.prunes:
        raise ConfigError(
            f"hydra/sweeper/pruner={keys.pruner['name']} compares one number by epoch, and objectives has "
            f"{len(objectives)}; use hydra/sweeper/pruner=none, or objectives=[val_acc]",
            code="mismatch",
            key="hydra/sweeper/pruner",
        )
    if len(objectives) > 1 and keys.sampler["name"] in SINGLE_OBJECTIVE:
        raise ConfigError(
            f"hydra/sweeper/sampler={keys.sampler['name']} works with one objective, and objectives has "
            f"{len(objectives)}; use tpe or nsgaii",
            code="mismatch",
            key="hydra/sweeper/sampler",
        )
    if objectives[0] != "val_acc" and keys.prunes:
        raise ConfigError(
            f"hydra/sweeper/pruner={keys.pruner['name']} compares validation accuracies, and objectives is "
            f"[{objectives[0]}]; use hydra/sweeper/pruner=none",
            code="mismatch",
            key="hydra/sweeper/pruner",
        )
    return listed


def storage_url(given: str | None, default: Path) -> str:
    """Return the URL of a storage: as given, of a file as given, or of an SQLite file at the default place."""
    if given is None:
        return f"sqlite:///{default.absolute()}"
    if "://" in given:
        return given
    file = Path(given).expanduser().absolute()
    return f"{JOURNAL}{file}" if file.suffix in (".journal", ".log") else f"sqlite:///{file}"


def derived_seed(seed: int, study: str, trials: int) -> int:
    """Return the seed of one draw: the same for the same search after the same trials, interrupted or not."""
    return int.from_bytes(hashlib.sha256(f"{seed} {study} {trials}".encode()).digest()[:4])
