"""The joblib launcher: worker processes that hold devices, in real processes on pretended GPUs and on CPU cores.

A method of the tests' own notes which device each of its steps has, so the tests know who held what, and when.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from kdbench.rundir.summary import read_summary
from kdbench.sweep.devices import PRETENDED_GPUS, DeviceLocks, devices_of_sweep
from tests.conftest import Finished

METHOD = """
import os, signal, time, uuid
from pathlib import Path
from kdbench.methods import CrossEntropy

class Noted(CrossEntropy):
    def forward(self, *args):
        if self.training and "KDBENCH_DEVICE" in os.environ:
            self.steps = getattr(self, "steps", 0) + 1
            self.note()
        return super().forward(*args)

    def note(self):
        if self.steps == 1:
            self.run = uuid.uuid4().hex
            Path(f"ready-{os.getpid()}").touch()
            limit = time.monotonic() + 100
            while len(list(Path().glob("ready-*"))) < int(os.environ.get("TOGETHER", "1")) and time.monotonic() < limit:
                time.sleep(0.01)
        if self.steps == 3 and Path("fatal").exists():
            Path("fatal").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        started = len(list(Path().glob("ready-*")))
        held = os.environ["KDBENCH_DEVICE"], os.environ.get("CUDA_VISIBLE_DEVICES")
        with open("noted.txt", "a") as file:
            file.write(" ".join(map(str, (*held, os.getpid(), self.run, time.time(), started))) + "\\n")
        time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
"""
RUN = (
    "student=resnet8", "teacher=none", "method=noted", "data=shapes", "data.num_train=64", "data.num_val=20",
    "data.num_test=20", "recipe=smoke", "recipe.batch_size=16", "recipe.epochs=2", "student.widths=[8,8,16,16]",
    "runtime.precision=fp32", "output_root=out",
)  # fmt: skip
SWEEP = ("-m", "--config-dir", "own", "hydra/launcher=joblib")


@dataclass
class Note:
    """A training step: the device that its process held, its run, and its time."""

    device: str
    visible: str
    pid: int
    run: str
    time: float
    training: int
    """Number of processes that had started to train."""


class Home:
    """A folder with a method of its own, in which sweeps are started."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "noted_method.py").write_text(METHOD)
        (folder / "own" / "method").mkdir(parents=True)
        (folder / "own" / "method" / "noted.yaml").write_text("_target_: noted_method.Noted\n")
        (folder / "tmp").mkdir()

    def start(self, *arguments: str, gpus: int = 0, **environment: str) -> subprocess.Popen[str]:
        own = {"TMPDIR": str(self.folder / "tmp"), **({PRETENDED_GPUS: str(gpus)} if gpus else {}), **environment}
        kept = {key: value for key, value in os.environ.items() if key not in ("OMP_NUM_THREADS", PRETENDED_GPUS)}
        return subprocess.Popen(
            [sys.executable, "-m", "kdbench", *arguments],
            cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=kept | own,
        )  # fmt: skip

    def sweep(self, *arguments: str, code: int = 0, gpus: int = 0, **environment: str) -> tuple[str, str]:
        process = self.start(*SWEEP, *RUN, *arguments, gpus=gpus, **environment)
        out, err = process.communicate(timeout=600)
        assert process.returncode == code, (out, err)
        return out, err

    def notes(self) -> list[Note]:
        file = self.folder / "noted.txt"
        lines = [line.split() for line in file.read_text().splitlines()] if file.exists() else []
        notes = [Note(d, v, int(p), r, float(t), int(b)) for d, v, p, r, t, b in lines]
        return [note for note in notes if sum(other.run == note.run for other in notes) > 1]  # not the step of a check

    def wait_for_steps(self, processes: int) -> set[int]:
        """Wait until so many worker processes train, and return their numbers."""
        limit = time.monotonic() + 300
        while len(pids := {note.pid for note in self.notes()}) < processes:
            assert time.monotonic() < limit
            time.sleep(0.05)
        return pids

    def jobs(self) -> list[dict[str, Any]]:
        """Return the jobs of the last record."""
        return json.loads(max((self.folder / "out" / "sweeps").iterdir()).read_text())["jobs"]

    def results(self, root: str = "out") -> dict[str, Any]:
        """Return what the runs computed, by their names."""
        files = (self.folder / root / "runs").glob("*/summary.json")
        return {file.parent.name: read_summary(file.parent).logits_sha256 for file in files}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path)


def most_at_once(notes: list[Note], device: str) -> int:
    """Return the largest number of runs that trained on a device at the same time."""
    ends: dict[str, list[float]] = {}
    for note in notes:
        if note.device == device:
            ends.setdefault(note.run, []).append(note.time)
    spans = [(min(times), max(times)) for times in ends.values()]
    return max(sum(start <= first <= end for start, end in spans) for first, _ in spans)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "Z" not in Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0]


def wait_until_dead(pids: set[int]) -> None:
    limit = time.monotonic() + 30
    while alive := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < limit, alive
        time.sleep(0.1)


