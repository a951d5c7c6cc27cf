"""A search from its command line to its results."""

import math
from collections import Counter
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from kdbench.config import RunConfig
from kdbench.errors import BusyError, ConfigError, KdbenchError, RunError, report_error, without_passwords
from kdbench.rundir.files import check_writable, hash_of
from kdbench.runner.run import resolve_run
from kdbench.runner.trials import build_pruner, closing_storages
from kdbench.search.options import Options
from kdbench.search.search import Search, folder_of, left_over
from kdbench.search.settings import GRID, SECTION, SearchKeys, directions_of, read_keys, storage_url
from kdbench.search.space import read_space
from kdbench.search.study import Definition, check_root, open_arms
from kdbench.search.trials import MOST_SETTINGS, Arm, Members

if TYPE_CHECKING:
    from kdbench.sweep.plan import JobResult, PlannedRun


class Sweeper(Protocol):
    """Part of Hydra's sweeper that a search uses."""

    @property
    def loader(self) -> ConfigLoader: ...

    def check_launcher(self) -> None: ...

    def compose_job(self, number: int, overrides: tuple[str, ...]) -> RunConfig: ...

    def node(self, overrides: tuple[str, ...]) -> DictConfig: ...

    def launch_planned(
        self, runs: "Sequence[PlannedRun]"
    ) -> "Generator[tuple[PlannedRun, JobResult | None], None, None]": ...


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

    keys = read_keys(node)
    space = read_space([*keys.arguments(), *arguments], sweeper.loader)
    sweeper.check_launcher()
    options = Options(space, lambda overrides: sweeper.compose_job(0, overrides), sweeper.node)
    first = options.check()
    check_validation(first)
    check_grid(keys, options)
    build_pruner(keys.pruner, first.recipe.epochs)
    directions = directions_of(keys, first.objectives)
    definition = Definition.of(space, keys.groups, first.objectives, directions, base_of(options))
    name = keys.study_name or definition.name
    root = Path(first.output_root).expanduser()
    check_writable(root / "searches")
    url = storage_url(keys.storage, root / "searches" / f"{name}.db")
    members = Members(root / ".locks", name)
    with members.present(), closing_storages():
        with members.alone():
            arms = open_arms(name, url, keys, options, definition, first.recipe.epochs)
            for arm in arms:
                check_root(arm.study, root)
        work = Search(
            name, url, keys, first.objectives, arms, members, sweeper.compose_job, sweeper.launch_planned,
            waits=first.on_busy == "wait",
        )  # fmt: skip

        def write() -> None:
            folder = folder_of(root, name)
            try:
                with members.alone():  # of two processes that end together
                    write_results(work, folder, first, config_dir_of(sweeper.loader))
            except OSError as error:  # of the lock, for example on a full disk
                raise RunError(
                    f"the results of search {name} cannot be written to {folder}: {error}",
                    code="not_writable",
                    key="output_root",
                ) from error

        print(f"search {name}: {without_passwords(url)}", flush=True)
        try:
            work.work()
        except BaseException:
            try:
                write()
            except KdbenchError as error:  # it must not replace the one that ended the search
                report_error(error)
            raise
        write()
        end(arms)


def config_dir_of(loader: ConfigLoader) -> str | None:
    """Return the folder that the command gives as --config-dir."""
    return next((source.path for source in loader.get_sources() if source.provider == "command-line"), None)


def end(arms: Sequence[Arm]) -> None:
    """Raise the error of a search in which trials are missing. Errors: see `search`."""
    if left := left_over(arms):
        raise BusyError(
            f"trials that were not finished: {left}; the same command repeats them", code="busy", key="on_busy"
        )
    if not any(arm.finished() for arm in arms):
        raise RunError("no trial could run; the error of each is above", code="failed_runs")


def base_of(options: Options) -> str:
    """Return the run keys of the first setting of each combination of options, as one text."""
    found = []
    for combination in options.space.combinations():
        try:
            found.append(resolve_run(options.first_config([combination]))[1].key)
        except ConfigError:  # its trials are refused one by one
            found.append("")
    return found[0] if len(found) == 1 else hash_of({"keys": found})


def check_grid(keys: SearchKeys, options: Options) -> None:
    """Check that a grid has a number of settings that can be listed.

    Raises:
        ConfigError: a key has any number of a range, or there are too many settings.
    """
    if keys.sampler["name"] != GRID:
        return
    endless = next((d for d in options.space.dimensions if d.size is None), None)
    if endless:
        raise ConfigError(
            f"hydra/sweeper/sampler=grid tries every setting, and {endless.key} is any number of an interval; use "
            f"{endless.key}=range(start,stop,step) or choice(a,b), or another sampler",
            code="mismatch",
            key="hydra/sweeper/sampler",
        )
    counts = Counter[tuple[object, ...]]()
    for combination in options.space.combinations():
        arm = tuple(combination.get(group) for group in keys.groups)
        counts[arm] += math.prod(d.size or 1 for d in options.dimensions(combination))
    most = max(counts.values())
    if most > MOST_SETTINGS:
        raise ConfigError(
            f"hydra/sweeper/sampler=grid tries every setting, and there are {most:,}, more than {MOST_SETTINGS:,}; "
            f"give fewer values, or another sampler, which draws {SECTION}.n_trials of them",
            code="out_of_range",
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
