"""Real searches: `kdbench -m hydra/sweeper=optuna` on a network that trains in less than a second."""

import csv
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from kdbench.runner import trials
from kdbench.runner.pruning import TrialReporter
from tests.conftest import SMALL, Finished

pytestmark = pytest.mark.slow
TINY = (
    *(o for o in SMALL if not o.startswith("teacher")), "data.num_train=56", "recipe.batch_size=16", "data.num_val=20",
    "data.num_test=20", "student.widths=[8,8,16,16]", "runtime.threads=1", "output_root=out",
)  # fmt: skip
ALONE = (*TINY, "teacher=none", "method=ce")
OPTUNA = ("-m", "hydra/sweeper=optuna", "hydra.sweeper.study_name=s")
LR = "recipe.lr=tag(log,interval(1e-3,1e-1))"
REPORT = "import sys; from kdbench.cli import main_report; sys.exit(main_report())"
Kdbench = Callable[..., Finished]
Rows = list[dict[str, str]]


@pytest.fixture(autouse=True)
def forget_storages() -> Any:
    """Close the databases of a test at its end."""
    yield
    trials.close_storages()


def rows_in(home: Path, name: str = "s") -> Rows:
    with (home / "out" / "searches" / name / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def run_processes(home: Path, arguments: Sequence[str], number: int = 1) -> list[subprocess.Popen[str]]:
    """Start the command in processes of their own."""
    home.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "kdbench", *OPTUNA, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            command, cwd=home, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(number)
    ]


