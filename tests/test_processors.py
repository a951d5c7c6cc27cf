import os
import platform
import subprocess
import sys

import pytest

from kdbench import processors


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Pretend to have these processors, each with its siblings, and a quota."""

    def pretend(siblings, quota="max 100000"):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(siblings))
        monkeypatch.setattr(processors, "SYSTEM", tmp_path)
        for processor, shared in siblings.items():
            folder = tmp_path / f"devices/system/cpu/cpu{processor}/topology"
            folder.mkdir(parents=True)
            (folder / "thread_siblings_list").write_text(f"{shared}\n")
        (tmp_path / "fs/cgroup").mkdir(parents=True)
        (tmp_path / "fs/cgroup/cpu.max").write_text(quota)

    return pretend


@pytest.mark.parametrize(
    ("siblings", "quota", "cores"),
    [
        ({0: "0", 1: "1"}, "max 100000", 2),
        ({0: "0,4", 1: "1,5", 4: "0,4", 5: "1,5"}, "max 100000", 2),  # two threads a core
        ({4: "0,4", 5: "1,5"}, "max 100000", 2),  # narrowed to one thread of each
        ({0: "0", 1: "1", 2: "2", 3: "3"}, "250000 100000", 2),  # a container with two and a half
        ({0: "0", 1: "1"}, "50000 100000", 1),
    ],
)
def test_cores_are_those_this_process_may_use(machine, siblings, quota, cores):
    machine(siblings, quota)
    assert processors.available_cores() == cores


def test_cores_are_as_many_as_the_user_says(machine, monkeypatch):
    machine({0: "0", 1: "1"})
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert processors.available_cores() == 5


def test_cores_are_counted_where_linux_says_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(processors, "SYSTEM", tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert processors.available_cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("environment", "spins"),
    [({}, "20000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_waiting_threads_give_way_soon_unless_the_user_said_otherwise(monkeypatch, environment, spins):
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    processors.share_processors()
    assert os.environ.get("GOMP_SPINCOUNT") == spins
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another one")
def test_freed_memory_is_kept_and_then_given_back():
    code = """
import resource, torch
from kdbench.processors import freed_memory_kept
def faults(tensors=5):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(tensors):
        torch.empty(64 << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20
left_alone = faults()
with freed_memory_kept():
    with freed_memory_kept():  # a teacher that is trained on the way
        pass
    faults(20)  # until small things that lie between no longer keep a block from being found again
    kept = faults()
    held = resident()
print(left_alone, kept, held - resident())
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    left_alone, kept, given_back = map(int, run.stdout.split())
    assert kept < left_alone / 10
    assert given_back > 50  # MiB
