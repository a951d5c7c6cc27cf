"""Trials of a search, as a run and a search read them: the storage by its URL, and the pruner by its name.

Optuna is imported where it is used: runs without a search need none.
"""

import inspect
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.errors import ConfigError, first_line, without_passwords

if TYPE_CHECKING:
    from optuna.pruners import BasePruner
    from optuna.storages import BaseStorage

JOURNAL = "journal:///"
"""Beginning of the URL of a journal file, which needs no locks of the file system's own."""
LOCK_SECONDS = 60.0
"""Time for which a process waits for the lock of an SQLite file that another one writes."""
DRIVERS = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary", "MySQLdb": "mysqlclient"}
"""Packages by the names under which SQLAlchemy imports them, where the two differ."""
PRUNERS = {
    "none": "NopPruner",
    "median": "MedianPruner",
    "percentile": "PercentilePruner",
    "successive_halving": "SuccessiveHalvingPruner",
    "hyperband": "HyperbandPruner",
    "threshold": "ThresholdPruner",
}
"""Class of Optuna by the name of the pruner."""


def build_pruner(keys: Mapping[str, Any], epochs: int) -> "BasePruner":
    """Return a pruner.

    Args:
        keys: `name`, and arguments of its class; a `max_resource` of null is the number of epochs.
        epochs: number of epochs of a run.

    Raises:
        ConfigError: a value is not allowed.
    """
    import optuna

    arguments = {key: value for key, value in keys.items() if key != "name"}
    if "max_resource" in arguments and arguments["max_resource"] is None:
        arguments["max_resource"] = epochs
    cls = getattr(optuna.pruners, PRUNERS[keys["name"]])
    check_arguments(cls, arguments, "pruner", keys["name"])
    if keys["name"] == "threshold" and arguments.get("lower") is None and arguments.get("upper") is None:
        raise ConfigError(
            "hydra/sweeper/pruner=threshold has no threshold; give hydra.sweeper.pruner.lower or "
            "hydra.sweeper.pruner.upper, validation accuracies between 0 and 1",
            code="missing_value",
            key="hydra.sweeper.pruner.lower",
        )
    try:
        pruner: BasePruner = cls(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"hydra.sweeper.pruner ({keys['name']}): {first_line(error)}",
            code="out_of_range",
            key="hydra.sweeper.pruner",
        ) from None
    return pruner


TYPES = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "None": "null"}
"""Words for the types of arguments."""


def check_arguments(cls: type, arguments: Mapping[str, Any], part: str, name: str) -> None:
    """Check that a class of Optuna has each argument, and that each value has a type that the class names.

    Args:
        cls: sampler or pruner.
        arguments: its arguments by name.
        part: key of the sweeper that has them.
        name: option of that part.

    Raises:
        ConfigError: an argument is not known or of another type.
    """
    parameters = inspect.signature(cls).parameters
    for key, value in arguments.items():
        path = f"hydra.sweeper.{part}.{key}"
        if key not in parameters:
            raise ConfigError(
                f"{path}: {name} has no such key; write hydra/sweeper/{part}={name}, which brings its own keys, and "
                f"with + others of Optuna's {cls.__name__}: {', '.join(parameters)}",
                code="unknown_key",
                key=path,
            )
        annotation = parameters[key].annotation
        allowed = re.findall(
            r"\w+", annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
        )
        given = "None" if value is None else type(value).__name__
        is_plain = set(allowed) <= set(TYPES)
        if is_plain and given not in allowed and not (given == "int" and "float" in allowed):
            valid = " or ".join(TYPES[kind] for kind in allowed)
            raise ConfigError(f"{path} is {value!r}; it must be {valid}", code="wrong_type", key=path)


_opened: "dict[str, BaseStorage]" = {}


def open_storage(url: str) -> "BaseStorage":
    """Return the storage of a URL; within a process each is opened once. Errors: see `new_storage`."""
    if url not in _opened:
        _opened[url] = new_storage(url)
    return _opened[url]


def new_storage(url: str) -> "BaseStorage":
    """Open the storage of a URL.

    Raises:
        ConfigError: it cannot be opened: not writable, locked, no database, or of another version of Optuna.
    """
    import optuna

    quieten()
    try:
        if url.startswith(JOURNAL):
            from optuna.storages.journal import JournalFileBackend

            file = url.removeprefix(JOURNAL)
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            return optuna.storages.JournalStorage(JournalFileBackend(file))
        if url.startswith("sqlite:///"):
            Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}})
        return optuna.storages.RDBStorage(url)
    except Exception as error:  # of the database, its driver, or the disk
        raise storage_error(url, origin_of(error)) from None


def storage_error(url: str, error: BaseException) -> ConfigError:
    """Return the error for a storage that cannot be opened, with the package to install where one is missing."""
    where = f"hydra.sweeper.storage is {without_passwords(url)}, which"
    key = "hydra.sweeper.storage"
    if isinstance(error, ModuleNotFoundError) and error.name:
        package = DRIVERS.get(error.name, error.name)
        text = f"{where} needs the package {package}; install it with: pip install '{package}'"
        return ConfigError(text, code="missing_extra", key=key)
    return ConfigError(f"{where} cannot be opened: {cause_of(error)}", code="storage", key=key)


@contextmanager
def closing_storages() -> Iterator[None]:
    """Close the storages that this process has opened at the end of the block."""
    try:
        yield
    finally:
        for storage in _opened.values():
            storage.remove_session()
            if engine := getattr(getattr(storage, "_backend", storage), "engine", None):
                engine.dispose()
        _opened.clear()


def quieten() -> None:
    """Have Optuna and its migrations print warnings only: the search prints lines of its own."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    optuna.logging.disable_default_handler()
    logging.getLogger("alembic").setLevel(logging.WARNING)


@contextmanager
def without_warnings() -> Iterator[None]:
    """Leave out what Optuna warns of in the block: that an interface is experimental."""
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def origin_of(error: BaseException) -> BaseException:
    """Return the error of the database, or of its driver, below those of Optuna and SQLAlchemy."""
    while (deeper := getattr(error, "orig", None) or error.__cause__) is not None:
        error = deeper
    return error


def cause_of(error: BaseException) -> str:
    """Return the first line of the error of the database below those of Optuna and SQLAlchemy."""
    return " ".join(first_line(origin_of(error)).split())
