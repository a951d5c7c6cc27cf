"""The base of kdbench's own launchers, which get groups of planned runs; Hydra's get the overrides of each run.

The launchers are in `hydra_plugins`, of which Hydra imports every module at every start, so nothing heavy is imported
at the top.
"""

import importlib.util
from abc import abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from kdbench.config.schema import typed, whole
from kdbench.errors import ConfigError
from kdbench.system.torchrun import starts_several

if TYPE_CHECKING:
    from kdbench.config import RunConfig
    from kdbench.sweep.plan import JobResult, PlannedRun


SECTION = "hydra.launcher"


@dataclass
class LauncherKeys:
    """The keys that all launchers have."""

    max_learners: int = whole(1)


class GroupLauncher(Launcher):
    """Launcher of groups of planned runs; those of a group train in lockstep in one process.

    Args:
        given: keys of the launcher, as the user gives them.
    """

    def __init__(self, **given: Any) -> None:
        self.given = {name: literal(value) for name, value in given.items()}
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None

    @cached_property
    def keys(self) -> LauncherKeys:
        """The checked keys. They are read at their first use, where Hydra does not wrap the error.

        Raises:
            ConfigError: a key is not known, or has a value that it may not have.
        """
        keys: LauncherKeys = typed(LauncherKeys, self.given, SECTION)
        return keys

    @property
    def max_learners(self) -> int:
        """Size of the largest group; 1: every run alone."""
        return self.keys.max_learners

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.hydra_context = config, hydra_context

    def check(self, runs: Sequence["PlannedRun"]) -> None:
        """Check the launcher's keys, the installed packages and what the runs need of both, before any run starts.

        Args:
            runs: all runs of a sweep, refused ones too.

        Raises:
            ConfigError: they do not fit.
        """
        _ = self.keys  # which checks them

    def group(self, runs: Sequence["PlannedRun"]) -> list[list["PlannedRun"]]:
        """Return runs, none of them refused, in groups for `launch_groups`."""
        from kdbench.sweep.lockstep import group_planned

        return group_planned(runs, self.max_learners)

    @abstractmethod
    def launch_groups(
        self, groups: Sequence[Sequence["PlannedRun"]]
    ) -> Generator[tuple[int, Sequence["JobResult | None"]], None, None]:
        """Execute groups; yield the position of each and its results as they end. None: the run's process died.

        A generator that is closed before its end stops what it has started. See `kdbench.sweep.execute.Launch`.
        """

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Execute jobs for a sweeper of Hydra's or another's; kdbench's own calls `launch_groups`."""
        from kdbench.config.composition import parse_composed
        from kdbench.sweep.plan import plan_run

        assert self.config is not None
        assert self.hydra_context is not None
        config, loader = self.config, self.hydra_context.config_loader
        composed: dict[tuple[str, ...], DictConfig] = {}

        def compose(number: int, overrides: tuple[str, ...]) -> "RunConfig":
            composed[overrides] = loader.load_sweep_config(config, list(overrides))
            return parse_composed(composed[overrides], number)

        jobs = enumerate(map(tuple, job_overrides), initial_job_idx)
        runs = [plan_run(overrides, partial(compose, number), number) for number, overrides in jobs]
        for run in runs:
            if run.error:
                raise run.error
        self.check(runs)
        groups = self.group(runs)
        results: dict[int, JobReturn] = {}
        for position, ended in self.launch_groups(groups):
            for run, result in zip(groups[position], ended, strict=True):
                run.finish(result)
                results[runs.index(run)] = JobReturn(
                    overrides=run.overrides,
                    cfg=composed[run.overrides],
                    status=JobStatus.COMPLETED,
                    _return_value=run.result if result is None else result,
                )
        return [results[n] for n in range(len(runs))]


def literal(value: Any) -> Any:
    """Return a value of Hydra's as plain data, in which ${...} is text by now, such as a variable of a shell."""
    if OmegaConf.is_config(value):
        value = OmegaConf.to_container(value, resolve=True)
    if isinstance(value, dict):
        return {str(name): literal(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [literal(inner) for inner in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def check_engine(launcher: str, package: str, extra: str) -> None:
    """Check that a launcher can start processes of its own: its engine is installed, and torchrun has not started this.

    Args:
        launcher: name of the option of hydra/launcher.
        package: name by which the package is imported.
        extra: extra of kdbench that installs it.

    Raises:
        ConfigError: it cannot.
    """
    if starts_several():
        raise ConfigError(
            f"hydra/launcher={launcher} under torchrun: torchrun has one run at a time on all devices, the launcher a "
            "run on each; use one of them",
            code="usage",
            key="hydra/launcher",
        )
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"hydra/launcher={launcher} needs the package {package}; install it with: pip install 'kdbench[{extra}]'",
            code="missing_extra",
            key="hydra/launcher",
        )


def check_tasks_choose_devices(runs: Sequence["PlannedRun"], advice: str) -> None:
    """Check that no run names a device that this machine lacks, on an engine that executes it on another machine.

    Args:
        runs: runs of a sweep.
        advice: the way to ask the engine for a GPU.

    Raises:
        ConfigError: a run was refused for its device.
    """
    for run in runs:
        if run.error and run.error.code == "unavailable_device":
            given = next((text for text in run.overrides if text.startswith("runtime.device=")), "runtime.device")
            raise ConfigError(
                f"{given}: this machine has no such device, and may differ from those that execute the runs; leave "
                f"runtime.device=auto, which is decided there, and {advice}",
                code="unavailable_device",
                key="runtime.device",
            )
