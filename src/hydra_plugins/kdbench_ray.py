"""The launcher of `kdbench -m ... hydra/launcher=ray`: groups of runs as tasks of a Ray cluster.

Its keys, with their comments, are in conf/hydra/launcher/ray.yaml. Hydra imports every module of `hydra_plugins` at
every start, so nothing heavy is imported at the top.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from kdbench.config.schema import one_of, setting, typed, whole
from kdbench.errors import ConfigError
from kdbench.sweep.launcher import SECTION, GroupLauncher, LauncherKeys, check_engine, check_tasks_choose_devices

if TYPE_CHECKING:
    from kdbench.sweep.plan import JobResult, PlannedRun
    from kdbench.sweep.ray_cluster import Cluster, GroupOptions

SCHEDULING = {"spread": "SPREAD", "pack": "DEFAULT"}
"""Scheduling strategy of Ray for each value of `scheduling`."""
OWN_RESOURCES = ("CPU", "GPU", "memory")
"""Resources of Ray for which the launcher has keys."""


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number above 0."""
    return type(value) in (int, float) and 0 < value < float("inf")


def is_share(value: Any) -> bool:
    """Return whether a value is a whole number or a share of one, as Ray divides nothing else."""
    return is_number(value) and (value < 1 or value == int(value))


def is_gpu_share(value: Any) -> bool:
    """Return whether a value says which GPUs a group gets, at most one."""
    return value == "auto" or (value == 0 and type(value) is int) or (is_number(value) and value <= 1)


def are_amounts(value: Mapping[str, Any]) -> bool:
    """Return whether values are amounts of custom resources."""
    return all(name not in OWN_RESOURCES and is_number(amount) for name, amount in value.items())


def is_address(value: Any) -> bool:
    """Return whether a value is the address of a cluster, or null for one of this machine."""
    if value is None or value == "auto":
        return True
    host, _, port = str(value).removeprefix("ray://").rpartition(":")
    return isinstance(value, str) and bool(host) and "/" not in host and port.isdecimal() and 0 < int(port) < 65536


@dataclass
class RayKeys(LauncherKeys):
    """The keys of conf/hydra/launcher/ray.yaml."""

    address: Any = setting(is_address, "null, auto, HOST:PORT or ray://HOST:PORT")
    cpus: Any = setting(is_share, "a whole number of at least 1, or a share of one core, such as 0.5")
    gpus: Any = setting(is_gpu_share, "auto, 0, 1, or the share of a GPU that a group gets, such as 0.25")
    memory_gb: Any = setting(lambda value: value is None or is_number(value), "a number above 0, or null")
    resources: dict[str, Any] = setting(
        are_amounts,
        "names of resources with their amounts, such as {fast_disk: 1}, without CPU, GPU and memory, which are keys of "
        "their own",
    )
    scheduling: str = one_of(*SCHEDULING)
    autoscaling: bool = setting()
    retries: int = whole(0)
    connect_seconds: int = whole(1)
    environment: list[str] = setting(all, "a list of beginnings of names, such as [KDBENCH_, WANDB_]")


class RayLauncher(GroupLauncher):
    """Launcher of groups as tasks of a Ray cluster; a group whose node was lost is started again.

    Args: see conf/hydra/launcher/ray.yaml.
    """

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.cluster: Cluster | None = None

    @cached_property
    def keys(self) -> RayKeys:
        keys: RayKeys = typed(RayKeys, self.given, SECTION)
        return keys

    def check(self, runs: Sequence["PlannedRun"]) -> None:
        super().check(runs)
        options = self.options()
        check_devices(runs, options.gpus)
        check_engine("ray", "ray", "ray")
        if self.keys.address is not None:
            check_tasks_choose_devices(runs, "give hydra.launcher.gpus for the share of a GPU that a group gets")
        from kdbench.sweep.ray_cluster import check_local

        device = next((run.config.runtime.device for run in runs if run.composed), "auto")  # a sweep has one
        if self.keys.address is None:
            check_local(options, device)  # it is started once there is something to execute
        else:
            self.open().check(options, device)

    def launch_groups(
        self, groups: Sequence[Sequence["PlannedRun"]]
    ) -> Generator[tuple[int, Sequence["JobResult | None"]], None, None]:
        from kdbench.sweep.ray_tasks import run_groups

        try:
            if groups:
                yield from run_groups(groups, self.open(), self.options())
        finally:
            self.close()

    def open(self) -> "Cluster":
        """Return the cluster, connected: once until it is closed, and anew for each stage of a study."""
        from kdbench.sweep.ray_cluster import connect, start_local

        if self.cluster is None:
            address = self.keys.address
            self.cluster = connect(address, self.keys.connect_seconds) if address else start_local()
        return self.cluster

    def close(self) -> None:
        """Leave the cluster, or end it if this launcher has started it."""
        if self.cluster:
            self.cluster.close()
        self.cluster = None

    def options(self) -> "GroupOptions":
        """Return what each group gets."""
        from kdbench.sweep.ray_cluster import GroupOptions

        keys = self.keys
        return GroupOptions(
            cpus=keys.cpus,
            gpus=None if keys.gpus == "auto" else keys.gpus,
            memory_gb=keys.memory_gb,
            resources=keys.resources,
            strategy=SCHEDULING[keys.scheduling],
            autoscaling=keys.autoscaling,
            retries=keys.retries,
            environment=tuple(keys.environment),
        )


def check_devices(runs: Sequence["PlannedRun"], gpus: float | None) -> None:
    """Check that no run names a device that it does not get from Ray.

    Raises:
        ConfigError: a run names one.
    """
    for device in dict.fromkeys(run.config.runtime.device for run in runs if run.composed):
        if device.startswith("cuda:"):
            raise ConfigError(
                f"runtime.device={device} with hydra/launcher=ray: Ray chooses a GPU for each group; "
                "use runtime.device=auto, and hydra.launcher.gpus for the share that a group gets",
                code="conflicting_options",
                key="runtime.device",
            )
        if device == "cuda" and gpus == 0:
            raise ConfigError(
                "runtime.device=cuda needs a GPU, and hydra.launcher.gpus=0 gives groups none; use "
                "hydra.launcher.gpus=1, a share of one, or auto",
                code="conflicting_options",
                key="hydra.launcher.gpus",
            )
