"""Files and commands that a search ends with, without training."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from kdbench.search.results import best_of, experiment_text, following, gain_text, varied_of
from kdbench.search.space import read_space
from kdbench.study.winners import Candidate

FIRST: Any = SimpleNamespace(seed=0, output_root="out put/a", shared_roots=["/shared"])


def summary(key: str, score: float) -> Any:
    return SimpleNamespace(
        run_key=key, student="resnet8", teacher="resnet20", method="logit", best_val_acc=score, num_val=100,
        method_params={}, recipe={},
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
    train, report = following(search, Path("out put/a/searches/s"), best, FIRST, None)
    assert train[2:5] == ["--config-dir", "out put/a/searches/s", "experiment=best_logit"]
    assert train[5:8] == ["seed=1,2,3", "trust=[own]", "runtime.device=cpu"]
    assert [o.partition("=")[0] for o in train[8:]] == ["output_root", "shared_roots"]
    assert report[1] == "out put/a/runs"


def test_the_commands_that_follow_have_the_folder_of_options_of_the_search() -> None:
    search: Any = SimpleNamespace(arms=[SimpleNamespace(options=SimpleNamespace(space=read_space(["recipe.lr=1,2"])))])
    best = [replace(best_of([candidate("short", 0.5)]), experiment="best_logit")]
    train, _ = following(search, Path("/out/searches/s"), best, FIRST, "my conf")
    assert train[2:6] == [
        "--config-dir", "my conf", "hydra.searchpath=['file:///out/searches/s']", "experiment=best_logit",
    ]  # fmt: skip


def test_no_gain_over_a_default_setting_that_diverged() -> None:
    best = best_of([candidate("short", 0.5)])
    row = {"default": True, "student": "resnet8", "teacher": "resnet20", "method": "logit", "val_acc": 10.0}
    assert gain_text([row | {"status": "diverged"}], best) == " (the default setting diverged)"
    assert gain_text([row | {"status": "pruned"}], best) == " (the default setting was pruned)"
    assert gain_text([row | {"status": "complete"}], best) == " (+40.00 points over the default setting)"
