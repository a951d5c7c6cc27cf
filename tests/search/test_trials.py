"""Trials of a search in a storage in memory, and what they become, without training."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest

from kdbench.errors import BusyError
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.unfinished import Failure, write_failure
from kdbench.search import trials as trials_module
from kdbench.search.command import end
from kdbench.search.settings import build_sampler
from kdbench.search.trials import DEFAULT, OWNER, HeldTrial, Members
from kdbench.search.winners import samplers_of
from kdbench.sweep.plan import JobResult
from tests.search.in_memory import arm_of, keys, search_of, tell_complete


@pytest.fixture(autouse=True)
def quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def test_quasi_random_points_vary_the_key_of_one_option_too() -> None:
    sampler = {"name": "qmc", "seed": 0, "qmc_type": "sobol", "scramble": True}
    arm = arm_of("method=ce,logit", "recipe.lr=interval(0,1)", "method.temperature=interval(1,8)", sampler=sampler)
    values = []
    for number in range(16):
        asked = arm.ask(number)
        values.append(asked.params.get("method.temperature"))
        arm.study.tell(asked.number, 0.5)
    drawn = [value for value in values if value is not None]
    assert len(set(drawn)) == len(drawn) >= 4


@pytest.mark.parametrize("name", ["gp", "nsgaii", "tpe"])
def test_other_samplers_draw_by_the_seed_of_the_trial(name: str) -> None:
    first, second = (
        build_sampler({"name": name, "seed": 0}, seed).sample_independent(
            optuna.create_study(), SimpleNamespace(number=0, params={}),
            "x", optuna.distributions.FloatDistribution(0, 1),
        )
        for seed in (1, 2)
    )  # fmt: skip
    assert first != second


def test_only_the_config_s_own_options_make_a_default_setting() -> None:
    arm = arm_of("recipe=paper,short", "method=ce,logit", "recipe.lr=0.1,0.2")
    arm.enqueue_defaults()
    waiting = [t.system_attrs["fixed_params"] for t in arm.trials()]
    marked = [bool(t.user_attrs.get(DEFAULT)) for t in arm.trials()]
    assert [params["recipe"] for params in waiting] == ["short", "short", "paper", "paper"]
    assert marked == [True, True, False, False]


def test_equal_trials_for_each_option_give_each_a_default_setting() -> None:
    arm = arm_of("recipe=paper,short", "recipe.lr=0.1,0.2", per=["recipe"])
    arm.enqueue_defaults()
    assert [bool(t.user_attrs.get(DEFAULT)) for t in arm.trials()] == [True, True]


def test_a_trial_that_was_taken_over_is_left_alone(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arm, members = arm_of("recipe.lr=interval(0,1)"), Members(tmp_path, "s")
    asked = arm.draw(members.own)
    assert asked is not None
    work, done = search_of(arm, members), JobResult("complete", run="x", scores={"val_acc": 0.5})
    arm.set_attrs(asked.number, {OWNER: "another"})
    work.tell(asked, None, done)
    assert arm.study.trials[0].state == optuna.trial.TrialState.RUNNING
    assert "status" not in arm.study.trials[0].user_attrs
    arm.study.tell(asked.number, 0.25)  # the other process has finished it
    work.tell(asked, None, done)
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2
    assert all("left to another process" in line for line in out)
    own = arm.draw(members.own)
    assert own is not None
    work.tell(HeldTrial(arm, own.number, own.params), None, done)
    assert arm.study.trials[1].value == 0.5


def test_a_process_that_lost_its_lock_file_takes_another(tmp_path: Any) -> None:
    members = Members(tmp_path, "s")
    with members.present():
        before = members.own
        members.renew()
        assert members.own == before
        (tmp_path / before).unlink()
        members.renew()
        assert members.own != before
        assert (tmp_path / members.own).exists()
    assert not (tmp_path / members.own).exists()


def test_a_slow_answer_that_a_process_lives_is_kept(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def acquire(self: Any, wait: bool) -> None:
        tries.append(self.file.name)
        raise BusyError("busy", code="busy")

    (tmp_path / "theirs").touch()
    monkeypatch.setattr(trials_module.Lock, "acquire", acquire)
    monkeypatch.setattr(trials_module, "SLOW_PROBE", -1.0)
    members = Members(tmp_path, "s")
    assert [members.is_alive("theirs") for _ in range(3)] == [True] * 3
    assert tries == ["theirs"]


def test_the_best_so_far_is_that_of_complete_trials(tmp_path: Any) -> None:
    arm = arm_of("recipe.lr=interval(0,1)")
    for value, status in ((0.5, "complete"), (0.9, "pruned")):
        asked = arm.ask(0)
        arm.set_attrs(asked.number, {"status": status})
        arm.study._storage.set_trial_intermediate_value(asked.number, 1, value)
        pruned = optuna.trial.TrialState.PRUNED if status == "pruned" else None
        arm.study.tell(asked.number, None if pruned else value, state=pruned)
    assert "best validation accuracy 50.00%" in search_of(arm, Members(tmp_path, "s")).position(arm)


def test_the_samplers_that_drew_are_recorded_not_the_one_chosen_last() -> None:
    arm = arm_of("recipe.lr=interval(0,1)", sampler={"name": "random", "seed": 0})
    arm.draw("here")
    arm.keys = keys(sampler={"name": "tpe", "seed": 0})
    search: Any = SimpleNamespace(arms=[arm], keys=arm.keys)
    assert samplers_of(search) == "random"
    arm.draw("here")
    assert samplers_of(search) == "random, tpe"


def test_a_setting_that_always_lacks_memory_is_not_repeated_without_end(tmp_path: Any) -> None:
    arm, members = arm_of("recipe.lr=interval(0,1)"), Members(tmp_path, "s")
    own = arm.draw(members.own)
    assert own is not None
    states = []
    for ended in (lacking(tmp_path, "out_of_memory"), None, lacking(tmp_path, "out_of_memory")):
        search = search_of(arm, members)
        search.tell(own, planned_in(tmp_path), ended)
        states.append(arm.study.trials[0].state.name)
        arm.left_alone.clear()  # as another command
        for own in arm.take_over([], members.own):
            assert own.number == 0
    assert states == ["RUNNING", "RUNNING", "FAIL"]
    assert arm.study.trials[0].user_attrs["status"] == "failed"
    assert arm.finished() == []  # it does not count


def planned_in(folder: Path) -> Any:
    """Return a planned run whose folder holds no complete run."""
    return SimpleNamespace(directory=RunDirectory(folder, "k"), config=SimpleNamespace(overwrite=False))


def lacking(folder: Path, code: str) -> JobResult:
    """Return the result of a run that failed with a code."""
    failed = {"schema_version": 1, "student": "resnet8", "method": "ce", "dataset": "shapes", "run_key": "k"}
    write_failure(folder, Failure(code, code, 1, failed))
    return JobResult("failed", error=code)


def test_a_full_disk_says_nothing_about_a_setting(tmp_path: Any) -> None:
    arm, members = arm_of("recipe.lr=interval(0,1)"), Members(tmp_path, "s")
    own = arm.draw(members.own)
    for _ in range(5):
        search = search_of(arm, members)
        search.tell(own, planned_in(tmp_path), lacking(tmp_path, "no_space"))
        arm.left_alone.clear()
        (own,) = arm.take_over([], members.own)


def test_a_trial_that_another_process_finished_is_not_left_over(tmp_path: Any) -> None:
    arm, members = arm_of("recipe.lr=interval(0,1)"), Members(tmp_path, "s")
    tell_complete(arm)
    own = arm.draw(members.own)
    assert own is not None
    search_of(arm, members).tell(own, None, JobResult("interrupted"))
    with pytest.raises(BusyError, match="not finished: 1;"):
        end([arm])
    arm.study.tell(own.number, 0.5)
    end([arm])


@pytest.mark.parametrize("sampler", ["grid", "tpe"])
def test_a_space_of_few_settings_is_tried_once(tmp_path: Path, sampler: str) -> None:
    arm = arm_of("recipe.lr=0.1,0.2", "recipe.epochs=3,9", sampler={"name": sampler, "seed": 0})
    arm.enqueue_defaults()
    search = search_of(arm, Members(tmp_path, "s"))
    drawn = []
    while own := search.next_trials():
        drawn += [trial.params for trial in own]
        arm.study.tell(own[0].number, 0.5)
    assert len(drawn) == len({tuple(sorted(params.items())) for params in drawn}) == 4
