"""A study from its first teacher to its report, by the installed command, in parts."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.study.test_study import TINY

SIZE = (
    "data.num_train=64",
    "data.num_val=50",
    "data.num_test=60",
    "recipe.batch_size=32",
    "teacher.recipe.batch_size=32",
)


@pytest.mark.slow
def test_a_study_carried_out_in_parts_ends_with_its_report(tmp_path: Path) -> None:
    (tmp_path / "own" / "study").mkdir(parents=True)
    (tmp_path / "own" / "study" / "tiny.yaml").write_text(TINY)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def study(*flags: str) -> subprocess.CompletedProcess[str]:
        command = [Path(sys.executable).with_name("kdbench-study"), "study=tiny", "--config-dir", "own", *SIZE, *flags]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    first = study("--minutes", "0.02")
    assert first.returncode == 3, first.stdout + first.stderr
    assert "time is up; the same command goes on: kdbench-study study=tiny" in first.stdout
    rest = study()
    assert rest.returncode == 0, rest.stdout + rest.stderr

    label = "tiny_" + "_".join(SIZE)
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
