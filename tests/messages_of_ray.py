"""Calls with a user's mistakes in the launcher for Ray; tests/test_messages.py holds their messages."""

import socket
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from hydra_plugins.kdbench_ray import RayLauncher, check_devices
from kdbench.config import CONF_DIR
from kdbench.sweep import ray_cluster
from kdbench.sweep.ray_cluster import Cluster, GroupOptions, connect, start_local
from kdbench.sweep.ray_tasks import run_groups

ADDRESS = "127.0.0.1:1"


class FourCores(Cluster):
    """A cluster of one node, to which nothing is connected."""

    def nodes(self) -> list[dict[str, float]]:
        return [{"CPU": 4.0, "memory": 8e9}]


class Lost(FourCores):
    """A cluster of which the connection is lost."""

    def room(self, request: Mapping[str, float]) -> int:
        raise ConnectionError("the head node is gone")


def keys(**given: Any) -> object:
    """Check the launcher's keys, some of them changed."""
    file = OmegaConf.merge(OmegaConf.load(CONF_DIR / "hydra/launcher/ray.yaml"), {"address": None, **given})
    return RayLauncher(**{str(key): value for key, value in file.items() if key != "_target_"}).check([])


def device(name: str, gpus: float | None) -> None:
    """Check a run with a device."""
    run: Any = SimpleNamespace(composed=True, config=SimpleNamespace(runtime=SimpleNamespace(device=name)))
    check_devices([run], gpus)


def ray_raises(call: Callable[[], object], error: Exception) -> object:
    """Return a call's result while `ray.init` raises an error."""

    def fail(**_: Any) -> None:
        raise error

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(ray_cluster, "initialize", fail)
        patched.setattr(Cluster, "close", lambda _: None)
        patched.setattr(socket, "create_connection", lambda *_, **__: SimpleNamespace(close=lambda: None))
        for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            patched.setenv(name, "")
        return call()


def connected(address: str, error: Exception) -> object:
    """Connect to a cluster that refuses."""
    return ray_raises(lambda: connect(address, 5), error)


def lost() -> None:
    """Execute a group on a cluster of which the connection is lost."""
    runtime, checkpoint = SimpleNamespace(device="cpu"), SimpleNamespace(grace_seconds=1.0)
    run: Any = SimpleNamespace(config=SimpleNamespace(runtime=runtime, checkpoint=checkpoint))
    list(run_groups([[run]], Lost(ADDRESS), GroupOptions()))


RAY_CASES: list[Callable[[], object]] = [
    lambda: keys(cpu=2),
    lambda: keys(cpus=1.5), lambda: keys(gpus=2), lambda: keys(memory_gb=0), lambda: keys(resources="disk"),
    lambda: keys(resources={"GPU": 1}), lambda: keys(scheduling="even"), lambda: keys(autoscaling="yes"),
    lambda: keys(retries=-1), lambda: keys(environment="KDBENCH_"), lambda: keys(connect_seconds=0),
    lambda: keys(address="localhost"), lambda: keys(address=ADDRESS),
    lambda: device("cuda:1", None), lambda: device("cuda", 0),
    lambda: FourCores(ADDRESS).check(GroupOptions(cpus=8), "auto"),
    lambda: FourCores(None).check(GroupOptions(memory_gb=16), "auto"),
    lambda: FourCores(ADDRESS).check(GroupOptions(cpus=2, resources={"disk": 1}), "auto"),
    lambda: connected("auto", ConnectionError("Could not find any running Ray instance.")),
    lambda: connected(ADDRESS, RuntimeError("AuthenticationError: InvalidAuthToken: missing")),
    lambda: connected(ADDRESS, RuntimeError("Version mismatch: the cluster was started with:\n    Ray: 2.50.0")),
    lambda: connected(f"ray://{ADDRESS}", ImportError("No module named 'grpc'")),
    lambda: connected(ADDRESS, ConnectionError("Failed to connect to Ray cluster")),
    lambda: ray_raises(start_local, RuntimeError("The current node timed out during startup.")),
    lost,
]  # fmt: skip
"""Calls, each of which ends in an error."""
