"""Processors and memory of this machine: what they can do, how much is ours, how to share it. Imports no torch."""

import contextlib
import ctypes
import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path

SYSTEM = Path("/sys")


def have_native_bf16() -> bool:
    """Whether the processors multiply bfloat16 in hardware. Elsewhere it is emulated, and slower than float32."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:  # no Linux: Apple's chips have it, and say so nowhere we can read portably
        return platform.system() == "Darwin" and platform.machine() == "arm64"
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def available_cores() -> int:
    """Cores this process may use: a batch system may have narrowed its affinity, a container its share of time, and the
    user both with OMP_NUM_THREADS.

    Processors that share a core count once: the arithmetic units, which two threads would share, are busy with one.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) >= 1:
        return int(wanted)
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = {siblings(processor) for processor in os.sched_getaffinity(0)}
    return max(1, int(min(len(cores), time_quota())))


def siblings(processor: int) -> str:
    """The processors of a processor's core, as Linux lists them."""
    try:
        return (SYSTEM / f"devices/system/cpu/cpu{processor}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(processor)


def time_quota() -> float:
    """How many processors' time the container may use (control groups, version 2), or infinity."""
    try:
        quota, period = (SYSTEM / "fs/cgroup/cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # there is none, or it says "max"
        return math.inf


def share_processors() -> None:
    """Have OpenMP's threads give up the processor soon when they wait. Call it before torch is imported.

    Left to themselves they spin, and another process on the same cores then gets almost nothing done
    (docs/performance.md has the figures). What the user has set in the environment stays.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Parameters of glibc's mallopt (malloc.h)."""


_keepers = 0
"""How many runs in this process want freed memory kept: a run within which its teacher is trained, for one."""


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Have the C library keep what tensors give back, and give it to the next ones.

    Left to itself, glibc asks the system for every large tensor and returns it at once, and the system clears its pages
    anew each time: a tenth of a training step (docs/performance.md). When the last one leaves, all of it goes back.
    Other C libraries are left alone.
    """
    global _keepers
    libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
    _keepers += 1
    if libc and _keepers == 1:
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        _keepers -= 1
        if libc and _keepers == 0:
            # What malloc would have adjusted itself to by now: its largest threshold, and twice that.
            libc.mallopt(M_MMAP_MAX, 65536)
            libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
            libc.mallopt(M_TRIM_THRESHOLD, 64 << 20)
            libc.malloc_trim(0)
