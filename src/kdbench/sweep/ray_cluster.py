"""A Ray cluster: connect to one, or start one of this machine alone; what its nodes have and what a group gets."""

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdbench.errors import ConfigError, RunError, first_line
from kdbench.system.cpu import usable_cores

KEY = "hydra.launcher.address"
OBJECT_STORE_BYTES = 80_000_000
"""Memory for objects in a cluster of this machine: results are small, and Ray accepts no less than 75 MB."""
SLACK = 1e-6
"""Rounding of shares: 1 / (1 / 3) is to be 3."""
LOG_SECONDS = 1.0
"""Time in which the last lines of tasks reach this process."""
LONGEST_TEMPORARY = 40
"""Characters of a temporary folder; Ray appends up to 65 to it, and the path of a socket has at most 107."""
DRIVER_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is sent anywhere
    "RAY_DEDUP_LOGS": "0",  # epochs of different runs look alike, and would be left out
    "RAY_COLOR_PREFIX": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Settings of Ray in the environment, where the user has not set them."""


@dataclass(frozen=True)
class GroupOptions:
    """Resources of a group of runs, and its retries; the keys of conf/hydra/launcher/ray.yaml."""

    cpus: float = 1
    gpus: float | None = None
    """GPUs of a group; None: one where the cluster has any."""
    memory_gb: float | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    strategy: str = "SPREAD"
    autoscaling: bool = False
    retries: int = 3
    environment: tuple[str, ...] = ()

    @property
    def threads(self) -> int:
        """Threads of runs that leave their number open."""
        return max(1, int(self.cpus))


@dataclass
class Cluster:
    """A cluster that this process is connected to.

    Args:
        address: as given; None for one that this process has started.
        folder: folder of its logs and sockets, if this process has started it.
    """

    address: str | None
    folder: Path | None = None

    @property
    def name(self) -> str:
        """Name of the cluster for the user."""
        return f"the Ray cluster at {self.address}" if self.address else "Ray on this machine"

    def nodes(self) -> list[dict[str, float]]:
        """Return what each live node has, by Ray's names of resources."""
        import ray

        return [node["Resources"] for node in ray.nodes() if node["Alive"]]

    def request(self, options: GroupOptions, device: str) -> dict[str, float]:
        """Return what a group takes of a node, by Ray's names.

        Args:
            options: what groups get.
            device: `runtime.device` of its runs.
        """
        return request(options, device, self.nodes())

    def lacking(self, request: Mapping[str, float]) -> str | None:
        """Return the first resource of which no node has enough, with what there is, or None if a group fits a node."""
        return lacking(request, self.nodes())

    def check(self, options: GroupOptions, device: str) -> None:
        """Check that a node is large enough for a group. Arguments: see `request`.

        Raises:
            ConfigError: none is, and the user does not want to wait for one.
        """
        short = self.lacking(self.request(options, device))
        if short and not options.autoscaling:
            raise too_large(short, self.name, "; hydra.launcher.autoscaling=true is for a cluster that grows by itself")

    def room(self, request: Mapping[str, float]) -> int:
        """Return the number of groups with a request that the live nodes execute at once."""
        return sum(room(request, node) for node in self.nodes())

    def close(self) -> None:
        """Disconnect; end the cluster if this process has started it."""
        import ray

        if ray.is_initialized():
            time.sleep(LOG_SECONDS)
            ray.shutdown()
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def request(options: GroupOptions, device: str, nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return what a group takes of a node, by Ray's names of resources.

    Args:
        options: what groups get; GPUs that they leave open are one where any node has one.
        device: `runtime.device` of its runs.
        nodes: what each node has.
    """
    gpus = int(any(node.get("GPU", 0) for node in nodes)) if options.gpus is None else options.gpus
    wanted = {} if device == "cpu" or not gpus else {"GPU": gpus}
    memory = {"memory": options.memory_gb * 1e9} if options.memory_gb else {}
    return {"CPU": options.cpus, **wanted, **memory, **options.resources}


def lacking(request: Mapping[str, float], nodes: list[dict[str, float]]) -> str | None:
    """Return the first resource of which no node has enough, in words, or None if one node has enough of all.

    Args:
        request: what a group takes, by Ray's names of resources.
        nodes: what each node has.
    """
    if any(all(node.get(name, 0) >= amount for name, amount in request.items()) for node in nodes):
        return None
    for name, amount in request.items():
        most = max((node.get(name, 0) for node in nodes), default=0)
        if most < amount:
            return f"{of_resource(name, amount)}, and no node has more than {of_resource(name, most)}"
    return f"{', '.join(of_resource(*item) for item in request.items())}, and no node has all of that"


def room(request: Mapping[str, float], node: Mapping[str, float]) -> int:
    """Return the number of groups that a node executes at once.

    Args:
        request: what a group takes, by Ray's names of resources.
        node: what the node has.
    """
    counts = []
    for name, amount in request.items():
        if name == "GPU" and amount < 1:  # no group gets parts of two
            counts.append(int(node.get(name, 0)) * int(1 / amount + SLACK))
        else:
            counts.append(int(node.get(name, 0) / amount + SLACK))
    return min(counts)


def of_resource(name: str, amount: float) -> str:
    """Return an amount of a resource in words."""
    if name == "memory":
        return f"{amount / 1e9:.3g} GB of memory"
    return f"{amount:g} {name}"


def too_large(short: str, where: str, remedy: str = "") -> ConfigError:
    """Return the error for groups that fit no node.

    Args:
        short: from `lacking`.
        where: name of the cluster.
        remedy: text after the message.
    """
    return ConfigError(
        f"hydra.launcher: a group needs {short} in {where}; change cpus, gpus, memory_gb or resources{remedy}",
        code="too_large",
        key="hydra.launcher",
    )


def check_local(options: GroupOptions, device: str) -> None:
    """Check that a group fits this machine, before Ray starts. Arguments: see `request`.

    Raises:
        ConfigError: it does not, or the launcher's keys need a cluster.
    """
    from torch import cuda

    node = {"CPU": float(usable_cores()), "GPU": float(cuda.device_count()), "memory": total_memory()}
    if short := lacking(request(options, device, [node]), [node]):
        raise too_large(short, "a cluster of this machine alone (hydra.launcher.address=null)")


def total_memory() -> float:
    """Return the bytes of memory of this machine."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def start_local() -> Cluster:
    """Start a cluster of this machine alone, which ends with this process.

    Raises:
        RunError: Ray does not start.
    """
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 leaves the cores to other processes
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # other users of this machine can reach it otherwise
    if os.environ["RAY_AUTH_MODE"] == "token":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one into the home directory
    folder = Path(tempfile.mkdtemp(prefix="kdbench_ray_", dir=short_temporary()))
    cluster = Cluster(None, folder)
    try:
        initialize(
            address="local",
            num_cpus=usable_cores(),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            _temp_dir=str(folder),
        )
    except Exception as error:
        cluster.close()
        raise RunError(
            f"Ray did not start on this machine: {first_line(error)}; rerun the same command, or start a cluster with "
            f"`ray start --head` and give {KEY}=auto",
            code="engine_failed",
            key=KEY,
        ) from error
    except BaseException:
        cluster.close()
        raise
    return cluster


def short_temporary() -> str | None:
    """Return the folder for temporary folders, None for the usual one; sockets need a short path."""
    return "/tmp" if len(tempfile.gettempdir()) > LONGEST_TEMPORARY else None


def connect(address: str, seconds: int) -> Cluster:
    """Connect to a cluster of the user's.

    Args:
        address: auto, HOST:PORT or ray://HOST:PORT.
        seconds: time in which it has to answer.

    Raises:
        ConfigError: no cluster answers, or it refuses this process.
    """
    if address != "auto":
        check_reachable(address, seconds)
        use_token()
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "1")  # tries, of up to the next two times in seconds each
    os.environ.setdefault("RAY_py_gcs_connect_timeout_s", str(seconds))
    os.environ.setdefault("RAY_gcs_rpc_server_connect_timeout_s", str(max(1, seconds // 4)))
    try:
        initialize(address=address)
    except Exception as error:
        raise ConfigError(refusal(address, error), code="unreachable", key=KEY) from error
    return Cluster(address)


def refusal(address: str, error: Exception) -> str:
    """Return the message for a cluster that cannot be used.

    Args:
        address: of the cluster.
        error: error of Ray's.
    """
    text = "\n".join(str(cause) for cause in causes(error))
    if isinstance(error, ImportError):
        reason = "ray:// needs Ray's client; install it with: pip install 'kdbench[ray]'"
    elif "InvalidAuthToken" in text or "AUTH_MODE" in text:
        reason = (
            "it wants a token, and this process has none or another; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to "
            "the token of the cluster (`ray get-auth-token` prints it there)"
        )
    elif address == "auto":
        reason = "no cluster runs on this machine; start one with `ray start --head`, or give HOST:PORT or null"
    elif "ersion" in text and "mismatch" in text:
        reason = f"{' '.join(text.split())}; install the same versions of Python and Ray on both sides"
    else:
        reason = f"no Ray cluster answers there ({first_line(error)}); give the address that `ray start --head` prints"
    return f"{KEY} is {address}: {reason}"


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that caused it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def check_reachable(address: str, seconds: int) -> None:
    """Check that something listens at an address; Ray would try for minutes.

    Raises:
        ConfigError: nothing does.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=seconds).close()
    except OSError as error:
        raise ConfigError(
            f"{KEY} is {address}: nothing answers there ({error.strerror or error}); give the address that "
            "`ray start --head` prints, or null for a cluster of this machine",
            code="unreachable",
            key=KEY,
        ) from None


def use_token() -> None:
    """Send the token of the user where there is one, as Ray does itself where no address is given."""
    token = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if token or Path("~/.ray/auth_token").expanduser().is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def initialize(**arguments: Any) -> None:
    """Call `ray.init`, and keep this process's reaction to signals; Ray replaces that to SIGTERM."""
    for name, value in DRIVER_SETTINGS.items():
        os.environ.setdefault(name, value)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        import ray

        ray.init(logging_level=logging.ERROR, log_to_driver=True, **arguments)
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)
