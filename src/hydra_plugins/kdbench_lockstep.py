"""The launcher of `kdbench -m ... hydra/launcher=lockstep`: jobs that can share batches and teacher train together.

Hydra imports every module of `hydra_plugins` at every start, so nothing heavy is imported at the top.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
    """Jobs of a group at most."""


ConfigStore.instance().store(group="hydra/launcher", name="lockstep", node=LockstepLauncherConf, provider="kdbench")


class LockstepLauncher(Launcher):
    """Groups what it is given, and trains one group after the other in this process."""

    def __init__(self, max_learners: Any) -> None:
        self.given = max_learners
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None

    @property
    def max_learners(self) -> int:
        """Of a group. Checked here, where Hydra does not wrap what is raised."""
        from kdbench.errors import ConfigError

        if type(self.given) is not int or self.given < 1:
            raise ConfigError(f"hydra.launcher.max_learners is {self.given!r}; it may be a whole number of at least 1")
        return self.given

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        from kdbench import lockstep
        from kdbench.config import parse

        assert self.config is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        composed = [loader.load_sweep_config(self.config, list(overrides)) for overrides in job_overrides]
        configs = [parse(without_hydra(config), config.hydra.runtime.choices) for config in composed]
        returns: dict[int, JobReturn] = {}
        for group in lockstep.groups(configs, self.max_learners):
            results = lockstep.launch(
                [configs[n] for n in group], [job_overrides[n] for n in group], initial_job_idx + len(returns)
            )
            for n, result in zip(group, results, strict=True):
                returns[n] = JobReturn(
                    overrides=job_overrides[n], cfg=composed[n], status=JobStatus.COMPLETED, _return_value=result
                )
        return [returns[n] for n in range(len(composed))]


def without_hydra(config: DictConfig) -> DictConfig:
    from omegaconf import OmegaConf

    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
