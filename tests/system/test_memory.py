"""Recognising a lack of memory, and keeping the memory that tensors free."""

import platform
import subprocess
import sys

import pytest
import torch

from kdbench.system.memory import is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
        ),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_a_lack_of_memory_is_recognised_in_the_words_of_every_library(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), OSError(12, "memory")])
def test_other_errors_are_not_taken_for_a_lack_of_memory(error):
    assert not is_out_of_memory(error)


def test_an_allocation_that_is_really_too_large_is_recognised():
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 60)
    assert is_out_of_memory(error.value)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept_and_then_returned():
    code = """
import resource, torch
from kdbench.system.memory import start_keeping_freed_memory, stop_keeping_freed_memory
def faults(tensors=5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(tensors):
        torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
by_default = faults()
start_keeping_freed_memory()
start_keeping_freed_memory()  # as for a teacher that is trained within its student's run
stop_keeping_freed_memory()
faults(20)  # until small allocations in between no longer prevent that a block is reused
kept = faults()
held = resident()
stop_keeping_freed_memory()
print(by_default, kept, held - resident())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    by_default, kept, returned = map(int, run.stdout.split())
    assert kept < by_default / 10
    assert returned > 50  # MiB
