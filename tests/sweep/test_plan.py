"""Sweeps: every run is planned before one starts, each result is recorded, and errors end one run only."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kdbench.config import RunConfig
from kdbench.errors import BusyError, ConfigError, RunError
from kdbench.methods import CrossEntropy
from kdbench.rundir.directory import RunDirectory
from kdbench.sweep.execute import Groups, execute, in_turn, launch_here, mark_launched, run_single
from kdbench.sweep.lockstep import group_planned
from kdbench.sweep.overrides import expand
from kdbench.sweep.plan import JobResult, PlannedRun, plan
from kdbench.system.signals import Interrupted, handled

DONE = JobResult("complete", run="somewhere")


class Launcher:
    """Takes the place of a launcher: returns results by rules of the test, and trains nothing."""

    def __init__(self, results: Callable[[PlannedRun], JobResult | None] = lambda run: DONE) -> None:
        self.results = results
        self.launched: list[list[str]] = []
        self.first: list[int] = []

    def __call__(self, runs: Sequence[PlannedRun], first: int) -> list[JobResult | None]:
        self.launched.append([" ".join(run.overrides) for run in runs])
        self.first.append(first)
        return [self.results(run) for run in runs]


@pytest.fixture
def planned(small: Callable[..., RunConfig]) -> Callable[..., list[PlannedRun]]:
    """Plan the runs of a sweep of small runs."""

    def make(*overrides: str) -> list[PlannedRun]:
        return plan(expand(overrides), lambda job: small(*job))

    return make


def record(root: Path) -> list[dict[str, Any]]:
    (file,) = (root / "out" / "sweeps").iterdir()
    return json.loads(file.read_text())["jobs"]


def test_a_plan_has_a_config_or_an_error_for_each_run_and_writes_nothing(
    planned: Callable[..., list[PlannedRun]], tmp_path: Path
) -> None:
    runs = planned("method=ce", "recipe.lr=0.1,-1")
    assert [run.title for run in runs] == ["method=ce recipe.lr=0.1", "method=ce recipe.lr=-1"]
    assert runs[0].config.recipe.lr == 0.1
    assert runs[0].key == runs[0].directory.key
    assert isinstance(runs[1].error, ConfigError)
    assert (runs[1].error.code, runs[1].error.key) == ("out_of_range", "recipe.lr")
    assert [run.status for run in runs] == ["not started", "refused"]
    assert not list(tmp_path.iterdir())


def test_refused_runs_are_reported_and_the_others_are_launched_one_by_one(
    planned: Callable[..., list[PlannedRun]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, launcher = planned("method=ce", "recipe.lr=-1,0.1,0.2"), Launcher()
    with pytest.raises(RunError) as error:
        execute(runs, tmp_path / "out", in_turn(launcher))
    assert error.value.code == "failed_runs"
    assert launcher.launched == [["method=ce recipe.lr=0.1"], ["method=ce recipe.lr=0.2"]]
    assert launcher.first == [0, 1]
    assert [run["status"] for run in record(tmp_path)] == ["refused", "complete", "complete"]
    assert capsys.readouterr().err.splitlines() == [f"kdbench: error: {runs[0].title}: {runs[0].error}"]


def test_what_only_a_complete_check_finds_is_refused_before_any_run_starts(
    planned: Callable[..., list[PlannedRun]], tmp_path: Path
) -> None:
    runs, launcher = planned("method=ce", "data.num_train=64,200000"), Launcher()
    with pytest.raises(RunError):
        execute(runs, tmp_path / "out", in_turn(launcher))
    assert [run.status for run in runs] == ["complete", "refused"]
    assert len(launcher.launched) == 1


class Broken(CrossEntropy):
    def __init__(self, *args: Any) -> None:
        raise ValueError("a mistake in the method")


def test_a_run_whose_own_code_fails_is_refused_and_the_others_start(
    planned: Callable[..., list[PlannedRun]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = planned("method=ce", f"method._target_={__name__}.Broken,kdbench.methods.CrossEntropy")
    launcher = Launcher()
    with pytest.raises(RunError):
        execute(runs, tmp_path / "out", in_turn(launcher))
    assert launcher.launched == [["method=ce method._target_=kdbench.methods.CrossEntropy"]]
    assert [job["status"] for job in record(tmp_path)] == ["refused", "complete"]
    assert "ValueError: a mistake in the method" in capsys.readouterr().err


def test_a_sweep_without_a_run_that_can_start_writes_nothing(
    planned: Callable[..., list[PlannedRun]], tmp_path: Path
) -> None:
    with pytest.raises(RunError):
        execute(planned("method=ce", "recipe.lr=-1,-2"), tmp_path / "out", in_turn(Launcher()))
    assert not list(tmp_path.iterdir())


def test_skipped_runs_are_no_failures_and_failures_come_first(
    planned: Callable[..., list[PlannedRun]], tmp_path: Path
) -> None:
    skipped = JobResult("skipped", error="held by another process")
    with pytest.raises(BusyError) as busy:
        execute(planned("method=ce", "seed=0,1"), tmp_path / "out", in_turn(Launcher(lambda run: skipped)))
    assert (busy.value.code, busy.value.key) == ("busy", "on_busy")
    results = iter([skipped, None])  # None: the process of the second died
    runs = planned("method=ce", "seed=0,1")
    with pytest.raises(RunError):
        execute(runs, tmp_path / "out", in_turn(Launcher(lambda run: next(results))))
    assert [run.status for run in runs] == ["skipped", "failed"]
    assert all(run.problem for run in runs)


def test_an_interrupted_sweep_records_what_is_complete(
    planned: Callable[..., list[PlannedRun]], tmp_path: Path
) -> None:
    def interrupt(run: PlannedRun) -> JobResult:
        if "seed=1" in run.overrides:
            signal.raise_signal(signal.SIGINT)
        return DONE

    with handled(), pytest.raises(Interrupted):
        execute(planned("method=ce", "seed=0,1,2"), tmp_path / "out", in_turn(Launcher(interrupt)))
    assert [run["status"] for run in record(tmp_path)] == ["complete", "interrupted", "not started"]


def test_complete_runs_are_shown_at_the_end(planned: Callable[..., list[PlannedRun]], tmp_path: Path) -> None:
    shown: list[Path] = []
    execute(planned("method=ce", "seed=0,1"), tmp_path / "out", in_turn(Launcher()), show=shown.extend)
    assert shown == [Path("somewhere")] * 2


@pytest.mark.parametrize(("values", "shared"), [("0.1", False), ("0.1,0.2", True)])
def test_runs_of_one_teacher_share_a_logit_cache_where_it_saves_teacher_passes(
    planned: Callable[..., list[PlannedRun]], tmp_path: Path, values: str, shared: bool
) -> None:
    # Without augmentation a cache costs one pass; each run of one epoch makes one.
    runs = planned("method=logit", "data.augment=false", f"recipe.lr={values}")
    execute(runs, tmp_path / "out", in_turn(Launcher()))
    assert [("teacher.cache=on" in run["overrides"]) for run in record(tmp_path)] == [shared] * len(runs)
    assert {run.config.teacher.cache for run in runs if run.config.teacher} == {"on" if shared else "auto"}
    assert not any("teacher.cache" in run.title for run in runs)


def test_a_group_in_lockstep_makes_one_pass_which_no_cache_shortens(
    planned: Callable[..., list[PlannedRun]], tmp_path: Path
) -> None:
    runs, launcher = planned("method=logit", "data.augment=false", "recipe.lr=0.1,0.2"), Launcher()
    execute(runs, tmp_path / "out", in_turn(launcher), group_planned, lockstep=True)
    assert launcher.launched == [[run.title for run in runs]]


def test_the_same_plan_can_be_executed_again(planned: Callable[..., list[PlannedRun]], tmp_path: Path) -> None:
    runs = planned("method=ce", "seed=0")
    with pytest.raises(RunError):
        execute(runs, tmp_path / "out", in_turn(Launcher(lambda run: JobResult("failed", error="a reason"))))
    assert runs[0].problem == "a reason"
    execute(runs, tmp_path / "out", in_turn(Launcher()))
    assert (runs[0].status, runs[0].problem) == ("complete", None)


def test_launching_here_turns_errors_into_results(
    planned: Callable[..., list[PlannedRun]], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(learners: Any, batches: Any, epochs: int) -> None:
        with learners[1].guard:
            raise RunError("stopped on purpose", code="not_finite")
        with learners[0].guard:
            raise ValueError("a bug")

    runs = planned("method=ce", "recipe.lr=0.1,0.2")
    results = launch_here(runs, 4, heading=lambda: "the heading", train=fail)
    assert [result.status for result in results] == ["failed", "failed"]
    printed = capsys.readouterr()
    assert printed.out.splitlines()[1:5] == [
        "the heading", "2 jobs in lockstep", "job 5: recipe.lr=0.1", "job 6: recipe.lr=0.2",
    ]  # fmt: skip
    assert "kdbench: error: job 6: stopped on purpose" in printed.err
    assert "Traceback" in printed.err  # of the bug alone
    assert printed.err.count("Traceback") == 1


def test_a_run_that_another_process_holds_is_skipped(
    planned: Callable[..., list[PlannedRun]], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = planned("method=ce", "on_busy=skip")
    lock = runs[0].directory.lock()
    lock.acquire(wait=False)
    try:
        (result,) = launch_here(runs, 0)
    finally:
        lock.release()
    assert (result.status, result.run) == ("skipped", None)
    assert str(result.error) in capsys.readouterr().out


def test_a_run_in_a_process_of_its_own_returns_a_result_whatever_happens(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refuse() -> RunConfig:
        raise ConfigError("a value is out of range", code="out_of_range", key="recipe.lr")

    assert run_single(2, "recipe.lr=-1", refuse) == JobResult("failed", error="a value is out of range")
    printed = capsys.readouterr()
    assert "job 3: recipe.lr=-1" in printed.out
    assert printed.err == "kdbench: error: recipe.lr=-1: a value is out of range\n"


def test_a_complete_run_has_its_directory_as_result(small: Callable[..., RunConfig]) -> None:
    config = small("method=ce")
    result = run_single(0, "method=ce", lambda: config)
    assert result.status == "complete"
    assert result.run is not None
    assert RunDirectory(Path(result.run), "").is_complete()


def test_the_plugins_import_neither_torch_nor_pandas() -> None:
    code = (
        "import pkgutil, sys, hydra_plugins\n"
        "names = [m.name for m in pkgutil.iter_modules(hydra_plugins.__path__) if m.name.startswith('kdbench_')]\n"
        "for name in names: __import__(f'hydra_plugins.{name}')\n"
        "assert 'kdbench_slurm' in names\n"
        "heavy = ('torch', 'numpy', 'pandas', 'scipy', 'matplotlib', 'optuna', 'ray', 'joblib', 'submitit')\n"
        "sys.exit(str([m for m in heavy if m in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr == "[]\n"


def test_groups_that_end_in_another_order_are_recorded_as_they_end(
    planned: Callable[..., list[PlannedRun]], tmp_path: Path
) -> None:
    written = []

    def launch(groups: Groups) -> Generator[tuple[int, list[JobResult | None]], None, None]:
        yield 1, [DONE]
        written.append([run["status"] for run in record(tmp_path)])
        yield 0, [JobResult("interrupted", error="stopped by SIGTERM")]
        written.append([run["status"] for run in record(tmp_path)])
        yield 2, [DONE]

    runs = planned("method=ce", "seed=0,1,2")
    with pytest.raises(BusyError) as error:
        execute(runs, tmp_path / "out", launch)
    assert (error.value.code, error.value.exit_code) == ("interrupted", 75)
    assert written == [["not started", "complete", "not started"], ["interrupted", "complete", "not started"]]
    assert [run["status"] for run in record(tmp_path)] == ["interrupted", "complete", "complete"]


def test_an_interruption_ends_the_launcher_and_marks_every_group_that_it_had_started(
    planned: Callable[..., list[PlannedRun]], tmp_path: Path
) -> None:
    closed = []

    def launch(groups: Groups) -> Generator[tuple[int, list[JobResult | None]], None, None]:
        mark_launched([*groups[0], *groups[1], *groups[2]])
        try:
            yield 1, [DONE]
            signal.raise_signal(signal.SIGTERM)
        finally:
            closed.append(True)

    with handled(), pytest.raises(Interrupted):
        execute(planned("method=ce", "seed=0,1,2,3"), tmp_path / "out", launch)
    assert closed
    assert [run["status"] for run in record(tmp_path)] == ["interrupted", "complete", "interrupted", "not started"]
