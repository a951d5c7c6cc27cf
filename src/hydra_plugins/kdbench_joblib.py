"""The launcher of `kdbench -m ... hydra/launcher=joblib`: the runs of a sweep at the same time on several devices.

Hydra imports every module of `hydra_plugins` at every start, so nothing heavy is imported at the top.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kdbench.config.schema import optional, setting, typed, whole
from kdbench.sweep.launcher import SECTION, GroupLauncher, LauncherKeys, check_engine

if TYPE_CHECKING:
    from kdbench.sweep.devices import Device
    from kdbench.sweep.plan import JobResult, PlannedRun


@dataclass
class JoblibKeys(LauncherKeys):
    """The keys of conf/hydra/launcher/joblib.yaml."""

    devices: Any = setting()
    runs_per_device: Any = setting(
        lambda value: value == "auto" or (type(value) is int and value >= 1), "auto or a whole number of at least 1"
    )
    n_jobs: int | None = optional(whole(1))
    exclusive: bool = setting()


class JoblibLauncher(GroupLauncher):
    """Launcher whose worker processes (loky, of joblib) train groups; each holds a device or a share of it.

    Args: the keys of conf/hydra/launcher/joblib.yaml.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.devices: list[Device] = []
        """The devices of the sweep that was checked last."""
        self.kind: str | None = None
        """Kind of device that its runs ask for."""

    @cached_property
    def keys(self) -> JoblibKeys:
        keys: JoblibKeys = typed(JoblibKeys, self.given, SECTION)
        return keys

    def check(self, runs: Sequence["PlannedRun"]) -> None:
        super().check(runs)
        check_engine("joblib", "joblib", "joblib")
        from kdbench.sweep.devices import check_names, check_runtime_device, devices_of_sweep

        names = check_names(self.keys.devices)
        configs = [run.config for run in runs if run.composed]
        self.kind = check_runtime_device([config.runtime.device for config in configs], names)
        threads = [config.runtime.threads for config in configs if config.runtime.threads != "auto"]
        shares = None if self.keys.runs_per_device == "auto" else self.keys.runs_per_device
        self.devices = devices_of_sweep(
            names, self.kind, shares, self.keys.n_jobs, len(configs), max(threads, default=None)
        )

    def group(self, runs: Sequence["PlannedRun"]) -> list[list["PlannedRun"]]:
        """Return runs in groups that are as large as they can be without a worker that has nothing to do."""
        from kdbench.sweep.lockstep import group_planned

        workers = sum(device.workers for device in self.devices)
        for largest in range(min(self.max_learners, len(runs)) or 1, 0, -1):
            groups = group_planned(runs, largest)
            if len(groups) >= min(workers, len(runs)):
                break
        return groups

    def launch_groups(
        self, groups: Sequence[Sequence["PlannedRun"]]
    ) -> Generator[tuple[int, Sequence["JobResult | None"]], None, None]:
        from kdbench.sweep.devices import DeviceLocks
        from kdbench.sweep.processes import execute_groups

        device = self.kind if self.kind in ("cpu", "mps") else None
        return execute_groups(groups, self.devices, DeviceLocks(self.keys.exclusive), device)
