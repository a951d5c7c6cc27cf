"""The sweeper of kdbench: Hydra's basic one, but a job that cannot run does not keep the others from running.

Hydra imports every module of `hydra_plugins` at every start, so nothing heavy is imported at the top.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser


@dataclass
class KdbenchSweeperConf:
    _target_: str = "hydra_plugins.kdbench_sweeper.KdbenchSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = field(default_factory=dict)


ConfigStore.instance().store(group="hydra/sweeper", name="kdbench", node=KdbenchSweeperConf, provider="kdbench")


class KdbenchSweeper(BasicSweeper):
    """Composes and checks every job first, launches those that can run, and keeps one record of the sweep."""

    def sweep(self, arguments: list[str]) -> Any:
        from kdbench.sweep import Sweep

        assert self.config is not None
        assert self.hydra_context is not None
        assert self.launcher is not None
        loader = self.hydra_context.config_loader
        overrides = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        batches = self.split_arguments(overrides, self.max_batch_size)
        sweep = Sweep(self.config, [tuple(job) for batch in batches for job in batch], loader)
        # The basic launcher takes jobs one after the other anyway; handed over singly, the record is always up to date.
        size = 1 if isinstance(self.launcher, BasicLauncher) else self.max_batch_size
        return sweep.carry_out(self.launcher, size)
