"""A search from its command line to its results."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from kdbench.config import RunConfig
from kdbench.errors import BusyError, ConfigError, RunError, without_passwords
from kdbench.rundir.files import check_writable
from kdbench.runner.run import resolve_run
from kdbench.runner.trials import build_pruner
from kdbench.search.options import Options
from kdbench.search.search import Search, folder_of, left_over
from kdbench.search.settings import GRID, SearchKeys, check_optuna, directions_of, read_keys, storage_url
from kdbench.search.space import Space, read_space
from kdbench.search.study import Definition, check_root, open_arms
from kdbench.search.trials import Arm, Members

if TYPE_CHECKING:
    from kdbench.sweep.plan import JobResult, PlannedRun


class Sweeper(Protocol):
    """What the search needs of Hydra's sweeper."""

    @property
    def loader(self) -> ConfigLoader: ...

    def check_launcher(self) -> None: ...

    def compose_job(self, number: int, overrides: tuple[str, ...]) -> RunConfig: ...

    def node(self, overrides: tuple[str, ...]) -> DictConfig: ...

    def launch_planned(self, runs: "Sequence[PlannedRun]") -> "Iterator[tuple[PlannedRun, JobResult | None]]": ...


def search(sweeper: Sweeper, node: dict[str, Any], arguments: Sequence[str]) -> None:
    """Execute a search, or continue it, and write its results.

    Args:
        sweeper: composes and launches runs.
        node: Hydra's section of the sweeper.
        arguments: overrides of the command line that are no keys of Hydra's.

    Raises:
        ConfigError: the search cannot run; nothing was written.
        RunError: trials could not run, or the storage failed.
        BusyError: other processes hold trials, or runs.
        Interrupted: a stop was requested.
    """
    from kdbench.search.results import write_results

    check_optuna()
    keys = read_keys(node)
    space = read_space([*keys.arguments(), *arguments], sweeper.loader)
    sweeper.check_launcher()
    options = Options(space, lambda overrides: sweeper.compose_job(0, overrides), sweeper.node)
    first = options.check()
    check_validation(first)
    check_grid(keys, space)
    build_pruner(keys.pruner, first.recipe.epochs)
    directions = directions_of(keys, first.objectives)
    definition = Definition.of(space, keys.groups, first.objectives, directions, resolve_run(first)[1].key)
    name = keys.study_name or definition.name
    root = Path(first.output_root).expanduser()
    check_writable(root / "searches")
    url = storage_url(keys.storage, root / "searches" / f"{name}.db")
    members = Members(root / ".locks", name)
    with members.present():
        with members.alone():
            arms = open_arms(name, url, keys, options, definition, first.recipe.epochs)
            for arm in arms:
                check_root(arm.study, root)
        work = Search(
            name, url, keys, first.objectives, arms, members, sweeper.compose_job, sweeper.launch_planned,
            waits=first.on_busy == "wait",
        )  # fmt: skip
        try:
            print(f"search {name}: {without_passwords(url)}", flush=True)
            work.work()
        finally:
            write_results(work, folder_of(root, name), first)
    end(arms)


def end(arms: Sequence[Arm]) -> None:
    """Raise the error of a search in which trials are missing. Errors: see `search`."""
    if left := left_over(arms):
        raise BusyError(
            f"trials that were not finished: {left}; the same command repeats them", code="busy", key="on_busy"
        )
    if not any(arm.finished() for arm in arms):
        raise RunError("no trial could run; the error of each is above", code="failed_runs")


def check_grid(keys: SearchKeys, space: Space) -> None:
    """Check that a grid has a number of settings.

    Raises:
        ConfigError: a key has any number of a range.
    """
    endless = next((d for d in space.dimensions if d.size is None), None)
    if keys.sampler["name"] == GRID and endless:
        raise ConfigError(
            f"hydra/sweeper/sampler=grid tries every setting, and {endless.key} is any number of an interval; use "
            f"{endless.key}=range(start,stop,step) or choice(a,b), or another sampler",
            code="mismatch",
            key="hydra/sweeper/sampler",
        )


def check_validation(config: RunConfig) -> None:
    """Check that runs have a validation accuracy.

    Raises:
        ConfigError: they train on the validation images.
    """
    if "val_acc" in config.objectives and not config.data.params.validation:
        raise ConfigError(
            "data.validation=false trains on the validation images, by which a search chooses; leave it out here, and "
            "give it to the final runs",
            code="no_validation",
            key="data.validation",
        )