def until(condition: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_search_finishes_its_trials_writes_its_results_and_continues(kdbench: Kdbench, tmp_path: Path) -> None:
    home = tmp_path / "home"
    space = (*TINY, "teacher=resnet8", "teacher.widths=[8,8,16,16]", "method=ce,logit", "method.temperature=1,2,4", LR)
    result = kdbench(*OPTUNA, *space, "hydra.sweeper.n_trials=6")
    assert result.code == 0, result.err
    rows = rows_in(home)
    assert len(rows) == 6
    assert {row["status"] for row in rows} == {"complete"}
    assert [row["default"] for row in rows[:3]] == ["True", "True", "False"]  # the default of each method
    for row in rows:
        assert (row["method.temperature"] == "") == (row["method"] == "ce")  # a key where the method has it
        assert 1e-3 <= float(row["recipe.lr"]) <= 1e-1
        assert (home / row["run"] / "summary.json").is_file()
    best = OmegaConf.load(home / "out/searches/s/best.yaml")
    assert list(best.selection_seeds) == [0]
    for winner in best.winners:
        own = [float(row["val_acc"]) for row in rows if row["method"] == winner.method]
        assert winner.score == pytest.approx(max(own), abs=1e-3)
        assert len(winner.candidates) == len({row["run"] for row in rows if row["method"] == winner.method})
    assert "does not report them" in result.out
    assert {row["epochs"] for row in rows} == {"1"}
    again = kdbench(*OPTUNA, *space, "hydra.sweeper.n_trials=6")
    assert again.code == 0
    assert "job 1" not in again.out
    more = kdbench(*OPTUNA, *space, "hydra.sweeper.n_trials=7")
    assert more.code == 0
    assert len(rows_in(home)) == 7
    printed = [shlex.split(line) for line in result.out.splitlines() if line.startswith("  kdbench")]
    assert [command[0] for command in printed] == ["kdbench", "kdbench-report"]
    finals = kdbench(*printed[0][1:], *(o for o in space if o.startswith(("data", "student.widths", "teacher.widths"))))
    assert finals.code == 0, finals.err
    reported = subprocess.run(
        [sys.executable, "-c", REPORT, *printed[1][1:], "--no-figures"], cwd=home, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert reported.returncode == 0, reported.stderr
    winner = next(w for w in best.winners if w.method == "logit")
    final = kdbench(
        "--config-dir", "out/searches/s", "experiment=best_logit", "seed=5", "output_root=out", "--cfg", "job"
    )
    assert final.code == 0, final.err
    assert f"temperature: {winner.method_params.temperature:g}\n" in final.out
    other = kdbench(*OPTUNA, *space, "recipe.weight_decay=0,1e-3", "hydra.sweeper.n_trials=6")
    assert other.code == 2
    assert "recipe.weight_decay is not searched there" in other.err
    assert len(other.err.splitlines()) == 1


def test_every_option_gets_the_same_number_of_trials(kdbench: Kdbench, tmp_path: Path) -> None:
    space = (*TINY, "teacher=none", "method=ce,label_smoothing", "recipe.weight_decay=0,5e-4,1e-3", LR)
    result = kdbench(
        *OPTUNA, *space, "hydra.sweeper.per=[method]", "hydra.sweeper.n_trials=3", "hydra/sweeper/sampler=random",
        "hydra.sweeper.n_jobs=2", "hydra/launcher=lockstep",
    )  # fmt: skip
    assert result.code == 0, result.err
    rows = rows_in(tmp_path / "home")
    assert Counter(row["method"] for row in rows) == {"ce": 3, "label_smoothing": 3}
    assert {row["arm"] for row in rows} == {"method=ce", "method=label_smoothing"}
    assert "jobs in lockstep" in result.out
    assert "best of 3 trials" in result.out


def test_a_search_of_few_settings_tries_each_once(kdbench: Kdbench, tmp_path: Path) -> None:
    for sampler in ("grid", "tpe"):
        result = kdbench(
            *OPTUNA, *ALONE, "recipe.lr=0.1,0.05", "recipe.weight_decay=0,5e-4", "hydra.sweeper.n_trials=9",
            f"hydra/sweeper/sampler={sampler}", f"hydra.sweeper.study_name={sampler}",
        )  # fmt: skip
        assert result.code == 0, result.err
        rows = rows_in(tmp_path / "home", sampler)
        assert len(rows) == len({(row["recipe.lr"], row["recipe.weight_decay"]) for row in rows}) == 4


def test_a_run_that_is_behind_is_pruned_and_can_be_continued(kdbench: Kdbench, tmp_path: Path) -> None:
    home = tmp_path / "home"
    result = kdbench(
        *OPTUNA, *ALONE, LR, "recipe.epochs=3", "hydra/sweeper/pruner=threshold", "hydra.sweeper.pruner.lower=0.99",
        "hydra.sweeper.n_trials=2", "hydra.sweeper.storage=trials.journal",
    )  # fmt: skip
    assert result.code == 0, result.err
    rows = rows_in(home)
    assert [(row["status"], row["epochs"]) for row in rows] == [("pruned", "1")] * 2
    assert all(row["val_acc"] and not row["run"] for row in rows)
    assert not (home / "out/searches/s/best.yaml").exists()  # nothing is complete
    folders = list((home / "out/runs").iterdir())
    assert len(folders) == 2
    assert all((f / "last.ckpt").is_file() and not (f / "summary.json").exists() for f in folders)
    assert not any((f / "failure.json").exists() for f in folders)
    continued = kdbench(*ALONE, f"recipe.lr={rows[1]['recipe.lr']}", "recipe.epochs=3")
    assert continued.code == 0, continued.err
    assert "resuming from last.ckpt after 1 of 3 epochs" in continued.out


def test_a_pruned_run_leaves_those_that_train_with_it(
    kdbench: Kdbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrialReporter, "should_prune", lambda own: own.learner.recipe.lr < 0.01)
    result = kdbench(
        *OPTUNA, *ALONE, "recipe.lr=1e-3,0.05", "recipe.min_lr=0", "recipe.epochs=3", "hydra/sweeper/sampler=grid",
        "hydra/sweeper/pruner=threshold", "hydra.sweeper.pruner.lower=0", "hydra.sweeper.n_jobs=2",
        "hydra.sweeper.defaults_first=false", "hydra/launcher=lockstep",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "jobs in lockstep" in result.out
    rows = {float(row["recipe.lr"]): (row["status"], row["epochs"]) for row in rows_in(tmp_path / "home")}
    assert rows == {1e-3: ("pruned", ""), 0.05: ("complete", "3")}


def test_a_loss_that_is_not_finite_is_a_result_at_chance(kdbench: Kdbench, tmp_path: Path) -> None:
    result = kdbench(
        *OPTUNA, *ALONE, "recipe.lr=0.1,1e9", "hydra/sweeper/sampler=grid", "hydra.sweeper.defaults_first=false"
    )
    assert result.code == 0, result.err
    rows = {float(row["recipe.lr"]): row for row in rows_in(tmp_path / "home")}
    assert rows[0.1]["status"] == "complete"
    assert rows[1e9]["status"] == "diverged"
    assert float(rows[1e9]["val_acc"]) == 10.0


def test_several_objectives_have_a_front(kdbench: Kdbench, tmp_path: Path) -> None:
    home = tmp_path / "home"
    space = (*TINY, "teacher=none", "method=ce", "student=resnet8,resnet14", LR)
    result = kdbench(*OPTUNA, *space, "objectives=[val_acc,params]", "hydra.sweeper.n_trials=5")
    assert result.code == 0, result.err
    rows = rows_in(home)
    assert len({row["params"] for row in rows}) == 2
    with (home / "out/searches/s/front.csv").open() as file:
        front = list(csv.DictReader(file))
    for row in front:
        better = [
            r for r in rows if float(r["val_acc"]) >= float(row["val_acc"]) and int(r["params"]) < int(row["params"])
        ]
        assert not better
    assert "Pareto front of val_acc and params" in result.out
    pruned = kdbench(*OPTUNA, *space, "objectives=[val_acc,params]", "hydra/sweeper/pruner=median")
    assert pruned.code == 2
    assert "compares one number by epoch" in pruned.err


def test_a_search_that_was_killed_goes_on_with_the_same_trials(tmp_path: Path) -> None:
    home = tmp_path / "home"
    space = (*ALONE, LR, "recipe.epochs=40", "checkpoint.every_epochs=1", "hydra.sweeper.n_trials=3")
    (process,) = run_processes(home, space)

    def is_in_its_second_run() -> bool:
        runs = list(home.glob("out/runs/*"))
        return len(runs) == 2 and any((r / "last.ckpt").exists() and not (r / "summary.json").exists() for r in runs)

    until(is_in_its_second_run, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (again,) = run_processes(home, space)
    out, _ = again.communicate(timeout=400)
    assert again.returncode == 0, out
    rows = rows_in(home)
    assert len(rows) == 3
    assert {row["status"] for row in rows} == {"complete"}
    assert sorted(int(row["attempts"]) for row in rows) == [1, 1, 2]
    assert "resuming from last.ckpt" in out
    assert len(list(home.glob("out/runs/*"))) == 3  # no run was lost, and none begun twice
    assert not list(home.glob("out/.locks/*"))


def test_two_processes_share_a_search(tmp_path: Path) -> None:
    home = tmp_path / "home"
    processes = run_processes(home, (*ALONE, LR, "recipe.epochs=4", "hydra.sweeper.n_trials=8"), number=2)
    outs = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outs
    rows = rows_in(home)
    assert len(rows) == len({row["recipe.lr"] for row in rows}) == 8
    assert {row["status"] for row in rows} == {"complete"}
    assert all("trial " in out for out in outs)
    assert not list(home.glob("out/.locks/*"))
