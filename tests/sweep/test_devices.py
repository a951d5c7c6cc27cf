"""Devices as places for runs: which there are, how workers share them, and locks between sweeps."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hydra_plugins.kdbench_joblib import JoblibLauncher
from kdbench.config import RunConfig
from kdbench.errors import ConfigError
from kdbench.sweep import devices
from kdbench.sweep.devices import Device, DeviceLocks, Gpu, check_names, devices_of_sweep, visible_gpus
from kdbench.sweep.overrides import expand
from kdbench.sweep.plan import PlannedRun, check_devices, plan
from tests.conftest import Finished

GPUS = [Gpu(f"cuda:{n}", str(n + 4), f"gpu-{n}") for n in range(3)]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have the machine a number of cores and of GPUs."""

    def make(cores: int = 8, gpus: int = 0) -> None:
        monkeypatch.setattr(devices, "cores_of_process", lambda: [f"{n},{n + 64}" for n in range(cores)])
        monkeypatch.setattr(devices, "visible_gpus", lambda: GPUS[:gpus])

    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    make()
    return make


def joblib_launcher(**changes: Any) -> JoblibLauncher:
    """Return the launcher with the keys of its file, some of them changed."""
    keys = {"devices": "auto", "runs_per_device": "auto", "n_jobs": None, "max_learners": 8, "exclusive": True}
    return JoblibLauncher(**keys | changes)


def of_sweep(**changes: Any) -> list[Device]:
    given: dict[str, Any] = {"names": None, "kind": None, "shares": None, "most": None, "runs": 100, "threads": None}
    return devices_of_sweep(**(given | changes))


@pytest.mark.parametrize(
    ("given", "threads"),
    [
        ({}, [1] * 8), ({"runs": 2}, [4, 4]), ({"runs": 3}, [2, 3, 3]), ({"most": 1}, [8]), ({"threads": 2}, [2] * 4),
        ({"threads": 16}, [8]), ({"shares": 2}, [4, 4]), ({"shares": 2, "threads": 1}, [4, 4]), ({"runs": 0}, [8]),
    ],
)  # fmt: skip
def test_workers_on_the_cpu_divide_its_cores(
    machine: Callable[..., None], given: dict[str, Any], threads: list[int]
) -> None:
    found = of_sweep(**given)
    assert [device.threads for device in found] == threads
    cores = [lock for device in found for lock in device.locks]
    assert sorted(cores) == sorted(f"core-{n},{n + 64}" for n in range(8))  # each core once
    assert {(device.name, device.workers, device.visible) for device in found} == {("cpu", 1, None)}


def test_more_workers_than_cores_have_a_thread_each(machine: Callable[..., None]) -> None:
    machine(cores=2)
    assert [device.threads for device in of_sweep(shares=3)] == [1, 1, 1]


