"""Files and commands that a search ends with, without training."""

import csv
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import yaml

from kdbench.errors import BusyError
from kdbench.report.search.build import compute_search
from kdbench.report.search.read import read_search
from kdbench.rundir.summary import RunSummary
from kdbench.search import command, results
from kdbench.search.results import commands_of_finals, gain_text, show, trial_row, write_results, write_rows
from kdbench.search.search import Search
from kdbench.search.space import read_space
from kdbench.search.trials import Arm, Members
from kdbench.search.winners import best_of, experiment_text, varied_of
from kdbench.study.winners import Candidate
from kdbench.sweep.overrides import parse
from tests.messages_of_search import searched
from tests.report.conftest import write_run
from tests.search.in_memory import arm_of, search_of, tell_complete

FIRST: Any = SimpleNamespace(seed=0, output_root="out put/a", shared_roots=["/shared"])


def summary(key: str, score: float) -> RunSummary:
    return RunSummary(
        run_key=key, student="resnet8", teacher="resnet20", method="logit", best_val_acc=score, num_val=100,
        method_params={}, recipe={}, test_acc_best=score,
    )  # fmt: skip


def candidate(recipe: str, score: float) -> tuple[Candidate, tuple[str, ...]]:
    searched = ["method=logit", f"recipe={recipe}", "method.temperature=1"]
    own = ("student=resnet8", "tracker=[mlflow]", "runtime=default", "output_root=x", *searched)
    return Candidate(None, varied_of(searched), [summary(recipe, score)]), own


def test_a_searched_recipe_is_part_of_the_winner() -> None:
    best = best_of([candidate("short", 0.5), candidate("paper", 0.7)])
    assert best.winner.overrides == ["recipe=paper", "method.temperature=1"]
    assert best.winner.runner_up == {"overrides": ["recipe=short", "method.temperature=1"], "score": 50.0}
    assert "recipe=paper" in best.overrides
    text = experiment_text(best, SimpleNamespace(name="s"), FIRST)
    assert yaml.safe_load(text) == {
        "defaults": [{"override /student": "resnet8"}, {"override /method": "logit"}, {"override /recipe": "paper"}],
        "method": {"temperature": 1},
    }


def test_the_winner_is_that_of_its_run_where_overrides_are_equal() -> None:
    lesser, better = candidate("short", 0.5), candidate("paper", 0.7)
    best = best_of([(replace(lesser[0], overrides=()), lesser[1]), (replace(better[0], overrides=()), better[1])])
    assert "recipe=paper" in best.overrides


def test_a_searched_experiment_is_continued_by_that_of_the_winner() -> None:
    best = best_of([(candidate("paper", 0.5)[0], ("experiment=siddo", "recipe=paper", "recipe.lr=0.1"))])
    text = experiment_text(best, SimpleNamespace(name="s"), FIRST)
    assert yaml.safe_load(text)["defaults"] == ["siddo", "_self_", {"override /recipe": "paper"}]


def test_the_commands_that_follow_have_the_roots_and_the_trust_of_the_search() -> None:
    space = read_space(["recipe.lr=1,2", "trust=[own]", "data=shapes", "runtime.device=cpu"])
    search: Any = SimpleNamespace(arms=[SimpleNamespace(options=SimpleNamespace(space=space))])
    best = [replace(best_of([candidate("short", 0.5)]), experiment="best_logit")]
    train, report = commands_of_finals(search, Path("out put/a/searches/s"), best, FIRST, None)
    assert train[2:5] == ["--config-dir", "out put/a/searches/s", "experiment=best_logit"]
    assert train[5:8] == ["seed=1,2,3", "trust=[own]", "runtime.device=cpu"]
    assert [o.partition("=")[0] for o in train[8:]] == ["output_root", "shared_roots"]
    assert report[1] == "out put/a/runs"


def test_the_commands_that_follow_have_the_folder_of_options_of_the_search() -> None:
    search: Any = SimpleNamespace(arms=[SimpleNamespace(options=SimpleNamespace(space=read_space(["recipe.lr=1,2"])))])
    best = [replace(best_of([candidate("short", 0.5)]), experiment="best_logit")]
    for folder, searchpath in (("/out/s", "[file:///out/s]"), ("/my out/s", "['file:///my out/s']")):
        train, _ = commands_of_finals(search, Path(folder), best, FIRST, "my conf")
        assert train[2:6] == ["--config-dir", "my conf", f"hydra.searchpath={searchpath}", "experiment=best_logit"]
        assert parse(train[4]).value() == [f"file://{folder}"]


def test_no_gain_over_a_default_setting_that_diverged() -> None:
    best = best_of([candidate("short", 0.5)])
    row = {"default": True, "student": "resnet8", "teacher": "resnet20", "method": "logit", "val_acc": 10.0}
    assert gain_text([row | {"status": "diverged"}], best) == " (the default setting diverged)"
    assert gain_text([row | {"status": "pruned"}], best) == " (the default setting was pruned)"
    assert gain_text([row | {"status": "complete"}], best) == " (+40.00 points over the default setting)"


