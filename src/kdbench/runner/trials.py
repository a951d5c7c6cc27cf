"""Trials of a search, as a run and a search read them: the storage by its URL, and the pruner by its name.

Optuna is imported where it is used: runs without a search need none.
"""

import logging
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
    try:
        pruner: BasePruner = getattr(optuna.pruners, PRUNERS[keys["name"]])(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"hydra.sweeper.pruner ({keys['name']}): {first_line(error)}",
            code="out_of_range",
            key="hydra.sweeper.pruner",
        ) from None
    return pruner


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
        raise ConfigError(
            f"hydra.sweeper.storage is {without_passwords(url)}, which cannot be opened: {cause_of(error)}",
            code="storage",
            key="hydra.sweeper.storage",
        ) from None


def close_storages() -> None:
    """Close every storage that this process has opened."""
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


def cause_of(error: BaseException) -> str:
    """Return the first line of the error of the database below those of Optuna and SQLAlchemy."""
    origin: BaseException = error
    while (deeper := getattr(origin, "orig", None) or origin.__cause__) is not None:
        origin = deeper
    return " ".join(first_line(origin).split())
