"""The groups of runs whose launchers are not those of a plain sweep: trials of a search, and studies on SLURM."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from kdbench.config.composition import compose
from kdbench.search import search
from kdbench.study import slurm_job
from kdbench.sweep.plan import PlannedRun, plan_run
from kdbench.sweep.worker import unpack_group
from tests.trackers.conftest import ALONE


@pytest.fixture
def run() -> PlannedRun:
    return plan_run((*ALONE, "tracker=[tensorboard]"), lambda texts: compose(texts))


@pytest.mark.slow
def test_trials_of_a_search_are_a_group(run: PlannedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also without a pruner, and whatever the arm."""
    monkeypatch.setattr(search, "check_runs", lambda runs: {})
    monkeypatch.setattr(search.Search, "plan", lambda self, trial: run)
    keys = cast(Any, SimpleNamespace(prunes=False, n_trials=1))
    nothing = cast(Any, None)
    search.Search("mine", "", keys, (), (), nothing, nothing, lambda able: (_ for _ in ()), True).execute([nothing])
    assert run.config.trackers[0].params.group == "mine"


@pytest.mark.slow
def test_runs_of_a_study_on_slurm_are_a_group(run: PlannedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_job, "check_runs", lambda runs: {})
    monkeypatch.setattr(slurm_job, "is_done", lambda run: False)
    plan = cast(Any, SimpleNamespace(study=SimpleNamespace(label="lab"), max_learners=1, all_runs=lambda: [run]))
    (group,) = slurm_job.divide([run], plan, "finals")
    (packed,) = unpack_group(group.task)
    assert packed.config.trackers[0].params.group == "lab/finals"


def test_groups_of_another_user_are_not_unpickled(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "groups.pkl"
    file.write_bytes(b"no pickle")
    monkeypatch.setattr("os.getuid", lambda: file.stat().st_uid + 1)
    with pytest.raises(slurm_job.RunError) as error:
        slurm_job.StageJob(file).own_groups()
    assert error.value.code == "wrong_owner"