def try_teachers() -> Arm:
    """Try every setting of two teachers and two methods. Plain training has none: two of its settings are one run."""
    arm = arm_of(
        "teacher=resnet20,resnet56", "method=ce,logit", "recipe.lr=0.1,0.2", sampler={"name": "grid", "seed": 0}
    )
    arm.enqueue_defaults()
    while own := arm.draw("here"):
        teacher, method, lr = (own.params[key] for key in ("teacher", "method", "recipe.lr"))
        teacher, role = (None, "baseline") if method == "ce" else (teacher, "distilled")
        score = {"ce": 0.5, "logit": 0.7}[method] + float(lr)
        arm.set_attrs(own.number, {
            "status": "complete", "run": "", "scores": {"val_acc": score}, "student": "resnet8", "teacher": teacher,
            "method": method, "role": role, "run_key": f"{method} {teacher} {lr}",
        })  # fmt: skip
        arm.study.tell(own.number, score)
    return arm


def test_plain_training_is_one_baseline_where_teachers_are_searched(tmp_path: Path) -> None:
    arm = try_teachers()
    search: Any = SimpleNamespace(arms=[arm])
    rows = [trial_row(arm, trial, []) for trial in arm.trials()]
    assert {(row["method"], row["teacher"]) for row in rows} == {
        ("ce", None),
        ("logit", "resnet20"),
        ("logit", "resnet56"),
    }
    assert "teacher=resnet56 method=ce" in " ".join(row["setting"] for row in rows)
    write_rows(tmp_path / "trials.csv", rows, search)
    part = compute_search(read_search(tmp_path), pd.DataFrame(), [], None, pd.DataFrame())
    table = part.table.set_index("teacher", drop=False)
    assert list(part.table["method"]) == ["ce", "logit", "logit"]
    for teacher in ("resnet20", "resnet56"):
        assert (table.trials[teacher], table.trials_base[teacher], table.trials_equal[teacher]) == (2, 2, 2)
        assert table.equal_gain[teacher] == pytest.approx(20)
        assert table.val_default[teacher] == pytest.approx(80)
        assert table.default_gain[teacher] == pytest.approx(20)


def test_the_trials_of_plain_training_are_counted_as_runs(capsys: pytest.CaptureFixture[str]) -> None:
    arm = try_teachers()
    rows = [trial_row(arm, trial, []) for trial in arm.trials()]
    best = best_of([candidate("short", 0.7)])
    plain = replace(best, winner=replace(best.winner, teacher=None, method="ce"))
    show(SimpleNamespace(name="s", arms=[arm]), Path("s"), rows, [], [plain])
    assert "resnet8 ce: validation accuracy 70.00% (+10.00 points over the default setting), best of 2 trials" in (
        capsys.readouterr().out
    )


def test_runs_are_found_where_the_output_root_is_now(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arm = arm_of("recipe.lr=interval(0,1)")
    stored = ["/old/runs/a", "b", "c", "gone"]  # a whole path: of a search by an earlier version
    for number, run in enumerate(stored):
        tell_complete(arm, number / 10, run)
    for folder, name in (("new", "a"), ("new", "b"), ("shared", "c")):
        write_run(tmp_path / folder / "runs", seed=0).rename(tmp_path / folder / "runs" / name)
    search = search_of(arm, Members(tmp_path, "s"))
    first: Any = SimpleNamespace(output_root=str(tmp_path / "new"), shared_roots=[str(tmp_path / "shared")], seed=0)
    write_results(search, tmp_path / "new/searches/s", first, None)
    with (tmp_path / "new/searches/s/trials.csv").open() as file:
        runs = [row["run"] for row in csv.DictReader(file)]
    assert [Path(run).relative_to(tmp_path).as_posix() for run in runs[:3]] == [
        "new/runs/a",
        "new/runs/b",
        "shared/runs/c",
    ]
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if "no candidates" in line and line.endswith(": 3")]) == 1
    assert "best_ce.yaml" in [f.name for f in (tmp_path / "new/searches/s/experiment").iterdir()]


def test_the_results_are_written_alone_and_their_error_does_not_replace_that_of_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "searches").mkdir()
    (tmp_path / "searches/s").touch()  # where its folder should be
    held = []

    def work(search: Any) -> None:
        tell_complete(search.arms[0])
        raise BusyError("the error of the search", code="busy")

    def see(*arguments: Any) -> None:
        held.append((tmp_path / ".locks/search_s.lock").exists())
        write_results(*arguments)

    monkeypatch.setattr(Search, "work", work)
    monkeypatch.setattr(results, "write_results", see)
    monkeypatch.setattr(command, "config_dir_of", lambda loader: None)
    with pytest.raises(BusyError, match="the error of the search"):
        searched("recipe.lr=interval(0,1)", f"output_root={tmp_path}")
    assert held == [True]
    assert "the results of search s cannot be written" in capsys.readouterr().err


def test_a_full_disk_at_the_end_does_not_replace_the_error_of_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def alone(members: Members) -> Iterator[None]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        yield

    def work(search: Any) -> None:
        monkeypatch.setattr(Members, "alone", alone)
        raise BusyError("the error of the search", code="busy")

    monkeypatch.setattr(Search, "work", work)
    monkeypatch.setattr(command, "config_dir_of", lambda loader: None)
    with pytest.raises(BusyError, match="the error of the search"):
        searched("recipe.lr=interval(0,1)", f"output_root={tmp_path}")
    assert "the results of search s cannot be written" in capsys.readouterr().err
