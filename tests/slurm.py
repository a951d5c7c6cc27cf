"""A real SLURM of one node for tests, from scripts/slurm.sh, and the sweeps that run on it."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from hydra_plugins.kdbench_slurm import SlurmLauncher
from kdbench.config import CONF_DIR
from kdbench.sweep.slurm_options import SlurmOptions

KEYS = CONF_DIR / "hydra" / "launcher" / "slurm.yaml"
SCRIPT = Path(__file__).parents[1] / "scripts" / "slurm.sh"
PAUSE = """
import os
import time
from pathlib import Path

from kdbench.methods import CrossEntropy


class Paused(CrossEntropy):
    '''Cross-entropy with a pause at every step of a job, and while the working directory has a file called hold.'''

    def forward(self, *arguments, **named):
        if "SLURM_JOB_ID" in os.environ:  # not while the command checks its runs
            time.sleep(float(Path("pause").read_text()))
            while Path("hold").exists():
                Path("waiting").touch()
                time.sleep(0.1)
        return super().forward(*arguments, **named)
"""
PAUSED = ("method=paused", "teacher=none", "student=resnet8", "student.widths=[8,8,16,32]")
TINY = (
    "data=shapes", "data.num_train=64", "data.num_val=50", "data.num_test=60", "recipe=smoke", "recipe.batch_size=32",
    "runtime.device=cpu", "runtime.precision=fp32", "runtime.threads=1", "checkpoint.grace_seconds=5",
)  # fmt: skip
PROCESSES: list[subprocess.Popen[bytes]] = []
"""Commands that tests have started."""


def slurm_options(**changes: Any) -> SlurmOptions:
    """Return the keys of the launcher as its file has them, some of them changed."""
    keys = {str(name): value for name, value in OmegaConf.load(KEYS).items() if name != "_target_"}
    return SlurmLauncher(**keys | changes).keys


@dataclass(frozen=True)
class Cluster:
    """A running SLURM.

    Args:
        environment: variables of processes that use it.
    """

    environment: dict[str, str]
    seen: dict[str, float] = field(default_factory=dict)
    """Time at which each requeued job was first seen to wait."""

    def command(self, *words: str) -> str:
        """Return the output of a command of SLURM, which must succeed."""
        done = subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def jobs(self, *states: str) -> dict[str, str]:
        """Return the states of the jobs that are in one of some states, by id."""
        lines = self.command("squeue", "--array", "--noheader", "--states", "all", "--format", "%i %T").splitlines()
        words = [line.split() for line in lines]
        return {job: state for job, state in words if state in states}

    def hurry(self) -> None:
        """Have requeued jobs start after some seconds; SLURM keeps each back for two minutes.

        Sooner, the node would still refuse the credential of the job.
        """
        lines = self.command("squeue", "--array", "--noheader", "--states", "PENDING", "--format", "%i %r").splitlines()
        waiting = [line.split()[0] for line in lines if line.endswith(" BeginTime")]
        for job in [job for job in self.seen if job not in waiting]:
            del self.seen[job]
        for job in waiting:
            if time.monotonic() - self.seen.setdefault(job, time.monotonic()) < 4:
                continue
            with subprocess.Popen(
                ["scontrol", "update", f"jobid={job}", "StartTime=now"],
                env=self.environment,
                stderr=subprocess.DEVNULL,
            ):
                pass

    def wait_for(self, condition: Callable[[], Any], seconds: float = 400) -> None:
        """Wait until a condition is true, while requeued jobs start at once."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.command("squeue", "--array", "--states", "all")
            self.hurry()
            time.sleep(0.5)


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Start a SLURM in a folder; skip the test where it cannot be installed, which fails in CI."""
    port = free_ports()
    environment = os.environ | {"KDBENCH_SLURM": str(folder), "KDBENCH_SLURM_PORT": str(port), "OMP_NUM_THREADS": "1"}
    installed = call(["install"], environment)
    if installed.returncode and not os.environ.get("CI"):
        pytest.skip(f"needs SLURM: {installed.stderr.strip()}")
    assert installed.returncode == 0, installed.stderr
    try:
        started = call(["start"], environment)
        assert started.returncode == 0, started.stderr
        yield Cluster(environment | {"SLURM_CONF": str(folder / "slurm.conf")})
    finally:
        for process in PROCESSES:  # of a test that has failed
            if process.poll() is None:
                process.kill()
            process.wait()
        PROCESSES.clear()
        call(["stop"], environment)


def call(arguments: Sequence[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Execute scripts/slurm.sh."""
    # A file takes the output: daemons inherit the pipe of standard error, and reading it would never end.
    log = Path(environment["KDBENCH_SLURM"]).with_suffix(".log")
    with log.open("w") as written:
        code = subprocess.call(
            [SCRIPT, *arguments], env=environment, stdout=written, stderr=written, timeout=300, start_new_session=True
        )
    return subprocess.CompletedProcess(arguments, code, "", log.read_text())


