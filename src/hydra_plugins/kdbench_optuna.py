"""The sweeper of `kdbench -m hydra/sweeper=optuna`: a search by validation accuracy, with Optuna.

Its keys and their defaults are in conf/hydra/sweeper/optuna.yaml. Hydra imports every module of `hydra_plugins` at
every start, so nothing heavy is imported at the top.
"""

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.kdbench_sweeper import KdbenchSweeper
from kdbench.sweep.launcher import GroupLauncher

if TYPE_CHECKING:
    from kdbench.config import RunConfig
    from kdbench.sweep.plan import JobResult, PlannedRun


class OptunaSweeper(KdbenchSweeper):
    """Sweeper that draws settings from a space, launches their runs, and keeps every trial in a database."""

    def __init__(self, **given: Any) -> None:
        super().__init__(max_batch_size=None, params=None)
        self.returns: list[JobReturn] = []

    def sweep(self, arguments: list[str]) -> Any:
        from kdbench.search.command import search

        assert self.config is not None
        node: Any = OmegaConf.to_container(self.config.hydra.sweeper, resolve=True)
        search(self, node, arguments)
        return self.returns

    def check_launcher(self) -> None:
        """Check the launcher's keys and packages before the first trial is drawn. Errors: see `GroupLauncher.check`."""
        if isinstance(self.launcher, GroupLauncher):
            self.launcher.check([])

    def compose_job(self, number: int, overrides: tuple[str, ...]) -> "RunConfig":
        """Return the config of one run, with the networks of its pair. Arguments and errors: see `compose`."""
        from kdbench.config.composition import with_networks_of_pair

        assert self.hydra_context is not None
        return self.compose(number, tuple(with_networks_of_pair(overrides, self.hydra_context.config_loader)))

    def node(self, overrides: tuple[str, ...]) -> DictConfig:
        """Return the config that overrides compose, without a check of its values.

        Raises:
            ConfigError: Hydra cannot compose it.
        """
        from kdbench.config.composition import with_networks_of_pair, without_hydra
        from kdbench.config.composition_errors import composition_error

        assert self.config is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        try:
            return without_hydra(loader.load_sweep_config(self.config, with_networks_of_pair(overrides, loader)))
        except Exception as error:  # Hydra's own errors, and what it stumbles over
            raise composition_error(error, overrides) from None

    def launch_planned(
        self, runs: Sequence["PlannedRun"]
    ) -> "Generator[tuple[PlannedRun, JobResult | None], None, None]":
        """Execute runs at once with the launcher, in groups by one of kdbench's own; yield results as they end."""
        if isinstance(self.launcher, GroupLauncher):
            self.launcher.check(runs)
            groups = self.launcher.group(runs)
            with closing(self.launcher.launch_groups(groups)) as launched:
                for position, results in launched:
                    yield from zip(groups[position], results, strict=True)
        else:
            together = [[run] for run in runs] if isinstance(self.launcher, BasicLauncher) else [runs]
            for group in together:
                yield from zip(group, self.launch(self.returns, group, 0), strict=True)

    @property
    def loader(self) -> ConfigLoader:
        assert self.hydra_context is not None
        return self.hydra_context.config_loader
