"""Real searches: `kdbench -m hydra/sweeper=optuna` on a network that trains in less than a second."""

import csv
import os
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from kdbench.report.command import report
from kdbench.rundir.directory import RunDirectory
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
HELD = """
import os
import sys
import time

from kdbench import cli
from kdbench.train.checkpoint import Checkpointer

end_epoch = Checkpointer.end_epoch


def held(own):
    end_epoch(own)
    while {}:
        time.sleep(0.05)


Checkpointer.end_epoch = held
sys.exit(cli.main())
"""
Kdbench = Callable[..., Finished]
Start = Callable[..., subprocess.Popen[str]]
Rows = list[dict[str, str]]


def rows_in(home: Path) -> Rows:
    with (home / "out/searches/s/trials.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a search in a process of its own, whose runs wait after each epoch while an expression is true."""

    def search(arguments: Sequence[str], waits_while: str = "False") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HELD.format(waits_while), *OPTUNA, *arguments]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        stack.enter_context(process)
        stack.callback(process.kill)
        return process

    with ExitStack() as stack:
        yield search


def until(condition: Callable[[], Any], process: subprocess.Popen[str], seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_search_finishes_its_trials_writes_its_results_and_continues(kdbench: Kdbench, tmp_path: Path) -> None:
    home = tmp_path / "home"
    space = (*TINY, "teacher=resnet8", "teacher.widths=[8,8,16,16]", "method=ce,logit", "method.temperature=1,2,4", LR)
    result = kdbench(*OPTUNA, *space, "hydra.sweeper.n_trials=3")
    assert result.code == 0, result.err
    rows = rows_in(home)
    assert {row["status"] for row in rows} == {"complete"}
    assert [row["default"] for row in rows] == ["True", "True", "False"]  # the default of each method
    more = kdbench(*OPTUNA, *space, "hydra.sweeper.n_trials=4")
    assert more.code == 0, more.err
    assert "job 2" not in more.out
    assert rows_in(home)[:3] == rows
    rows = rows_in(home)
    assert len(rows) == 4
    for row in rows:
        assert (row["method.temperature"] == "") == (row["method"] == "ce")  # a key where the method has it
        assert 1e-3 <= float(row["recipe.lr"]) <= 1e-1
        assert (home / row["run"] / "summary.json").is_file()
    best = OmegaConf.load(home / "out/searches/s/best.yaml")
    for winner in best.winners:
        own = [float(row["val_acc"]) for row in rows if row["method"] == winner.method]
        assert winner.score == pytest.approx(max(own), abs=1e-3)
    train, report_them = [shlex.split(line)[1:] for line in more.out.splitlines() if line.startswith("  kdbench")]
    fixed = [o for o in space if o.startswith(("data", "student.widths", "teacher.widths"))]
    finals = kdbench(*("seed=1" if o.startswith("seed=") else o for o in train), *fixed)
    assert finals.code == 0, finals.err
    (final,) = [RunDirectory(f, "").read_summary() for f in (home / "out/runs").glob("*_logit_*_seed1_*")]
    winner = next(w for w in best.winners if w.method == "logit")
    assert final.method_params == winner.method_params
    report([*report_them, "--no-figures"])
    assert "Search of settings" in (home / "report/report.md").read_text()


def test_every_option_gets_the_same_number_of_trials(kdbench: Kdbench, tmp_path: Path) -> None:
    space = (*TINY, "teacher=none", "method=ce,label_smoothing", "recipe.weight_decay=0,5e-4,1e-3", LR)
    result = kdbench(
        *OPTUNA, *space, "hydra.sweeper.per=[method]", "hydra.sweeper.n_trials=2", "hydra/sweeper/sampler=random",
        "hydra.sweeper.n_jobs=2", "hydra/launcher=lockstep",
    )  # fmt: skip
    assert result.code == 0, result.err
    rows = rows_in(tmp_path / "home")
    assert Counter(row["method"] for row in rows) == {"ce": 2, "label_smoothing": 2}
    assert {row["arm"] for row in rows} == {"method=ce", "method=label_smoothing"}
    assert "jobs in lockstep" in result.out
    assert "best of 2 trials" in result.out


def test_a_run_that_is_behind_is_pruned_and_can_be_continued(kdbench: Kdbench, tmp_path: Path) -> None:
    home = tmp_path / "home"
    result = kdbench(
        *OPTUNA, *ALONE, LR, "recipe.epochs=3", "hydra/sweeper/pruner=threshold", "hydra.sweeper.pruner.lower=0.99",
        "hydra.sweeper.n_trials=1", "hydra.sweeper.storage=trials.journal",
    )  # fmt: skip
    assert result.code == 0, result.err
    rows = rows_in(home)
    assert [(row["status"], row["epochs"]) for row in rows] == [("pruned", "1")]
    assert all(row["val_acc"] and not row["run"] for row in rows)
    assert not (home / "out/searches/s/best.yaml").exists()  # nothing is complete
    (folder,) = (home / "out/runs").iterdir()
    assert (folder / "last.ckpt").is_file()
    assert not (folder / "summary.json").exists()
    assert not (folder / "failure.json").exists()
    continued = kdbench(*ALONE, f"recipe.lr={rows[0]['recipe.lr']}", "recipe.epochs=3")
    assert continued.code == 0, continued.err
    assert "resuming from last.ckpt after 1 of 3 epochs" in continued.out


def test_runs_that_are_pruned_or_diverge_leave_those_that_train_with_them(
    kdbench: Kdbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrialReporter, "should_prune", lambda own: own.learner.recipe.lr < 0.01)
    result = kdbench(
        *OPTUNA, *ALONE, "recipe.lr=1e-3,0.05,1e9", "recipe.min_lr=0", "recipe.epochs=2", "hydra/sweeper/sampler=grid",
        "hydra/sweeper/pruner=threshold", "hydra.sweeper.pruner.lower=0", "hydra.sweeper.n_jobs=3",
        "hydra.sweeper.defaults_first=false", "hydra/launcher=lockstep",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert "3 jobs in lockstep" in result.out
    rows = {float(row["recipe.lr"]): row for row in rows_in(tmp_path / "home")}
    ended = {lr: (row["status"], row["epochs"]) for lr, row in rows.items()}
    assert ended == {1e-3: ("pruned", ""), 0.05: ("complete", "2"), 1e9: ("diverged", "")}
    assert float(rows[1e9]["val_acc"]) == 10.0  # chance


def test_several_objectives_have_a_front(kdbench: Kdbench, tmp_path: Path) -> None:
    home = tmp_path / "home"
    space = (*TINY, "teacher=none", "method=ce", "student=resnet8,resnet14", LR)
    result = kdbench(*OPTUNA, *space, "objectives=[val_acc,params]", "hydra.sweeper.n_trials=2")
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


def test_a_search_that_was_killed_goes_on_with_the_same_trials(tmp_path: Path, start: Start) -> None:
    space = (*ALONE, LR, "recipe.epochs=2", "checkpoint.every_epochs=1", "hydra.sweeper.n_trials=2")
    process = start(space, "len(os.listdir('out/runs')) == 2 and os.path.exists('hold')")
    (tmp_path / "hold").touch()

    def is_in_its_second_run() -> bool:
        runs = list(tmp_path.glob("out/runs/*"))
        return len(runs) == 2 and any((r / "last.ckpt").exists() and not (r / "summary.json").exists() for r in runs)

    until(is_in_its_second_run, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (tmp_path / "hold").unlink()
    again = start(space)
    out, _ = again.communicate(timeout=400)
    assert again.returncode == 0, out
    rows = rows_in(tmp_path)
    assert [(row["status"], row["attempts"]) for row in rows] == [("complete", "1"), ("complete", "2")]
    assert "resuming from last.ckpt after 1 of 2 epochs" in out
    assert len(list(tmp_path.glob("out/runs/*"))) == 2  # each run is there once
    assert not list(tmp_path.glob("out/.locks/*"))


def test_two_processes_share_a_search(tmp_path: Path, start: Start) -> None:
    space = (*ALONE, LR, "hydra.sweeper.n_trials=3")
    processes = [start(space, "len(os.listdir('out/runs')) < 2") for _ in range(2)]
    outs = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outs
    rows = rows_in(tmp_path)
    assert len({row["recipe.lr"] for row in rows}) == 3
    assert [row["status"] for row in rows] == ["complete"] * 3
    assert all("trial " in out for out in outs)
    assert not list(tmp_path.glob("out/.locks/*"))
