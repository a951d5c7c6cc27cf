"""The lockstep launcher: `kdbench -m hydra/launcher=lockstep` trains the jobs of a sweep in groups."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SMALL, Finished
from tests.errors import recorded_errors, reported

TINY = (
    *SMALL, "data.num_train=56", "recipe.batch_size=16", "recipe.epochs=1", "teacher.recipe.batch_size=16",
    "data.num_val=20", "data.num_test=20", "student.widths=[8,8,16,16]", "teacher=resnet8",
    "teacher.widths=[8,8,16,16]", "teacher.seed=9", "runtime.threads=1", "output_root=out",
)  # fmt: skip
LOCKSTEP = ("-m", "hydra/launcher=lockstep")
Kdbench = Callable[..., Finished]


def jobs_of(home: Path) -> list[dict[str, Any]]:
    """Return the jobs of the only record of a sweep."""
    (record,) = (home / "out" / "sweeps").iterdir()
    return json.loads(record.read_text())["jobs"]


def test_a_sweep_is_grouped_and_every_job_has_its_own_run(kdbench: Kdbench, tmp_path: Path) -> None:
    home = tmp_path / "home"
    result = kdbench(*LOCKSTEP, *TINY, "method=ce,logit", "seed=0,1")
    assert result.code == 0, result.err
    jobs = jobs_of(home)
    assert [job["status"] for job in jobs] == ["complete"] * 4
    assert [job["overrides"][-1] for job in jobs] == ["seed=0", "seed=1"] * 2
    assert len({job["run"] for job in jobs}) == 4
    assert len(list((home / "out" / "runs").glob("*/summary.json"))) == 5  # the teacher's too
    summaries = [json.loads((home / job["run"] / "summary.json").read_text()) for job in jobs]
    assert [summary["lockstep"] for summary in summaries] == [2] * 4  # a group per seed
    assert sorted(re.findall(r"^(job \d): epoch 1/1", result.out, re.MULTILINE)) == [f"job {n}" for n in range(1, 5)]
    again = kdbench(*LOCKSTEP, *TINY, "method=ce,logit", "seed=0")
    assert again.code == 0
    assert again.out.count("complete already, skipped") == 2


@pytest.mark.slow
def test_a_job_that_fails_or_is_refused_leaves_the_others_alone(kdbench: Kdbench, tmp_path: Path) -> None:
    with recorded_errors() as made:
        result = kdbench(*LOCKSTEP, "hydra.launcher.max_learners=2", *TINY, "method=ce", "recipe.lr=0.1,1e9,-1")
    assert result.code == 1
    assert reported(made, result.err) == [
        ("out_of_range", "recipe.lr"),
        ("not_finite", "recipe.lr"),
        ("failed_runs", ""),
    ]
    assert "job 2: " in result.err.splitlines()[1]
    assert [job["status"] for job in jobs_of(tmp_path / "home")] == ["complete", "failed", "refused"]


@pytest.mark.parametrize(
    "given", ["0", "two", *(pytest.param(value, marks=pytest.mark.wide) for value in ("1.5", "null"))]
)
def test_the_limit_of_a_group_is_checked(kdbench: Kdbench, given: str) -> None:
    with recorded_errors() as made:
        result = kdbench(*LOCKSTEP, f"hydra.launcher.max_learners={given}", *TINY, "method=ce", "seed=0,1")
    assert result.code == 2
    code = "out_of_range" if given == "0" else "wrong_type"
    assert reported(made, result.err) == [(code, "hydra.launcher.max_learners")]


@pytest.mark.slow
def test_the_launcher_works_for_hydras_own_sweeper(kdbench: Kdbench, tmp_path: Path) -> None:
    result = kdbench(*LOCKSTEP, "hydra/sweeper=basic", *TINY, "method=ce", "recipe.lr=0.1,0.2")
    assert result.code == 0, result.err
    summaries = (tmp_path / "home" / "out" / "runs").glob("*/summary.json")
    assert [json.loads(file.read_text())["lockstep"] for file in summaries] == [2, 2]