def test_threads_that_the_user_sets_for_openmp_limit_those_of_a_worker(
    machine: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert [device.threads for device in of_sweep()] == [2] * 4
    assert [device.threads for device in of_sweep(runs=1)] == [2]


def test_a_gpu_has_one_worker_unless_the_user_asks_for_more(machine: Callable[..., None]) -> None:
    machine(gpus=2)
    assert [(d.name, d.workers, d.threads, d.visible) for d in of_sweep()] == [
        ("cuda:0", 1, 4, "4"), ("cuda:1", 1, 4, "5"),
    ]  # fmt: skip
    assert [(d.workers, d.threads) for d in of_sweep(shares=4)] == [(4, 1), (4, 1)]
    assert [(d.name, d.workers) for d in of_sweep(shares=2, runs=3)] == [("cuda:0", 2), ("cuda:1", 1)]
    assert [(d.name, d.workers) for d in of_sweep(most=1)] == [("cuda:0", 1)]
    assert [d.name for d in of_sweep(names=["cuda:1"])] == ["cuda:1"]
    assert {d.name for d in of_sweep(kind="cpu")} == {"cpu"}


def test_a_worker_sees_its_gpu_alone(machine: Callable[..., None]) -> None:
    machine(gpus=2)
    environment = devices.worker_environment(of_sweep()[1])
    names = ("CUDA_VISIBLE_DEVICES", "KDBENCH_DEVICE", "OMP_NUM_THREADS", "TQDM_DISABLE")
    assert [environment[name] for name in names] == ["5", "cuda:1", "4", "1"]
    assert "PATH" in environment


def test_the_gpus_of_a_batch_system_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(devices.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices, "uuid_of", lambda index: f"gpu-uuid-{index}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-abc,-1,2")
    assert [(gpu.name, gpu.visible, gpu.lock) for gpu in visible_gpus()] == [
        ("cuda:0", "3", "gpu-uuid-0"), ("cuda:1", "GPU-abc", "gpu-uuid-1"),
    ]  # fmt: skip
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [gpu.visible for gpu in visible_gpus()] == ["0", "1"]


def test_names_of_devices_are_those_of_the_list(machine: Callable[..., None]) -> None:
    machine(gpus=2)
    assert check_names("auto") is None
    assert check_names(["cuda:1", "cuda:0"]) == ["cuda:1", "cuda:0"]
    assert check_names("cuda:1") == ["cuda:1"]


HOLD = """
import sys
from pathlib import Path
from kdbench.sweep.devices import Device, DeviceLocks
locks = DeviceLocks(folder=Path(sys.argv[1]))
print(locks.acquire(Device("cuda:0", ("gpu-0",), 1, 1)), flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("fault", ["open", "link", "file", "owner"])
def test_folder_of_locks_that_others_can_change_is_refused(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "locks"
    if fault == "link":
        folder.symlink_to(tmp_path)
    elif fault == "file":
        folder.write_text("")
    else:
        folder.mkdir()
        folder.chmod(0o777 if fault == "open" else 0o700)
    if fault == "owner":
        monkeypatch.setattr("os.getuid", lambda: folder.stat().st_uid + 1)
    with pytest.raises(ConfigError) as error:
        DeviceLocks(folder=folder).acquire(Device("cuda:0", ("gpu-0",), 1, 1))
    assert error.value.key == "hydra.launcher.exclusive"


def test_holder_of_a_device_is_not_written_through_a_link(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("content")
    locks, gpu = DeviceLocks(folder=tmp_path / "locks"), Device("cuda:0", ("gpu-0",), 1, 1)
    assert locks.acquire(gpu)
    assert locks.folder.stat().st_mode & 0o777 == 0o700
    locks.release(gpu)
    locks.holder("gpu-0").unlink()
    locks.holder("gpu-0").symlink_to(other)
    with pytest.raises(OSError, match="symbolic"):
        locks.acquire(gpu)
    assert other.read_text() == "content"


@pytest.mark.slow
def test_a_device_is_held_against_other_processes_until_its_process_ends(tmp_path: Path) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout
    assert other.stdout.readline() == "True\n"
    locks, gpu = DeviceLocks(folder=tmp_path), Device("cuda:0", ("gpu-0",), 2, 1)
    assert not locks.acquire(gpu)
    assert locks.holders_of([gpu]) == f"process {other.pid}"
    assert DeviceLocks(exclusive=False, folder=tmp_path).acquire(gpu)
    assert locks.acquire(Device("cuda:1", ("gpu-1",), 1, 1))
    assert not locks.acquire(Device("cpu", ("gpu-1x", "gpu-0"), 1, 1))  # one of several is held: none is
    assert DeviceLocks(folder=tmp_path).acquire(Device("cpu", ("gpu-1x",), 1, 1))
    other.kill()
    other.communicate()
    assert locks.acquire(gpu)
    locks.release_all()
    assert DeviceLocks(folder=tmp_path).acquire(gpu)


@pytest.fixture
def planned(small: Callable[..., RunConfig]) -> Callable[..., list[PlannedRun]]:
    """Plan the runs of a sweep of small runs."""
    return lambda *overrides: plan(expand(overrides), lambda job: small(*job))


def test_groups_are_as_large_as_they_can_be_with_work_for_every_worker(
    machine: Callable[..., None], planned: Callable[..., list[PlannedRun]]
) -> None:
    runs = planned("method=ce", "recipe.lr=0.1,0.2,0.3,0.4,0.5")
    sizes = []
    for n_jobs, max_learners in ((1, 8), (2, 8), (3, 8), (8, 8), (1, 2), (2, 1)):
        launcher = joblib_launcher(n_jobs=n_jobs, max_learners=max_learners)
        launcher.check(runs)
        sizes.append([len(group) for group in launcher.group(runs)])
    assert sizes == [[5], [2, 3], [1, 2, 2], [1] * 5, [1, 2, 2], [1] * 5]


def test_the_number_of_workers_is_that_of_the_whole_sweep_whatever_is_complete(
    machine: Callable[..., None], planned: Callable[..., list[PlannedRun]]
) -> None:
    launcher = joblib_launcher()
    launcher.check(planned("method=ce", "seed=0,1,2,3"))
    assert [device.threads for device in launcher.devices] == [2] * 4
    assert [len(group) for group in launcher.group(planned("method=ce", "seed=0,1"))] == [1, 1]


@pytest.mark.parametrize(
    ("device", "names", "code"),
    [("cuda:1", None, "mismatch"), ("cuda", ["cpu"], "mismatch"), ("cuda", None, "unavailable_device")],
)
def test_runs_that_name_another_device_than_the_launcher_are_refused(
    machine: Callable[..., None], device: str, names: list[str] | None, code: str
) -> None:
    with pytest.raises(ConfigError) as error:
        devices.check_runtime_device(["auto", device], names)
    assert (error.value.code, error.value.key) == (code, "runtime.device")


def test_runs_that_leave_their_device_to_the_launcher_are_allowed(machine: Callable[..., None]) -> None:
    assert devices.check_runtime_device(["auto"], None) is None
    assert devices.check_runtime_device(["auto"], ["cpu"]) == "cpu"
    machine(gpus=1)
    assert devices.check_runtime_device(["cuda"], None) == "cuda"


@pytest.mark.parametrize("given", ["cuda:0,cuda:1", pytest.param("cpu,auto", marks=pytest.mark.wide)])
def test_a_sweep_over_devices_is_refused(kdbench: Callable[..., Finished], given: str) -> None:
    result = kdbench("-m", "method=ce", "student=resnet8", "teacher=none", "data=shapes", f"runtime.device={given}")
    assert result.code == 2
    (line,) = result.err.splitlines()
    remedy = "hydra/launcher=joblib hydra.launcher.devices=[cuda:0,cuda:1]"
    assert (remedy in line) == ("cuda" in given)


def test_runs_of_one_device_are_no_sweep_over_devices(planned: Callable[..., list[PlannedRun]]) -> None:
    check_devices(planned("method=ce", "runtime.device=cpu", "seed=0,1"))


def test_a_launcher_is_known_after_hydra_has_executed_its_module_anew() -> None:
    code = (
        "import hydra_plugins.kdbench_joblib as joblib\n"
        "from hydra.core.plugins import Plugins\n"
        "Plugins.instance()\n"
        "from kdbench.sweep.launcher import GroupLauncher\n"
        "print(isinstance(joblib.JoblibLauncher(), GroupLauncher), isinstance(5, GroupLauncher))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout == "True False\n", result.stderr
