"""Calls with mistakes in executing a study on an engine; tests/test_messages.py holds their messages."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.study import slurm
from kdbench.study.command import study
from kdbench.study.execute import StudyExecution
from kdbench.study.plan import StudyPlan
from kdbench.study.read import read_study
from kdbench.study.slurm_job import StageJob, check_stops
from kdbench.sweep.slurm_commands import SlurmError
from tests.slurm import slurm_options


def execution() -> StudyExecution:
    """Return a small study."""
    return StudyExecution(StudyPlan(read_study(["study=to_register", "output_root=on_slurm"], Path("own"))))


def submitted(minutes: float | None = None, jobs: str | None = None) -> None:
    """Submit a small study to a SLURM that does not answer."""
    given: Any = argparse.Namespace(minutes=minutes, overrides=[], config_dir=None, wait=False)
    found = execution()
    if jobs is not None:
        found.write_study()
        (found.plan.folder / slurm.JOBS_FILE).write_text(jobs)

    def away() -> None:
        raise SlurmError("Unable to contact slurm controller (connect failure)")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(slurm, "jobs_of_user", away)
        slurm.submit_study(found, slurm_options(), [], given)


def with_arguments(*arguments: str) -> None:
    """Give a command line of the small study."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("kdbench.study.launcher.names", lambda: ["joblib", "lockstep", "ray", "slurm"])
        study(["study=to_register", "--config-dir", "own", "output_root=on_engines", *arguments])


def groups_of_another_user() -> None:
    """Read groups that another user has written."""
    file = Path.cwd() / "groups.pkl"
    file.write_bytes(b"")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("os.getuid", lambda: file.stat().st_uid + 1)
        StageJob(file).own_groups()


JOBS = '{"jobs": [{"job": "12", "purpose": "teachers", "tasks": 1, "folder": "x"}]}'
STUDY_ENGINE_CASES: list[Callable[[], None]] = [
    *(lambda given=given: with_arguments(*given) for given in (
        ("hydra/launcher=basic",), ("hydra/launcher=slurn",), ("hydra.launcher.max_learners=2",),
        ("hydra/launcher=lockstep", "hydra.launcher.max_lerners=2"),
        ("hydra/launcher=lockstep", "hydra.launcher.max_learners=0"),
        ("hydra/launcher=lockstep", "--max-learners", "2"), ("--wait",), ("hydra/sweeper=basic",),
        ("hydra.launcher=slurm",), ("hydra/launcher=joblib", "hydra/launcher=slurm"), ("tracker=mlflow,wandb",),
    )),
    lambda: submitted(minutes=3), lambda: submitted(jobs=JOBS), lambda: submitted(jobs="{"),
    lambda: StageJob(Path("nowhere/groups.pkl")).own_groups(), groups_of_another_user,
    lambda: check_stops(3, 3),
]  # fmt: skip
