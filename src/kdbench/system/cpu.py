"""The processors of this machine: what they can do, and how many this process may use. Imports no torch."""

import math
import os
import platform
from pathlib import Path

SYSTEM = Path("/sys")


def have_native_bf16() -> bool:
    """Return whether the processors multiply bfloat16 in hardware; an emulation is slower than float32."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # no Linux; Apple's chips have it, and list it nowhere that can be read portably
        return platform.system() == "Darwin" and platform.machine() == "arm64"
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def available_cores() -> int:
    """Return the number of cores that this process may use.

    OMP_NUM_THREADS overrides what `usable_cores` finds.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    return int(wanted) if wanted.isdecimal() and int(wanted) >= 1 else usable_cores()


def usable_cores() -> int:
    """Return the number of cores that all processes of this command may use together; see `cores_of_process`."""
    return len(cores_of_process())


def cores_of_process() -> list[str]:
    """Return the cores that this process may use, by the processors of each as Linux lists them, such as 0,4.

    Considered are the affinity (batch systems narrow it) and the container's share of time, for as many as that is
    worth. Processors of one core count once: two threads on a core share its arithmetic units.
    """
    if not hasattr(os, "sched_getaffinity"):
        return [str(processor) for processor in range(os.cpu_count() or 1)]
    cores = list(dict.fromkeys(siblings(processor) for processor in sorted(os.sched_getaffinity(0))))
    return cores[: max(1, int(min(len(cores), time_quota())))]


def siblings(processor: int) -> str:
    """Return the processors of a processor's core, as Linux lists them."""
    try:
        return (SYSTEM / f"devices/system/cpu/cpu{processor}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(processor)


def time_quota() -> float:
    """Return how many processors' time the container may use (control groups, version 2), or infinity."""
    try:
        quota, period = (SYSTEM / "fs/cgroup/cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # there is no limit, or the file holds "max"
        return math.inf


SPIN_COUNT = "20000"
"""Value of GOMP_SPINCOUNT."""
OPENMP_IN_SHELL = f'[ -n "${{OMP_WAIT_POLICY+set}}" ] || export GOMP_SPINCOUNT="${{GOMP_SPINCOUNT-{SPIN_COUNT}}}"'
"""Line of a shell script that does the same as `configure_openmp`."""


def configure_openmp() -> None:
    """Have waiting OpenMP threads give up the processor soon. Call it before torch is imported.

    By default they spin, and another process on the same cores then makes almost no progress (docs/performance.md has
    the figures). Values that the user has set in the environment stay.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
