"""Memory: recognise that it ran out, and keep what tensors free for the next ones."""

import ctypes
import platform
import re

import torch

ALLOCATION = r"allocate ([\d.]+ ?(?:bytes|[KMGT]iB))"
OUT_OF_MEMORY = "CUDA error: out of memory|MPS backend out of memory|ALLOC_FAILED"
"""Messages of a GPU's libraries that are raised as plain RuntimeError."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Parameters of glibc's mallopt (malloc.h)."""

_keepers = 0
"""Number of nested blocks that keep freed memory: a run within which its teacher is trained has two."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the host or a GPU had no memory left; each library raises it in its own way."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and re.search(f"{ALLOCATION}|{OUT_OF_MEMORY}", str(error)) is not None


def start_keeping_freed_memory() -> None:
    """Have the C library keep the memory that tensors free, and give it to the next ones.

    By default glibc requests every large tensor from the system and returns it at once, and the system clears its pages
    each time: a tenth of a training step (docs/performance.md). Other C libraries are left alone. Calls may be nested;
    each needs one of `stop_keeping_freed_memory`, and the last of these returns all of it.
    """
    global _keepers
    _keepers += 1
    if _keepers == 1 and (libc := glibc()):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def stop_keeping_freed_memory() -> None:
    """End what `start_keeping_freed_memory` began."""
    global _keepers
    _keepers -= 1
    if _keepers == 0 and (libc := glibc()):
        # The values that malloc adjusts itself to: its largest threshold, and twice that.
        libc.mallopt(M_MMAP_MAX, 65536)
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(M_TRIM_THRESHOLD, 64 << 20)
        libc.malloc_trim(0)


def glibc() -> ctypes.CDLL | None:
    """Return the process's C library if it is glibc."""
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
