"""Energy counters of the machine: RAPL of the processor, NVML of an NVIDIA GPU."""

import time
from pathlib import Path
from typing import Protocol

import torch

from kdbench.deploy.latency import Candidate
from kdbench.system.signals import raise_if_requested

POWERCAP = Path("/sys/class/powercap")
SECONDS = 2.0
"""Time for which a network is executed to measure its energy."""


class Counter(Protocol):
    """A counter of consumed energy."""

    def read(self) -> float:
        """Return joules since some fixed time; the difference of two calls counts."""


class Rapl:
    """Energy of all processor packages, by the kernel's RAPL files.

    Args:
        packages: folders of the packages.

    The files count microjoules and start again at `max_energy_range_uj`; at least one read between two starts is
    needed, which is minutes at full power.
    """

    def __init__(self, packages: list[Path]) -> None:
        self.packages = packages
        self.ranges = [int((package / "max_energy_range_uj").read_text()) for package in packages]
        self.last = self.microjoules()
        self.total = 0

    def microjoules(self) -> list[int]:
        """Return the numbers of the files."""
        return [int((package / "energy_uj").read_text()) for package in self.packages]

    def read(self) -> float:
        """Return joules since the counter was opened."""
        now = self.microjoules()
        self.total += sum(
            (new - old) % (limit + 1) for new, old, limit in zip(now, self.last, self.ranges, strict=True)
        )
        self.last = now
        return self.total / 1e6


class Nvml:
    """Energy of one NVIDIA GPU.

    Args:
        uuid: identity of the GPU; its number is another for NVML than for torch where not all GPUs are visible.
    """

    def __init__(self, uuid: str) -> None:
        import pynvml  # type: ignore[import-not-found]  # of nvidia-ml-py, where there is such a GPU

        pynvml.nvmlInit()
        self.handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        self.read_millijoules = pynvml.nvmlDeviceGetTotalEnergyConsumption
        self.read()

    def read(self) -> float:
        """Return joules since the driver was loaded."""
        return self.read_millijoules(self.handle) / 1e3


def find_counter(device: str, powercap: Path = POWERCAP) -> Counter | str:
    """Return the energy counter of a device, or why there is none.

    Args:
        device: cpu or cuda:N.
        powercap: folder of the kernel's power counters.
    """
    if device.startswith("cuda"):
        try:
            return Nvml(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        except Exception as error:  # no library, or a GPU without a counter
            return f"NVML has no energy counter here ({type(error).__name__}; pip install nvidia-ml-py)"
    packages = sorted(powercap.glob("intel-rapl:[0-9]")) if device == "cpu" else []
    if not packages:
        return f"this machine shows no energy counter ({powercap}/intel-rapl:*)"
    try:
        return Rapl(packages)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        return f"the energy counter {packages[0]} cannot be read ({why}); its files are often readable by root alone"


def measure_energy(candidate: Candidate, counter: Counter) -> float:
    """Return the joules of a pass: the mean over passes of some seconds, since counters advance in coarse steps.

    Args:
        candidate: the pass.
        counter: counter of the whole processor or GPU.

    Raises:
        Interrupted: a stop was requested.
    """
    passes, before, end = 0, counter.read(), time.monotonic() + SECONDS
    while passes == 0 or time.monotonic() < end:
        raise_if_requested()
        candidate.execute()
        passes += 1
    return (counter.read() - before) / passes
