"""Calls with a user's mistakes in launchers; tests/test_messages.py holds their messages."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hydra_plugins.kdbench_joblib import JoblibLauncher
from hydra_plugins.kdbench_lockstep import LockstepLauncher
from kdbench.config.engines import check_single, misplaced
from kdbench.config.sections import TrackerConfig
from kdbench.sweep import devices
from kdbench.sweep.launcher import check_engine
from kdbench.sweep.plan import PlannedRun, check_devices, check_trackers
from kdbench.sweep.processes import death_of
from kdbench.sweep.record import Record
from kdbench.sweep.worker import enter_folder
from kdbench.system.torchrun import VARIABLES


def joblib(**changes: object) -> None:
    """Check the keys of a joblib launcher on a machine with two GPUs."""
    keys = {"devices": "auto", "runs_per_device": "auto", "n_jobs": None, "max_learners": 8, "exclusive": True}
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv(devices.PRETENDED_GPUS, "2")
        JoblibLauncher(**(keys | changes)).check([])


def under_torchrun() -> None:
    """Check a joblib launcher in one of several processes of torchrun."""
    with pytest.MonkeyPatch.context() as patched:
        for name in VARIABLES:
            patched.setenv(name, "2")
        joblib()


def of_runs(*values: str, names: list[str] | None = None) -> None:
    """Check `runtime.device` of runs for the joblib launcher on a machine without a GPU."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(devices, "visible_gpus", list)
        devices.check_runtime_device(values, names)


def sweep_over(*values: str) -> None:
    """Check the runs of a sweep over devices."""
    check_devices([PlannedRun((f"runtime.device={value}",), "") for value in values])


def dead_process() -> None:
    raise death_of("job 3, job 4", "worker 2 of 2", RuntimeError("The exit codes of the workers are {SIGKILL(-9)}"))


def locks_in_a_file() -> None:
    """Hold a device with a file in the place of the folder of locks."""
    folder = Path.cwd() / "no_folder_of_locks"
    folder.write_text("")
    devices.DeviceLocks(folder=folder).acquire(devices.Device("cpu", ("core-0",), 1, 1))


def of_engine(key: str, value: str) -> None:
    """Give a key or an option of an engine as a key of a run."""
    error = misplaced(key, [f"{key}={value}"], None)
    assert error
    raise error


def with_trackers(*names: str) -> None:
    """Check a sweep that plans one run with each of several trackers."""
    configs: list[Any] = [SimpleNamespace(trackers=[TrackerConfig(name, object, None)]) for name in names]
    check_trackers([PlannedRun((), "", key="one", composed=config) for config in configs])


LAUNCHER_CASES: list[Callable[[], object]] = [
    lambda: LockstepLauncher(max_learners=0).check([]),
    lambda: LockstepLauncher(max_learners="two").check([]),
    lambda: joblib(exclusives=True),
    lambda: check_engine("ray", "no_such_package", "ray"),
    lambda: enter_folder(str(Path.cwd() / "nowhere")),
    *(lambda given=given: joblib(devices=given) for given in (
        "gpu", [0, 1], [], None, ["cuda:0", "cuda:0"], ["cuda:0", "cpu"], ["cuda:1", "cuda:2"],
    )),
    under_torchrun, lambda: joblib(runs_per_device=0), lambda: joblib(n_jobs=-1), lambda: joblib(exclusive="yes"),
    lambda: of_runs("cuda:1"), lambda: of_runs("cuda", names=["cpu"]), lambda: of_runs("cuda"),
    lambda: sweep_over("cuda\\:0", "cuda\\:1"), lambda: sweep_over("cpu", "auto"), dead_process,
    locks_in_a_file, lambda: sweep_over("cpu", "cuda\\:0"),
    lambda: check_single({"hydra/launcher": "slurm"}), lambda: of_engine("launcher", "slurm"),
    lambda: of_engine("launcher.devices", "[cpu]"), lambda: of_engine("pruner", "median"),
    lambda: of_engine("n_trials", "3"), lambda: with_trackers("mlflow", "tensorboard"),
    lambda: Record(Path("/proc/nowhere"), []).make_folder(),
]  # fmt: skip
"""Calls, each of which ends in an error."""