@pytest.mark.slow
def test_no_gpu_ever_has_two_runs_and_all_of_them_work(home: Home) -> None:
    out, _ = home.sweep("seed=0,1,2,3,4", "hydra.launcher.max_learners=1", gpus=2, TOGETHER="2")
    notes = home.notes()
    assert {(note.device, note.visible) for note in notes} == {("cuda:0", "0"), ("cuda:1", "1")}
    assert len({note.run for note in notes}) == 5
    assert len({note.pid for note in notes}) == 2
    assert [most_at_once(notes, device) for device in ("cuda:0", "cuda:1")] == [1, 1]
    assert min(note.training for note in notes) == 2  # both trained at the same time
    assert {job["status"] for job in home.jobs()} == {"complete"}
    assert "worker 2 of 2, cuda:1" in out
    assert re.search(r"^job 5: epoch 2/2", out, re.MULTILINE)


@pytest.mark.slow
def test_shares_put_several_runs_on_a_device_which_batch_systems_limit(home: Home) -> None:
    shares = ("hydra.launcher.runs_per_device=2", "hydra.launcher.devices=[cuda:1]", "hydra.launcher.max_learners=1")
    home.sweep("seed=0,1,2", *shares, gpus=2, TOGETHER="2")
    notes = home.notes()
    assert {note.device for note in notes} == {"cuda:1"}
    assert max(note.training for note in notes) == 2  # the first one has waited for the second
    assert len({note.pid for note in notes}) == 2


@pytest.mark.slow
def test_a_sweep_waits_for_a_gpu_that_another_process_holds(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PRETENDED_GPUS, "1")
    (gpu,) = devices_of_sweep(None, None, None, None, 1, None)
    locks = DeviceLocks(folder=home.folder / "tmp" / f"kdbench-devices-{os.getuid()}")
    assert locks.acquire(gpu)
    process = home.start(*SWEEP, *RUN, "seed=0", gpus=1)
    assert process.stdout
    line = next((line for line in process.stdout if "waiting for a device" in line), "")
    assert f"process {os.getpid()} holds cuda:0" in line
    assert not home.notes()
    locks.release_all()
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, (out, err)
    assert {note.device for note in home.notes()} == {"cuda:0"}


@pytest.mark.wide
def test_an_interrupted_sweep_continues_to_the_numbers_of_an_undisturbed_one_without_the_launcher(home: Home) -> None:
    given = ("seed=0,1,2", "runtime.threads=1", "hydra.launcher.n_jobs=2", "hydra.launcher.max_learners=1")
    process = home.start(*SWEEP, *RUN, *given, gpus=2, STEP_SECONDS="0.3", TOGETHER="2")
    pids = home.wait_for_steps(2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert "Traceback" not in out + err
    assert (process.returncode, err) == (130, "kdbench: stopped by SIGINT; the same command continues\n")
    wait_until_dead(pids)
    assert [job["status"] for job in home.jobs()] == ["interrupted", "interrupted", "not started"]
    assert len(list((home.folder / "out" / "runs").glob("*/last.ckpt"))) == 2
    home.sweep(*given, gpus=2)
    assert {job["status"] for job in home.jobs()} == {"complete"}
    plain = home.start("-m", "--config-dir", "own", *RUN[:-1], "output_root=plain", "seed=0,1,2", "runtime.threads=1")
    plain.communicate(timeout=600)
    assert plain.returncode == 0
    assert home.results() == home.results("plain")
    assert len(home.results()) == 3


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(home: Home) -> None:
    process = home.start(*SWEEP, *RUN, "seed=0,1", gpus=2, STEP_SECONDS="0.3", TOGETHER="2")
    pids = home.wait_for_steps(2)
    process.kill()
    wait_until_dead(pids)
    process.communicate()
    assert len(list((home.folder / "out" / "runs").glob("*/last.ckpt"))) == 2


@pytest.mark.slow
def test_a_killed_worker_costs_the_runs_of_its_group_alone(home: Home) -> None:
    (home.folder / "fatal").touch()
    given = ("seed=0,1,2,3", "hydra.launcher.max_learners=1", "hydra.launcher.n_jobs=2")
    _, err = home.sweep(*given, code=1)
    first, second = err.splitlines()
    assert re.match(r"kdbench: error: job \d: the process of worker \d of 2 died \(SIGKILL\(-9\)\)", first)
    assert second == "kdbench: error: 1 of 4 jobs failed; the error of each is above"
    jobs = home.jobs()
    assert sorted(job["status"] for job in jobs) == ["complete"] * 3 + ["failed"]
    failed = next(job for job in jobs if job["status"] == "failed")
    assert failed["error"] == "the process of the run ended without a result"
    home.sweep(*given)
    assert {job["status"] for job in home.jobs()} == {"complete"}


def test_a_single_run_says_that_the_launcher_is_for_sweeps(kdbench: Callable[..., Finished]) -> None:
    result = kdbench("hydra/launcher=joblib", "method=ce", "recipe.lr=-1")
    assert result.out.splitlines()[0].startswith("hydra/launcher=joblib is for sweeps with -m; this is one run")
