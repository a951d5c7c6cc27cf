"""The launcher of `kdbench -m ... hydra/launcher=joblib`: the runs of a sweep at the same time on several devices.

Hydra imports every module of `hydra_plugins` at every start, so nothing heavy is imported at the top.
"""

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import ListConfig

from hydra_plugins.kdbench_launcher import GroupLauncher, check_engine, whole_number

if TYPE_CHECKING:
    from kdbench.sweep.devices import Device
    from kdbench.sweep.plan import JobResult, PlannedRun


class JoblibLauncher(GroupLauncher):
    """Trains groups in worker processes (loky, of joblib), each of which holds a device or a share of it.

    Args: the keys of conf/hydra/launcher/joblib.yaml.
    """

    def __init__(self, devices: Any, runs_per_device: Any, n_jobs: Any, max_learners: Any, exclusive: Any) -> None:
        super().__init__(max_learners)
        self.given_devices = list(devices) if isinstance(devices, ListConfig) else devices
        self.runs_per_device = runs_per_device
        self.n_jobs = n_jobs
        self.exclusive = exclusive
        self.devices: list[Device] = []
        """The devices of the sweep that was checked last."""
        self.kind: str | None = None
        """Kind of device that its runs ask for."""

    def check(self, runs: Sequence["PlannedRun"]) -> None:
        super().check(runs)
        check_engine("joblib", "joblib", "joblib")
        from kdbench.errors import ConfigError
        from kdbench.sweep.devices import check_names, check_runtime_device, devices_of_sweep

        shares = (
            None
            if self.runs_per_device == "auto"
            else whole_number("runs_per_device", self.runs_per_device, otherwise="auto or ")
        )
        most = None if self.n_jobs is None else whole_number("n_jobs", self.n_jobs, otherwise="null or ")
        if not isinstance(self.exclusive, bool):
            raise ConfigError(
                f"hydra.launcher.exclusive is {self.exclusive!r}; it must be true or false",
                code="wrong_type",
                key="hydra.launcher.exclusive",
            )
        names = check_names(self.given_devices)
        configs = [run.config for run in runs if run.composed]
        self.kind = check_runtime_device([config.runtime.device for config in configs], names)
        threads = [config.runtime.threads for config in configs if config.runtime.threads != "auto"]
        self.devices = devices_of_sweep(names, self.kind, shares, most, len(configs), max(threads, default=None))

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
        return execute_groups(groups, self.devices, DeviceLocks(self.exclusive), device)
