"""A study on a real SLURM: students start after their teachers, and all ends as in one process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.faults.checks import differences, results
from tests.slurm import Cluster
from tests.study.conftest import TINY

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]
COMMAND = (
    "study=tiny", "--config-dir", "own", "output_root=out", "recipe.batch_size=32", "teacher.recipe.batch_size=32",
    "student.widths=[8,8,16,16]", "teacher.widths=[8,8,16,16]", "runtime.threads=1",
)  # fmt: skip
SLURM = ("hydra/launcher=slurm", "hydra.launcher.time=10")


def call(folder: Path, environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """Execute kdbench-study in a folder with the small study."""
    (folder / "own" / "study").mkdir(parents=True, exist_ok=True)
    (folder / "own" / "study" / "tiny.yaml").write_text(TINY)
    program = (
        "from kdbench.study import slurm; slurm.POLL_SECONDS = 0.5; from kdbench.cli import main_study; main_study()"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *COMMAND, *words],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def test_a_study_as_dependent_arrays_ends_as_in_one_process(slurm: Cluster, tmp_path: Path) -> None:
    here = call(tmp_path / "here", {**os.environ, "OMP_NUM_THREADS": "1"})
    assert here.returncode == 0, here.stdout + here.stderr

    folder = tmp_path / "there"
    submitted = call(folder, slurm.environment, *SLURM)
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    purposes = [line.split(": ")[1].split(",")[0] for line in submitted.stdout.splitlines() if "SLURM job" in line]
    assert purposes == ["teachers", "selection", "finals-plan", "finals", "report"]
    again = call(folder, slurm.environment, *SLURM, "--wait")  # waits for the jobs that are queued
    assert "is submitted already" in again.stdout
    assert again.returncode == 0, again.stdout + again.stderr + logs(folder)
    assert "7 of 7 runs done" in again.stdout

    assert not differences(results(folder), results(tmp_path / "here"))
    assert len(results(folder)) == 7
    times = {path.name: (path / "config.yaml", path / "summary.json") for path in folder.glob("out/runs/*")}
    teacher = max(files[1].stat().st_mtime for name, files in times.items() if "resnet20_ce" in name)
    students = [files[0].stat().st_mtime for name, files in times.items() if "_from_" in name]
    assert len(students) == 4
    assert min(students) > teacher
    assert logs(folder).count("resnet20 ce seed 0: ") == 1
    study = "out/studies/" + next((folder / "out" / "studies").iterdir()).name
    selected, expected = (OmegaConf.load(root / study / "selected.yaml") for root in (folder, tmp_path / "here"))
    assert selected == expected
    gains = "report/gains.csv"
    assert (folder / study / gains).read_text() == (tmp_path / "here" / study / gains).read_text()


def logs(folder: Path) -> str:
    """Return what all jobs of a folder have printed."""
    return "\n".join(file.read_text() for file in sorted(folder.glob("out/slurm/*/*_log.out")))
