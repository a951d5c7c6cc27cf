"""A study from its first teacher to its report, by the installed command, in parts."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from kdbench.study.read import read_study
from tests.study.conftest import TINY

BATCHES = ("recipe.batch_size=32", "teacher.recipe.batch_size=32")


@pytest.mark.slow
def test_a_study_executed_in_parts_ends_with_its_report(tmp_path: Path) -> None:
    own = tmp_path / "R&D (1) ü"
    (own / "study").mkdir(parents=True)
    (own / "study" / "tiny.yaml").write_text(TINY)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def study(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).with_name("kdbench-study"), "study=tiny", "--config-dir", own.name, *BATCHES]
        return subprocess.run(
            [*command, *flags], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
        )

    first = study("--minutes", "0.02")
    assert first.returncode == 3, first.stdout + first.stderr
    assert "time is up; to continue, give the same command: kdbench-study study=tiny" in first.stdout
    rest = study()
    assert rest.returncode == 0, rest.stdout + rest.stderr

    label = read_study(["study=tiny", *BATCHES], own).label
    assert rest.stdout.splitlines()[0] == f"study {label}: outputs/studies/{label}"
    folder = tmp_path / "outputs" / "studies" / label
    gains = pd.read_csv(folder / "report" / "gains.csv")
    assert gains[["student", "teacher", "method", "n", "n_base"]].values.tolist() == [
        ["resnet8", "resnet20", "logit", 2, 2]
    ]
    assert (folder / "report" / "report.html").stat().st_size > 10_000
    assert str(Path("outputs", "studies", label, "report", "report.html")) in rest.stdout
    assert len(list((tmp_path / "outputs" / "runs").glob("*/summary.json"))) == 7

    again = study()
    assert again.returncode == 0
    assert "job 1" not in again.stdout
    assert "7 of 7 runs done" in again.stdout
