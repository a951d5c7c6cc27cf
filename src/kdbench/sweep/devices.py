"""Devices of this machine as places for runs: which there are, how many runs share one, and who holds it.

A worker process sees its own device alone: a GPU through CUDA_VISIBLE_DEVICES, a share of the CPU through
OMP_NUM_THREADS. So `runtime.device=auto` and `runtime.threads=auto` mean the worker's own.
"""

import contextlib
import os
import re
import stat
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from kdbench.errors import ConfigError
from kdbench.system.cpu import cores_of_process
from kdbench.system.device import kind_of

HELD_DEVICE = "KDBENCH_DEVICE"
"""Environment variable of a worker with the name of the device that it holds; free for use in one's own code."""
PRETENDED_GPUS = "KDBENCH_PRETENDED_GPUS"
"""Environment variable for tests: a number of GPUs that this machine is said to have.

The queue, the locks and what a worker process gets are the same as for real ones; the runs themselves find no GPU, and
train on the CPU.
"""


@dataclass(frozen=True)
class Device:
    """A device, or a share of the CPU's cores.

    Args:
        name: cuda:1, mps, or cpu.
        locks: names of what is held while a worker uses it; of a GPU its UUID, of the CPU its cores.
        workers: number of worker processes that share it.
        threads: number of threads of each of them.
        visible: value of CUDA_VISIBLE_DEVICES for them; None leaves it as it is.
    """

    name: str
    locks: tuple[str, ...]
    workers: int
    threads: int
    visible: str | None = None

    @property
    def description(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        return f"{self.name}, {threads}" + (f", shared by {self.workers} workers" if self.workers > 1 else "")

    @property
    def environment(self) -> dict[str, str]:
        """Variables of the worker processes, beside those of this process."""
        visible = {} if self.visible is None else {"CUDA_VISIBLE_DEVICES": self.visible}
        return {HELD_DEVICE: self.name, "OMP_NUM_THREADS": str(self.threads), **visible}


@dataclass(frozen=True)
class Gpu:
    """A GPU that this process may use."""

    name: str
    visible: str
    """Entry of CUDA_VISIBLE_DEVICES."""
    lock: str


def visible_gpus() -> list[Gpu]:
    """Return the GPUs that this process may use: those of CUDA_VISIBLE_DEVICES where a batch system has set it."""
    if pretended := os.environ.get(PRETENDED_GPUS):
        return [Gpu(f"cuda:{n}", str(n), f"pretended-gpu-{n}") for n in range(int(pretended))]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    entries = given.split(",") if given else [str(n) for n in range(count)]
    return [Gpu(f"cuda:{n}", entries[n].strip(), uuid_of(n)) for n in range(count)]


def uuid_of(index: int) -> str:
    """Return a name of a GPU that is the same in every process of this machine."""
    properties = torch.cuda.get_device_properties(index)
    return f"gpu-{getattr(properties, 'uuid', index)}"


def check_names(given: Any) -> list[str] | None:
    """Return the device names that `hydra.launcher.devices` gives, or None for auto.

    Raises:
        ConfigError: it is no list of devices that this machine has, each once, of one kind.
    """
    key = "hydra.launcher.devices"
    if given == "auto":
        return None
    names = [given] if isinstance(given, str) else list(given) if isinstance(given, Sequence) else []
    shown = f"[{','.join(map(str, names))}]" if isinstance(given, list) else given
    if not names or not all(isinstance(name, str) and re.fullmatch(r"cpu|mps|cuda:\d+", name) for name in names):
        raise ConfigError(
            f"{key} is {shown}; it must be auto or a list of devices, such as [cuda:0,cuda:1], [cpu] or [mps]",
            code="out_of_range",
            key=key,
        )
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(
            f"{key} is {shown}, which has {repeated} twice; several runs share a device by "
            "hydra.launcher.runs_per_device",
            code="out_of_range",
            key=key,
        )
    if len(set(map(kind_of, names))) > 1:
        raise ConfigError(
            f"{key} is {shown}; the runs of a sweep train on devices of one kind, so that they can be compared: give "
            "either GPUs or cpu",
            code="mismatch",
            key=key,
        )
    here = [gpu.name for gpu in visible_gpus()]
    if torch.backends.mps.is_available():
        here.append("mps")
    if missing := next((name for name in names if name not in [*here, "cpu"]), None):
        raise ConfigError(
            f"{key} has {missing}, and this process can use {', '.join([*here, 'cpu'])} (see CUDA_VISIBLE_DEVICES)",
            code="unavailable_device",
            key=key,
        )
    return names


def check_runtime_device(values: Sequence[str], names: Sequence[str] | None) -> str | None:
    """Return the kind of device that the runs of a sweep ask for by `runtime.device`, or None for auto.

    Args:
        values: of `runtime.device`, of each run.
        names: checked devices of the launcher; None: auto.

    Raises:
        ConfigError: the runs name one GPU, or devices of another kind than the launcher.
    """
    key = "runtime.device"
    value = next((value for value in values if value != "auto"), None)
    if value is None:
        return kind_of(names[0]) if names else None
    if ":" in value:
        raise ConfigError(
            f"{key} is {value}, and hydra/launcher=joblib gives every worker its device; leave {key} at auto, and give "
            f"hydra.launcher.devices=[{value}]",
            code="mismatch",
            key=key,
        )
    if names and kind_of(names[0]) != value:
        raise ConfigError(
            f"{key} is {value} and hydra.launcher.devices is [{','.join(names)}]; leave {key} at auto",
            code="mismatch",
            key=key,
        )
    if value == "cuda" and not visible_gpus():
        raise ConfigError(
            f"{key} is cuda and this machine has no CUDA device; use {key}=auto",
            code="unavailable_device",
            key=key,
        )
    return value


def devices_of_sweep(
    names: Sequence[str] | None, kind: str | None, shares: int | None, most: int | None, runs: int, threads: int | None
) -> list[Device]:
    """Return the devices of a sweep, with at most as many workers in all as there are runs.

    Args:
        names: checked names of `hydra.launcher.devices`; None: every GPU, or the CPU.
        kind: kind of device that the runs ask for; None: any.
        shares: number of workers that share a device; None: 1 on a GPU, as many as the cores allow on the CPU.
        most: largest number of workers; None: no limit.
        runs: number of runs of the sweep, finished ones too: the same command gets the same threads.
        threads: number of threads that the runs ask for; None: auto.
    """
    gpus = [gpu for gpu in visible_gpus() if names is None or gpu.name in names]
    cores = cores_of_process()
    limit = min(runs, most or runs)
    given = os.environ.get("OMP_NUM_THREADS", "")
    openmp = int(given) if given.isdecimal() and int(given) >= 1 else None
    most_threads = openmp or len(cores)
    if kind == "cpu" or (not gpus and kind != "mps"):
        count = max(1, min(limit, shares or len(cores) // (threads or openmp or 1)))
        parts = [cores[len(cores) * n // count : len(cores) * (n + 1) // count] for n in range(count)]
        return [
            Device("cpu", tuple(f"core-{core}" for core in part), 1, max(1, min(len(part), most_threads)))
            for part in parts
        ]
    if kind == "mps":
        gpus = [Gpu("mps", "", "mps")]
    shares = shares or 1
    counts = [shares] * len(gpus)
    while sum(counts) > max(1, limit):  # the last worker of the device that has most
        counts[max(range(len(counts)), key=lambda n: (counts[n], n))] -= 1
    share = max(1, min(len(cores) // sum(counts), most_threads))
    return [
        Device(gpu.name, (gpu.lock,), count, share, gpu.visible or None)
        for gpu, count in zip(gpus, counts, strict=True)
        if count
    ]


@dataclass
class DeviceLocks:
    """The devices that this process holds against other sweeps of the same user on this machine.

    A lock is a file that the operating system locks for the process, so it ends with the process in any case.
    """

    exclusive: bool = True
    folder: Path = field(default_factory=lambda: Path(tempfile.gettempdir(), f"kdbench-devices-{os.getuid()}"))
    held: dict[Device, list[FileLock]] = field(default_factory=dict)

    def acquire(self, device: Device) -> bool:
        """Hold a device unless another process holds it, and return whether this one does.

        Raises:
            ConfigError: the folder of the locks is not this user's alone.
        """
        if device in self.held or not self.exclusive:
            return True
        self.check_folder()
        locks: list[FileLock] = []
        try:
            for name in device.locks:
                lock = FileLock(self.folder / f"{re.sub(r'[^A-Za-z0-9.-]', '_', name)}.lock")
                lock.acquire(blocking=False)
                locks.append(lock)
        except Timeout:
            for lock in locks:
                lock.release()
            return False
        for name in device.locks:
            write_no_link(self.holder(name), f"{os.getpid()}\n")
        self.held[device] = locks
        return True

    def check_folder(self) -> None:
        """Make the folder of the locks; in a temporary folder, another user may have made one with its name.

        Raises:
            ConfigError: it is another user's, others can write to it, or it is no folder.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            self.folder.mkdir(mode=0o700)
        state = self.folder.lstat()
        others = state.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or others:
            raise ConfigError(
                f"{self.folder}, the folder of the locks of devices, must be a folder of yours to which no other "
                "user can write; remove it, or give another temporary folder by TMPDIR",
                code="not_writable",
                key="hydra.launcher.exclusive",
            )

    def release(self, device: Device) -> None:
        """Release a device, if it is held."""
        for lock in self.held.pop(device, []):
            lock.release()

    def release_all(self) -> None:
        for device in list(self.held):
            self.release(device)

    def holder(self, name: str) -> Path:
        """Return the file with the process that holds a lock."""
        return self.folder / f"{re.sub(r'[^A-Za-z0-9.-]', '_', name)}.pid"

    def holders_of(self, devices: Sequence[Device]) -> str:
        """Return the processes that hold devices, in words."""
        found = set()
        for device in devices:
            for name in device.locks:
                with contextlib.suppress(OSError):  # it was released meanwhile, and never held before
                    found.add(self.holder(name).read_text().strip())
        found.discard(str(os.getpid()))
        return f"process {', '.join(sorted(found))}" if found else "another process"


def write_no_link(file: Path, text: str) -> None:
    """Write a file. A link in its place is an error (OSError), and its target is left alone."""
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as opened:
        opened.write(text)


def worker_environment(device: Device) -> Mapping[str, str]:
    """Return the whole environment of a device's worker processes."""
    quiet = {"TQDM_DISABLE": "1"}  # bars of several processes would overwrite each other
    return {**os.environ, **quiet, **device.environment}
