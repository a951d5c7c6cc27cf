"""The launcher of `kdbench -m ... hydra/launcher=ray`: groups of runs as tasks of a Ray cluster.

Its keys, with their comments, are in conf/hydra/launcher/ray.yaml. Hydra imports every module of `hydra_plugins` at
every start, so nothing heavy is imported at the top.
"""

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hydra_plugins.kdbench_launcher import GroupLauncher, check_engine, whole_number, wrong_value

if TYPE_CHECKING:
    from kdbench.sweep.plan import JobResult, PlannedRun
    from kdbench.sweep.ray_cluster import Cluster, GroupOptions

SCHEDULING = {"spread": "SPREAD", "pack": "DEFAULT"}
"""Scheduling strategy of Ray for each value of `scheduling`."""


class RayLauncher(GroupLauncher):
    """Executes every group of runs as a task of a Ray cluster, and starts a group again whose node was lost.

    Args: see conf/hydra/launcher/ray.yaml.
    """

    def __init__(self, max_learners: Any, **keys: Any) -> None:
        super().__init__(max_learners)
        self.keys = keys
        self.cluster: Cluster | None = None

    def check(self, runs: Sequence["PlannedRun"]) -> None:
        super().check(runs)
        options = self.options()
        check_devices(runs, options.gpus)
        check_engine("ray", "ray", "ray")
        from kdbench.sweep.ray_cluster import check_local

        whole_number("connect_seconds", self.keys["connect_seconds"])
        if checked_address(self.keys["address"]) is None:
            check_local(options)  # it is started once there is something to execute
        else:
            self.open().check(options)

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
            address = checked_address(self.keys["address"])
            self.cluster = connect(address, self.keys["connect_seconds"]) if address else start_local()
        return self.cluster

    def close(self) -> None:
        """Leave the cluster, or end it if this launcher has started it."""
        if self.cluster:
            self.cluster.close()
        self.cluster = None

    def options(self) -> "GroupOptions":
        """Return what each group gets, checked.

        Raises:
            ConfigError: a key of the launcher has a value that it may not have.
        """
        from kdbench.sweep.ray_cluster import GroupOptions

        keys = self.keys
        return GroupOptions(
            cpus=share("cpus", keys["cpus"], "a whole number of at least 1, or a share of one core, such as 0.5"),
            gpus=None if keys["gpus"] == "auto" else gpu_share(keys["gpus"]),
            memory_gb=None if keys["memory_gb"] is None else positive("memory_gb", keys["memory_gb"]),
            resources=amounts(keys["resources"]),
            strategy=SCHEDULING[one_of("scheduling", keys["scheduling"], tuple(SCHEDULING))],
            autoscaling=one_of("autoscaling", keys["autoscaling"], (False, True)),
            retries=whole_number("retries", keys["retries"], 0),
            environment=prefixes(keys["environment"]),
        )


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number above 0."""
    return type(value) in (int, float) and 0 < value < float("inf")


def positive(name: str, value: Any) -> float:
    """Return a key's value, a number above 0. Errors: see `wrong_value`."""
    if not is_number(value):
        raise wrong_value(name, value, "a number above 0")
    return value


def share(name: str, value: Any, valid: str) -> float:
    """Return a key's value, whole or below 1, as Ray divides nothing else. Errors: see `wrong_value`."""
    if not is_number(value) or (value > 1 and value != int(value)):
        raise wrong_value(name, value, valid)
    return value


def gpu_share(value: Any) -> float:
    """Return the GPUs of a group, at most one. Errors: see `wrong_value`."""
    if value == 0 and type(value) is int:
        return 0
    if not is_number(value) or value > 1:
        raise wrong_value("gpus", value, "auto, 0, 1, or the share of a GPU that a group gets, such as 0.25")
    return value


def one_of(name: str, value: Any, valid: Sequence[Any]) -> Any:
    """Return a key's value, one of a few. Errors: see `wrong_value`."""
    if value not in valid or type(value) is not type(valid[0]):
        raise wrong_value(name, value, " or ".join(str(option).lower() for option in valid))
    return value


def amounts(value: Any) -> dict[str, float]:
    """Return the amount of each custom resource that a group gets. Errors: see `wrong_value`."""
    if not isinstance(value, Mapping) or not all(isinstance(k, str) and is_number(v) for k, v in value.items()):
        raise wrong_value("resources", value, "names of resources with their amounts, such as {fast_disk: 1}")
    for name, key in (("CPU", "cpus"), ("GPU", "gpus"), ("memory", "memory_gb")):
        if name in value:
            raise wrong_value("resources", dict(value), f"without {name}, which is hydra.launcher.{key}")
    return dict(value)


def prefixes(value: Any) -> tuple[str, ...]:
    """Return the prefixes of the environment variables that tasks get. Errors: see `wrong_value`."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(v, str) and v for v in value):
        raise wrong_value("environment", value, "a list of beginnings of names, such as [KDBENCH_, WANDB_]")
    return tuple(value)


def checked_address(value: Any) -> str | None:
    """Return the address of a cluster, or None for one of this machine. Errors: see `wrong_value`."""
    if value is None or value == "auto":
        return value
    host, _, port = str(value).removeprefix("ray://").rpartition(":")
    if not isinstance(value, str) or not host or "/" in host or not (port.isdecimal() and 0 < int(port) < 65536):
        raise wrong_value("address", value, "null, auto, HOST:PORT or ray://HOST:PORT")
    return value


def check_devices(runs: Sequence["PlannedRun"], gpus: float | None) -> None:
    """Check that no run names a device that it does not get from Ray.

    Raises:
        ConfigError: a run names one.
    """
    from kdbench.errors import ConfigError

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
