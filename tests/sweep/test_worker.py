"""Groups of runs in the worker processes of engines: what is sent, what comes back, and what a stop does."""

import os
import pickle
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hydra_plugins.kdbench_lockstep import LockstepLauncher
from kdbench.config import RunConfig
from kdbench.errors import ConfigError
from kdbench.sweep import processes, ray_tasks, worker
from kdbench.sweep.launcher import check_engine
from kdbench.sweep.overrides import expand
from kdbench.sweep.plan import PlannedRun, plan
from kdbench.sweep.slurm import parameters_of
from kdbench.sweep.worker import GroupTask, pack_group, run_group, with_runtime
from kdbench.system.cpu import OPENMP_IN_SHELL, SPIN_COUNT
from kdbench.system.signals import Interrupted
from tests.slurm import slurm_options


@pytest.fixture
def planned(small: Callable[..., RunConfig]) -> Callable[..., list[PlannedRun]]:
    """Plan the runs of a sweep of small runs."""
    return lambda *overrides: plan(expand(overrides), lambda job: small(*job))


@pytest.fixture
def own_folder() -> Any:
    """Return to the working directory and the import path of before the test."""
    folder, path = Path.cwd(), list(sys.path)
    yield
    os.chdir(folder)
    sys.path[:] = path


def test_a_task_is_plain_data_and_its_runs_come_back_equal(planned: Callable[..., list[PlannedRun]]) -> None:
    runs = planned("method=ce,logit", "seed=0,1")
    task = pickle.loads(pickle.dumps(pack_group(runs, 3, "a heading")))
    assert (task.first, task.heading, task.folder) == (3, "a heading", str(Path.cwd()))
    assert "" not in task.python_path
    for sent, run in zip(pickle.loads(task.runs), runs, strict=True):
        assert (sent.config, sent.key, sent.title, sent.overrides) == (run.config, run.key, run.title, run.overrides)


def test_a_group_is_completed_with_the_device_and_threads_of_its_worker(
    planned: Callable[..., list[PlannedRun]], capfd: pytest.CaptureFixture[str], own_folder: None
) -> None:
    runs = planned("method=ce", "runtime.device=auto", "runtime.threads=auto", "seed=0,1")
    results = run_group(pack_group(runs, 4, "study: 1 of 9"), device="cpu", threads=1)
    assert [result.status for result in results] == ["complete"] * 2
    assert [result.run for result in results] == [str(run.directory.path) for run in runs]
    printed = capfd.readouterr().out
    assert printed.index("study: 1 of 9") < printed.index("2 jobs in lockstep") < printed.index("job 5: seed=0")
    assert "on cpu, fp32, threads: 1" in printed


@pytest.mark.slow
def test_an_error_of_a_run_is_printed_by_its_worker_with_the_number_of_the_run(
    planned: Callable[..., list[PlannedRun]], capfd: pytest.CaptureFixture[str], own_folder: None
) -> None:
    runs = planned("method=ce", "teacher=none", "recipe.lr=1e30", "recipe.clip_norm=null")
    (result,) = run_group(pack_group(runs, 1), device="cpu", threads=1, named=True)
    assert result.status == "failed"
    assert re.search(r"kdbench: error: job 2: .*recipe.lr", capfd.readouterr().err)


def test_values_that_a_run_gives_itself_stay(planned: Callable[..., list[PlannedRun]]) -> None:
    (run,) = planned("method=ce", "runtime.device=cpu", "runtime.threads=1")
    assert with_runtime(run.config, "cuda:1", 2) == run.config


def test_what_goes_wrong_in_a_worker_is_the_result_of_each_run(
    planned: Callable[..., list[PlannedRun]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_folder: None
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    task = pack_group(planned("method=ce", "seed=0,1"))
    folder.rmdir()
    results = run_group(task)
    assert [result.status for result in results] == ["failed"] * 2
    assert str(folder) in str(results[0].error)


def test_a_stop_in_a_worker_is_the_result_of_its_runs(
    planned: Callable[..., list[PlannedRun]], monkeypatch: pytest.MonkeyPatch, own_folder: None
) -> None:
    def receive_a_signal(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr("kdbench.sweep.execute.run_with_retries", receive_a_signal)
    before = signal.getsignal(signal.SIGTERM)
    results = run_group(pack_group(planned("method=ce", "seed=0,1")))
    assert [(result.status, result.error) for result in results] == [("interrupted", "stopped by SIGTERM")] * 2
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_stop_can_be_sent_from_process_to_process() -> None:
    stop = pickle.loads(pickle.dumps(Interrupted(signal.SIGTERM)))
    assert (stop.requested, stop.exit_code, str(stop)) == (signal.SIGTERM, 75, "SIGTERM")


@pytest.mark.parametrize(("given", "code"), [(0, "out_of_range"), ("two", "wrong_type"), (None, "wrong_type")])
def test_the_base_of_the_launchers_checks_the_size_of_a_group(given: Any, code: str) -> None:
    with pytest.raises(ConfigError) as error:
        LockstepLauncher(max_learners=given).check([])
    assert (error.value.code, error.value.key) == (code, "hydra.launcher.max_learners")
    assert LockstepLauncher(max_learners=2).max_learners == 2


def test_a_launcher_names_the_extra_that_it_needs() -> None:
    check_engine("ray", "hydra", "ray")
    with pytest.raises(ConfigError) as error:
        check_engine("ray", "no_such_package", "ray")
    assert (error.value.code, error.value.key) == ("missing_extra", "hydra/launcher")
    assert "pip install 'kdbench[ray]'" in str(error.value)


def test_what_joblib_and_ray_send_first_imports_nothing_heavy(planned: Callable[..., list[PlannedRun]]) -> None:
    sent = [pickle.dumps(call) for call in (processes.execute, processes.prepare, ray_tasks.run_group)]
    sent.append(pickle.dumps(pack_group(planned("method=ce"))))
    code = (
        f"import pickle, sys; [pickle.loads(sent) for sent in {sent}]\n"
        "sys.exit(str([m for m in ('torch', 'hydra', 'kdbench.config') if m in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr == "[]\n"


def test_a_worker_has_the_commands_variables_before_it_does_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    seen = []
    monkeypatch.setattr(worker, "configure_openmp", lambda: seen.append(os.environ["OMP_WAIT_POLICY"]))
    run_group(GroupTask(b"", ("seed=0",), 0, None, "nowhere", ()), environment={"OMP_WAIT_POLICY": "passive"})
    assert seen == ["passive"]


@pytest.mark.parametrize(
    ("given", "count"),
    [({}, SPIN_COUNT), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, "")],
)
def test_the_batch_script_of_a_task_has_the_same_openmp_settings(given: dict[str, str], count: str) -> None:
    script = f'{OPENMP_IN_SHELL}; printf %s "$GOMP_SPINCOUNT"'
    assert (
        subprocess.check_output(["bash", "-c", script], text=True, env={"PATH": os.environ["PATH"], **given}) == count
    )
    assert OPENMP_IN_SHELL in parameters_of(slurm_options(), "kdbench")["setup"]
