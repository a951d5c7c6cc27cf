"""The launcher of `kdbench -m ... hydra/launcher=lockstep`: runs that can share batches and teacher train together.

Hydra imports every module of `hydra_plugins` at every start, so nothing heavy is imported at the top.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class LockstepLauncherConf:
    _target_: str = "hydra_plugins.kdbench_lockstep.LockstepLauncher"
    max_learners: Any = 8
    """Size of the largest group."""


ConfigStore.instance().store(group="hydra/launcher", name="lockstep", node=LockstepLauncherConf, provider="kdbench")


class LockstepLauncher(Launcher):
    """Groups the jobs and trains one group after the other in this process."""

    def __init__(self, max_learners: Any) -> None:
        self.given = max_learners
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None

    @property
    def max_learners(self) -> int:
        """Size of the largest group. Checked here, where Hydra does not wrap the error."""
        from kdbench.errors import ConfigError

        if type(self.given) is not int or self.given < 1:
            raise ConfigError(
                f"hydra.launcher.max_learners is {self.given!r}; it must be a whole number of at least 1",
                code="out_of_range",
                key="hydra.launcher.max_learners",
            )
        return self.given

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Execute jobs for a sweeper of Hydra's or another's; kdbench's own calls `launch_here` directly."""
        from kdbench.config import RunConfig
        from kdbench.config.composition import parse_composed
        from kdbench.sweep.execute import launch_here
        from kdbench.sweep.lockstep import group_planned
        from kdbench.sweep.plan import plan_run

        assert self.config is not None
        assert self.hydra_context is not None
        config, loader = self.config, self.hydra_context.config_loader
        composed: dict[tuple[str, ...], DictConfig] = {}

        def compose(number: int, overrides: tuple[str, ...]) -> RunConfig:
            composed[overrides] = loader.load_sweep_config(config, list(overrides))
            return parse_composed(composed[overrides], number)

        jobs = enumerate(map(tuple, job_overrides), initial_job_idx)
        runs = [plan_run(overrides, partial(compose, number), number) for number, overrides in jobs]
        for run in runs:
            if run.error:
                raise run.error
        results: dict[int, JobReturn] = {}
        for group in group_planned(runs, self.max_learners):
            for run, result in zip(group, launch_here(group, initial_job_idx + len(results)), strict=True):
                results[runs.index(run)] = JobReturn(
                    overrides=run.overrides,
                    cfg=composed[run.overrides],
                    status=JobStatus.COMPLETED,
                    _return_value=result,
                )
        return [results[n] for n in range(len(runs))]
