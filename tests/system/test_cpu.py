"""How many cores this process may use, and how its threads wait."""

import os

import pytest

from kdbench.system import cpu


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that pretends to have these processors, each with its siblings, and a quota."""

    def pretend(siblings, quota="max 100000"):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(siblings))
        monkeypatch.setattr(cpu, "SYSTEM", tmp_path)
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
def test_only_cores_that_this_process_may_use_are_counted(machine, siblings, quota, cores):
    machine(siblings, quota)
    assert cpu.available_cores() == cores


def test_the_user_can_set_the_number_of_cores(machine, monkeypatch):
    machine({0: "0", 1: "1"})
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert cpu.available_cores() == 5


def test_cores_are_counted_where_linux_lists_no_siblings(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "SYSTEM", tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert cpu.available_cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("environment", "spins"),
    [({}, "20000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_waiting_threads_release_the_processor_soon_unless_the_user_set_it_otherwise(monkeypatch, environment, spins):
    monkeypatch.setattr(os, "environ", dict(environment))
    cpu.configure_openmp()
    assert os.environ.get("GOMP_SPINCOUNT") == spins
