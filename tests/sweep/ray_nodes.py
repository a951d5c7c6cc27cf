"""A Ray cluster of two nodes on this machine, for tests: real processes, one of which can be lost at any moment."""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_worker_niceness": "0",  # 15 by default: next to other tests, nothing would be left for them
    "OMP_NUM_THREADS": "1",
}
START_SECONDS = 90.0
OBJECT_STORE = ("--object-store-memory", "80000000")


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of the cluster's processes, and of commands that use it."""
    return {**os.environ, **SETTINGS, **variables}


def free_port() -> int:
    """Return a port that no process listens at."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


class Node:
    """A node: `ray start` in the foreground, with everything that it starts.

    Args:
        log: file for its output.
        arguments: arguments of `ray start`.
        cpus: number of cores that it offers.
    """

    def __init__(self, log: Path, *arguments: str, cpus: int = 1) -> None:
        self.log = log
        command = [str(Path(sys.executable).with_name("ray")), "start", *arguments, "--block", "--disable-usage-stats"]
        with log.open("w") as output:
            self.process = subprocess.Popen(
                [*command, "--num-cpus", str(cpus), "--num-gpus", "0", *OBJECT_STORE],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(),
                start_new_session=True,
            )
        deadline = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in log.read_text():
            assert self.process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)

    def pids(self) -> list[int]:
        """Return the processes of the node, their parents first."""
        return descendants(self.process.pid)

    def workers(self) -> list[int]:
        """Return the processes that execute a task."""
        return [pid for pid in self.pids() if name_of(pid).startswith("ray::job")]

    def lose(self) -> None:
        """End all processes of the node at once, as a loss of power does."""
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        """End the node."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.lose()


def descendants(pid: int) -> list[int]:
    """Return a process and all that it has started, directly or not."""
    found = [pid]
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = thread.read_text().split()
        except OSError:  # it has ended
            continue
        for child in children:
            found += descendants(int(child))
    return found


def name_of(pid: int) -> str:
    """Return the command line of a process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


class TwoNodes:
    """A head node and a second one, each with one core.

    Args:
        folder: folder for logs and sockets, with a short path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.client_address = f"ray://127.0.0.1:{free_port()}"
        self.head = Node(
            folder / "head.log", "--head", "--port", str(port), "--include-dashboard", "false",
            "--temp-dir", str(folder), "--ray-client-server-port", self.client_address.rpartition(":")[2],
        )  # fmt: skip
        try:
            self.second = self.start_second()
        except BaseException:
            self.head.stop()
            raise

    def start_second(self) -> Node:
        """Start the second node, for the first time or after it was lost; the head's log monitor reads its logs."""
        return Node(self.folder / "second.log", "--address", self.address, "--include-log-monitor", "false")

    def stop(self) -> None:
        """End both nodes."""
        self.second.stop()
        self.head.stop()