def free_ports() -> int:
    """Return the first of two ports on the loopback interface that are not in use."""
    for port in range(18000, 19000, 2):
        with socket.socket() as one, socket.socket() as two:
            try:
                one.bind(("127.0.0.1", port))
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    raise AssertionError("no two free ports")


def write_method(folder: Path, pause: float) -> None:
    """Write the method's files, in a folder that is the working directory of its runs.

    Args:
        folder: the folder.
        pause: seconds that every step takes at least; the file `pause` may be changed at any time.
    """
    (folder / "configs" / "method").mkdir(parents=True, exist_ok=True)
    (folder / "configs" / "method" / "paused.yaml").write_text("_target_: paused.Paused\n")
    (folder / "paused.py").write_text(PAUSE)
    (folder / "pause").write_text(str(pause))


class Sweep:
    """A sweep of paused runs as its own process, in a folder with the method's files.

    Args:
        cluster: where its jobs go; None: it runs its jobs itself.
        folder: working directory; OUT in it is the output root.
        pause: seconds that every step takes at least.
        overrides: of the sweep.
    """

    def __init__(self, cluster: Cluster | None, folder: Path, pause: float, *overrides: str) -> None:
        write_method(folder, pause)
        self.folder = folder
        self.out = folder / "out"
        launcher = [
            "hydra/launcher=slurm", "hydra.launcher.time=10", "hydra.launcher.signal_seconds=20",
            "hydra.launcher.max_learners=1", "hydra.launcher.max_stops=20",
        ]  # fmt: skip
        self.words = [
            sys.executable, "-m", "kdbench", "-m", "--config-dir", "configs", *(launcher if cluster else []),
            *PAUSED, *TINY, f"output_root={self.out}", *overrides,
        ]  # fmt: skip
        environment = cluster.environment if cluster else dict(os.environ)
        path = os.pathsep.join([str(folder), environment.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        self.environment = environment | {"PYTHONPATH": path}
        self.start()

    def start(self) -> None:
        """Start the command, again after it has ended."""
        self.log = self.folder / f"log{len(list(self.folder.glob('log*')))}.txt"
        with self.log.open("w") as written:
            self.process = subprocess.Popen(
                self.words, cwd=self.folder, env=self.environment, stdout=written, stderr=subprocess.STDOUT
            )
        PROCESSES.append(self.process)

    def stop(self, number: signal.Signals) -> None:
        """Send a signal to the submitting process and wait for its end."""
        self.process.send_signal(number)
        self.process.wait(60)

    @property
    def printed(self) -> str:
        return self.log.read_text()

    @property
    def array(self) -> str:
        """Id of the array job that the command has submitted; empty before."""
        match = re.search(r"SLURM job (\d+): ", self.printed)
        return match[1] if match else ""

    def rows(self, *parts: str) -> int:
        """Return the number of epochs that the runs with some parts in their names have finished."""
        files = self.out.glob("runs/*/metrics.csv")
        chosen = [file for file in files if all(part in file.parent.name for part in parts)]
        return sum(len(file.read_text().splitlines()) - 1 for file in chosen)

    def job_logs(self) -> str:
        """Return the logs of all jobs."""
        return "\n".join(file.read_text() for file in sorted(self.out.glob("slurm/*/*_log.out")))


def same_runs(one: Path, other: Path) -> str:
    """Return the report of scripts/compare_runs.py on two output roots; it must find the same runs with equal bits."""
    words = [sys.executable, str(SCRIPT.with_name("compare_runs.py")), str(one), str(other)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
