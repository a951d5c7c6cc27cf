"""Studies: from YAML to sweeps, to winners, and on after every interruption, with runs written without training."""

import functools
import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from kdbench import lockstep, run, sweep
from kdbench.compose import run_config
from kdbench.config import RunConfig
from kdbench.errors import ConfigError
from kdbench.stopping import INTERRUPTED, NOT_FINISHED, TIME_IS_UP
from kdbench.study import plan
from kdbench.study.carry_out import StudyRun
from kdbench.study.progress import duration
from kdbench.study.read import read_study
from kdbench.study.winners import Candidate, choose

TINY = """
question: Does it work?
overrides: [data=shapes, recipe=smoke, runtime.device=cpu, runtime.precision=fp32]
selection_seeds: [9]
final_seeds: [0, 1]
teacher_seeds: [0]
select_undistilled: false
stages:
  teachers: {teachers: [resnet20], seeds: "${teacher_seeds}"}
  selection:
    pairs: [resnet20_resnet8]
    methods:
      logit: {method.temperature: [2, 4]}
    undistilled: {recipe.lr: [0.1, 0.2]}
    seeds: ${selection_seeds}
    choose: best_val_acc
  finals:
    students: [resnet8]
    pairs: [resnet20_resnet8]
    winners_of: selection
    seeds: ${final_seeds}
"""


@functools.cache
def composed_once(*overrides: str) -> RunConfig:
    return run_config(*overrides)


@pytest.fixture
def studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of options with one small study, tiny. Its runs are composed once for all tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plan, "run_config", lambda *overrides, config_dir: composed_once(*overrides))
    folder = tmp_path / "own"
    (folder / "study").mkdir(parents=True)
    (folder / "study" / "tiny.yaml").write_text(TINY)
    return folder


class Trainer:
    """Stands where the launcher stands: finishes runs at once, by rules of the test's own."""

    def __init__(self) -> None:
        self.launched: list[list[str]] = []
        """Titles of those that were to train together."""
        self.trained: list[str] = []
        self.accuracy: Callable[[dict[str, Any]], float] = lambda _: 0.5
        self.fails: Callable[[str], bool] = lambda _: False
        self.leaves: Callable[[str], bool] = lambda _: False
        self.interrupted_after: int | None = None

    def __call__(self, jobs: Sequence[sweep.Job], first: int) -> list[dict[str, Any]]:
        self.launched.append([job.title for job in jobs])
        return [self.become(job) for job in jobs]

    def become(self, job: sweep.Job) -> dict[str, Any]:
        config, directory = run.located(job.config)
        if self.interrupted_after is not None and len(self.trained) >= self.interrupted_after:
            signal.raise_signal(signal.SIGINT)
        if self.leaves(job.title):
            return {"status": "left", "error": "another process has it"}
        if self.fails(job.title):
            return {"status": "failed", "error": "it fails"}
        self.trained.append(job.title)
        self.finish(config, directory)
        return {"status": "complete"}

    def finish(self, config: Any, directory: Any) -> None:
        directory.path.mkdir(parents=True)
        summary = {
            "run_key": directory.key,
            "status": "complete",
            "student": config.student.name,
            "teacher": config.teacher.model.name if config.teacher else None,
            "method": config.method.name,
            "method_params": config.method.node() | {"name": None},
            "recipe": {"lr": config.recipe.lr},
            "seed": config.seed,
            "epochs": config.recipe.epochs,
            "num_train": config.data.num_train,
            "num_val": 1000,
            "macs": 1_000_000,
            "train_seconds": 60.0,
            "test_acc_best": 0.0,
            "environment": {"device": run_device()},
        }
        summary["best_val_acc"] = self.accuracy(summary)
        directory.write_summary(summary)


def run_device() -> str:
    from kdbench.runtime import device_name

    return device_name("cpu")


@pytest.fixture
def trainer() -> Trainer:
    return Trainer()


def tiny(studies: Path, trainer: Trainer, *arguments: str) -> StudyRun:
    return StudyRun(read_study(["study=tiny", "output_root=out", *arguments], studies), trainer)


def better_at_4(summary: dict[str, Any]) -> float:
    return 0.62 if summary["method_params"].get("temperature") == 4 else 0.6


def test_capacity_has_the_runs_of_the_reference_study() -> None:
    study = read_study(["study=capacity"])
    stages = study.config.stages
    pairs = stages["selection"].pairs
    winners = [
        {"pair": pair, "student": "-", "method": method, "overrides": [f"method.alpha=0.{index}"]}
        for index, pair in enumerate(pairs, 1)
        for method in ("logit", "feature")
    ]
    counts = {
        title: sum(len(s.jobs) for s in study.sweeps(stages[title], winners * bool(stages[title].winners_of)))
        for title in stages
    }
    assert counts == {
        "teachers": 9, "selection": 48, "finals": 50, "stem": 6, "stem_teacher": 1, "clipping": 5, "more_teachers": 80,
    }  # fmt: skip
    assert "more_teachers" not in study.stages
    assert [study.unknown_winners(stages[title]) for title in ("finals", "clipping", "more_teachers")] == [40, 5, 80]
    assert not set(study.config.selection_seeds) & set(study.config.final_seeds)


def test_teachers_train_by_the_teachers_recipe_and_so_are_the_ones_that_students_find() -> None:
    study = read_study(["study=capacity", "teacher.recipe.lr=0.05"])
    sweep = study.sweeps(study.config.stages["teachers"], [])[0]
    assert "recipe.epochs=200" in sweep.overrides
    trained = run.located(run_config(*sweep.jobs[3]))[1].key
    student = run_config(*study.overrides, "pair=r50_r18", "method=logit")
    assert trained == run.teachers.key_of_teacher(run.located(student)[0])


def test_a_recipe_on_the_command_line_takes_the_place_of_the_studys() -> None:
    study = read_study(["study=capacity", "recipe=short"])
    assert study.overrides == ("data=cifar10", "recipe=short")
    assert study.label == "capacity_recipe=short"


def test_what_changes_no_number_is_no_part_of_a_studys_name() -> None:
    more = ["on_busy=skip", "checkpoint.every_minutes=5", "runtime.threads=1", "output_root=elsewhere"]
    assert read_study(["study=capacity", *more]).label == "capacity"


def test_undistilled_students_get_as_many_selection_runs_as_logit_when_asked() -> None:
    study = read_study(["study=capacity", "select_undistilled=true"])
    sweeps = study.sweeps(study.config.stages["selection"], [])
    own = [s for s in sweeps if "method=ce" in s.overrides]
    assert len(own) == 1
    assert len(own[0].jobs) == 2 * 9
    assert study.unknown_winners(study.config.stages["finals"]) == 50


@pytest.mark.slow
def test_every_study_that_ships_can_be_read_and_its_sweeps_compose() -> None:
    for name in ("capacity", "lab"):
        study = read_study([f"study={name}"])
        for stage in study.config.stages.values():
            for one in study.sweeps(stage, []):
                run_config(*one.jobs[-1])


def test_a_study_goes_from_teachers_to_finals_of_the_winner(studies: Path, trainer: Trainer) -> None:
    trainer.accuracy = better_at_4
    study = tiny(studies, trainer)
    assert study.carry_out(None) == 0
    finals = [title for title in trainer.trained if "seed=0" in title or "seed=1" in title]
    assert sum("method=logit" in title for title in finals) == 2
    assert all("method.temperature=4" in title for title in finals if "method=logit" in title)
    assert len(study.result_runs()) == 1 + 2 + 2
    selected = OmegaConf.to_container(OmegaConf.load(study.selected))
    assert isinstance(selected, dict)
    (winner,) = selected["winners"]
    assert winner["overrides"] == ["method.temperature=4"]
    assert winner["margin"] == pytest.approx(2.0)
    assert not winner["tie"]
    assert winner["noise"] == pytest.approx(100 * (0.62 * 0.38 / 1000 + 0.6 * 0.4 / 1000) ** 0.5, abs=1e-3)
    assert (selected["selection_seeds"], selected["final_seeds"]) == ([9], [0, 1])


def test_runs_of_a_stage_train_together_whichever_sweep_they_are_of(studies: Path, trainer: Trainer) -> None:
    study = tiny(studies, trainer)
    assert study.carry_out(None) == 0
    assert [len(titles) for titles in trainer.launched] == [1, 2, 2, 2]
    for seed, titles in enumerate(trainer.launched[2:]):
        assert all(f"seed={seed}" in title for title in titles)
        assert ["method=ce" in title for title in titles] == [True, False]


def test_one_learner_is_one_run_after_the_other(studies: Path, trainer: Trainer) -> None:
    study = StudyRun(read_study(["study=tiny", "output_root=out"], studies), trainer, max_learners=1)
    assert "in lockstep" not in study.dry_run()
    assert study.carry_out(None) == 0
    assert [len(titles) for titles in trainer.launched] == [1] * 7


def test_dry_run_shows_the_groups_and_the_time_that_they_save(studies: Path, trainer: Trainer) -> None:
    shown = tiny(studies, trainer).dry_run()
    assert "in lockstep, group 1: 2 x resnet8 logit, seed 9, from resnet20, " in shown
    configs = {name: composed_once(f"student={name}", "method=ce").student for name in ("resnet8", "resnet20")}
    macs = {name: lockstep.macs_of(config) for name, config in configs.items()}
    saved = macs["resnet20"] / (2 * 3 * macs["resnet8"] + 2 * macs["resnet20"])
    assert f"{saved:.0%} less arithmetic" in shown
    assert "less in lockstep" not in shown  # how long that is, is not known yet
    study = tiny(studies, trainer, "stages=[teachers,selection]")
    trainer.fails = lambda title: "seed=9" in title
    study.carry_out(None)
    # The teacher's run says how long a multiply-accumulate takes: 60 s for three times its own, over all its images.
    teacher = study.jobs_of("teachers")[0].config
    selecting = study.jobs_of("selection")[0].config
    assert teacher is not None
    assert selecting is not None
    images = selecting.recipe.epochs * selecting.data.num_train
    per_mac = 60 / (teacher.recipe.epochs * teacher.data.num_train) / (3 * 1_000_000)
    assert f", up to {duration(per_mac * macs['resnet20'] * images)} less in lockstep" in study.dry_run()


def test_the_same_command_again_trains_nothing(studies: Path, trainer: Trainer) -> None:
    tiny(studies, trainer).carry_out(None)
    trained, launched = list(trainer.trained), list(trainer.launched)
    assert tiny(studies, trainer).carry_out(None) == 0
    assert trainer.trained == trained
    assert trainer.launched == launched


@pytest.mark.parametrize("runs", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 5)), 3, 6])
def test_interrupted_anywhere_it_goes_on_to_the_same_end(studies: Path, trainer: Trainer, runs: int) -> None:
    trainer.accuracy = better_at_4
    trainer.interrupted_after = runs
    assert tiny(studies, trainer).carry_out(None) == INTERRUPTED
    trainer.interrupted_after = None
    assert tiny(studies, trainer).carry_out(None) == 0
    assert len(trainer.trained) == len(set(trainer.trained)) == 7


def test_what_fails_is_tried_once_more_then_listed_and_the_rest_goes_on(studies: Path, trainer: Trainer) -> None:
    attempts: list[str] = []

    def fails(title: str) -> bool:
        if "method=ce" in title and "student=resnet8" in title and "seed=1" in title:
            attempts.append(title)
            return True
        return False

    trainer.fails = fails
    study = tiny(studies, trainer)
    assert study.carry_out(None) == 1
    assert len(attempts) == 2
    assert [title for title in study.failed if "student=resnet8" in title] == list(study.failed)
    assert len(trainer.trained) == 6


def test_what_fails_once_is_no_failure(studies: Path, trainer: Trainer) -> None:
    seen: set[str] = set()
    trainer.fails = lambda title: title not in seen and not seen.add(title)
    assert tiny(studies, trainer).carry_out(None) == 0
    assert len(trainer.trained) == 7


def test_without_a_winner_the_finals_of_that_pair_are_listed(studies: Path, trainer: Trainer) -> None:
    trainer.fails = lambda title: "seed=9" in title
    study = tiny(studies, trainer)
    assert study.carry_out(None) == 1
    assert any("resnet20_resnet8 by logit" in title for title in study.failed)
    assert not any("seed=0" in title and "method=logit" in title for title in trainer.trained)


def test_time_that_is_up_ends_a_part_with_a_code_of_its_own(studies: Path, trainer: Trainer) -> None:
    def endless(jobs: Sequence[sweep.Job], first: int) -> list[dict[str, Any]]:
        while True:
            pass

    study = tiny(studies, trainer)
    study.launch = endless
    assert study.carry_out(0.001) == TIME_IS_UP
    assert tiny(studies, trainer).carry_out(None) == 0


TWO = TINY.replace("[resnet20_resnet8]", "[resnet20_resnet8, resnet20_resnet14]").replace(
    "[resnet8]", "[resnet8, resnet14]"
)


@pytest.mark.slow
def test_each_undistilled_student_has_a_winner_of_its_own(studies: Path, trainer: Trainer) -> None:
    (studies / "study" / "tiny.yaml").write_text(TWO)
    trainer.accuracy = lambda s: 0.6 + 0.01 * ((s["student"] == "resnet8") == (s["recipe"]["lr"] == 0.2))
    study = tiny(studies, trainer, "select_undistilled=true")
    assert study.carry_out(None) == 0
    chosen = {w["student"]: w["overrides"] for w in study.winners["selection"] if w["method"] == "ce"}
    assert chosen == {"resnet8": ["recipe.lr=0.2"], "resnet14": ["recipe.lr=0.1"]}
    tuned = [title for title in trainer.trained if "recipe.lr=0.2" in title and "seed=9" not in title]
    assert len(tuned) == 2
    assert all("student=resnet8" in title for title in tuned)


def test_methods_with_the_same_grid_do_not_mix(studies: Path, trainer: Trainer) -> None:
    same = "      logit: {method.alpha: [0.3, 0.7]}\n      feature: {method.alpha: [0.3, 0.7]}"
    text = TINY.replace("      logit: {method.temperature: [2, 4]}", same)
    (studies / "study" / "tiny.yaml").write_text(text)
    trainer.accuracy = lambda s: 0.6 + 0.01 * ((s["method"] == "logit") == (s["method_params"].get("alpha") == 0.3))
    study = tiny(studies, trainer)
    assert study.carry_out(None) == 0
    chosen = {w["method"]: w["overrides"] for w in study.winners["selection"]}
    assert chosen == {"logit": ["method.alpha=0.3"], "feature": ["method.alpha=0.7"]}
    assert all(len(c["run_keys"]) == 1 for w in study.winners["selection"] for c in w["candidates"])


def test_finals_alone_go_by_what_a_selection_with_failures_chose(studies: Path, trainer: Trainer) -> None:
    trainer.fails = lambda title: "method.temperature=4" in title
    study = tiny(studies, trainer)
    assert study.carry_out(None) == 1
    finals = tiny(studies, trainer, "stages=[finals]")
    assert finals.carry_out(None) == 0
    assert all("method.temperature=2" in title for title in trainer.trained if "method=logit" in title)


def test_a_failure_that_was_made_good_later_is_none(studies: Path, trainer: Trainer) -> None:
    attempts: list[str] = []
    trainer.fails = lambda title: "student=resnet20" in title and not attempts.append(title)
    study = tiny(studies, trainer)
    train = trainer.__call__

    def teacher_is_trained_on_the_way(jobs: Sequence[sweep.Job], first: int) -> list[dict[str, Any]]:
        (teacher,) = study.jobs_of("teachers")
        if teacher.title not in trainer.trained and any("method=logit" in job.title for job in jobs):
            trainer.fails = lambda _: False
            train([sweep.Job(teacher.overrides, config=teacher.config)], 0)
        return train(jobs, first)

    study.launch = teacher_is_trained_on_the_way
    assert study.carry_out(None) == 0
    assert len(attempts) == 2


def test_selected_yaml_names_the_seeds_that_really_report(studies: Path, trainer: Trainer) -> None:
    text = TINY.replace("    seeds: ${final_seeds}", "    seeds: [9, 10]")
    (studies / "study" / "tiny.yaml").write_text(text)
    study = tiny(studies, trainer)
    study.carry_out(None)
    selected = OmegaConf.load(study.selected)
    assert (list(selected.selection_seeds), list(selected.final_seeds)) == ([9], [9, 10])


def test_one_unreadable_summary_beside_the_studys_does_no_harm(studies: Path, trainer: Trainer) -> None:
    foreign = studies.parent / "out" / "runs" / "foreign"
    foreign.mkdir(parents=True)
    (foreign / "summary.json").write_text('{"environment": null, "train_seconds": 1.0}')
    assert "7 runs" in tiny(studies, trainer).dry_run()


def test_commands_are_printed_with_the_folder_of_options(studies: Path, trainer: Trainer) -> None:
    assert f"kdbench -m --config-dir {studies} data=shapes" in tiny(studies, trainer).dry_run()


def test_the_dry_run_says_states_and_the_time_left_and_writes_nothing(studies: Path, trainer: Trainer) -> None:
    text = tiny(studies, trainer).dry_run()
    assert "2 runs wait for the winners of selection" in text
    assert "7 runs: 0 done, 5 missing, 2 waiting for winners; time left unknown" in text
    assert not (studies.parent / "out").exists()
    trainer.interrupted_after = 2
    tiny(studies, trainer).carry_out(None)
    study = tiny(studies, trainer)
    begun = next(job for job in study.all_jobs() if job.state == "missing")
    begun.directory.path.mkdir(parents=True)
    begun.directory.checkpoint.write_bytes(b"")
    text = study.dry_run()
    assert not study.folder.exists()
    assert "2 done, 1 resumable, 2 missing, 2 waiting" in text
    # one minute an epoch, one epoch a run, five runs, however different their teachers: the same macs everywhere
    assert "left" in text.splitlines()[-1]
    assert "unknown" not in text.splitlines()[-1]


def test_the_time_left_is_that_of_like_runs(studies: Path, trainer: Trainer) -> None:
    trainer.interrupted_after = 6
    tiny(studies, trainer).carry_out(None)
    assert tiny(studies, trainer).line().endswith("about 60 s left")


def test_the_line_above_runs_counts_them(studies: Path, trainer: Trainer) -> None:
    trainer.interrupted_after = 3
    study = tiny(studies, trainer)
    study.carry_out(None)
    assert study.line().startswith("study tiny: 3 of 7 runs done, ")


def test_a_study_of_other_settings_or_overrides_has_a_folder_of_its_own(studies: Path, trainer: Trainer) -> None:
    assert tiny(studies, trainer).folder.name == "tiny"
    assert tiny(studies, trainer, "runtime.threads=1", "hydra/launcher=basic").folder.name == "tiny"
    assert tiny(studies, trainer, "final_seeds=[3,4]").folder.name == "tiny_final_seeds=3-4"
    assert tiny(studies, trainer, "data.num_train=128").folder.name == "tiny_data.num_train=128"


def test_winners_are_the_first_of_equals_and_only_fully_covered_settings_compete() -> None:
    def summary(accuracy: float, seed: int) -> dict[str, Any]:
        return {
            "student": "s", "teacher": "t", "method": "logit", "method_params": {}, "recipe": {},
            "best_val_acc": accuracy, "num_val": 100, "run_key": f"{accuracy}{seed}",
        }  # fmt: skip

    candidates = [
        Candidate("p", ("a=1",), [summary(0.5, 0), summary(0.6, 1)]),
        Candidate("p", ("a=2",), [summary(0.6, 0), summary(0.5, 1)]),
        Candidate("p", ("a=3",), [summary(0.9, 0)]),
        Candidate("p", ("a=4",), []),
    ]
    (winner,) = choose(candidates, "best_val_acc")
    assert winner["overrides"] == ["a=1"]
    assert winner["margin"] == 0
    assert winner["tie"]
    assert winner["seed_std"] == pytest.approx(100 * 0.1 / 2**0.5, abs=1e-3)
    assert [c["overrides"] for c in winner["candidates"]] == [["a=1"], ["a=2"], ["a=3"]]
    assert json.dumps(winner)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "which study? Say study=NAME; valid: capacity, lab, tiny"),
        (["study=tinyy"], "study=tinyy is no option; did you mean tiny?"),
        (["study=tiny", "stages=[finale]"], "finale is no stage; did you mean finals?"),
        (["study=tiny", "final_seeds=[-1]"], "seeds is [-1]; it may be different whole numbers from 0 on"),
        (["study=tiny", "final_seeds=[0,0]"], "seeds is [0, 0]; it may be"),
        (["study=tiny", "final_seeds=x"], "final_seeds is 'x'"),
        (["study=tiny", "select_undistilled=perhaps"], "select_undistilled is 'perhaps'; it may be true or false"),
        (["study=tiny", "seed"], "'seed' cannot be read; write key=value"),
    ],
)
def test_mistakes_on_the_command_line_are_said(studies: Path, arguments: list[str], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_study(arguments, studies)
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("choose: best_val_acc", "choose: test_acc_best", "it may be best_val_acc: never the test set"),
        ("winners_of: selection", "winners_of: teachers", "it may be an earlier stage that chooses: selection"),
        ("    students: [resnet8]\n    pairs: [resnet20_resnet8]\n", "", "trains nothing"),
        ("      logit: {method.temperature: [2, 4]}", "      logit: {method.temperature: 2}", "must map keys to lists"),
        ("question: Does it work?", "qestion: Does it work?", "qestion is no known key; did you mean question?"),
        ("stages:", "stages: [", "is no valid YAML"),
    ],
)
def test_mistakes_in_a_study_are_said(studies: Path, old: str, new: str, says: str) -> None:
    assert old in TINY
    (studies / "study" / "tiny.yaml").write_text(TINY.replace(old, new))
    with pytest.raises(ConfigError) as error:
        read_study(["study=tiny"], studies)
    assert says in str(error.value)


def test_an_override_of_what_a_stage_varies_is_refused(studies: Path, trainer: Trainer) -> None:
    with pytest.raises(ConfigError, match=r"study=tiny sets method\.temperature itself"):
        tiny(studies, trainer, "method.temperature=3")


def test_final_runs_that_other_processes_have_are_no_failures(studies: Path, trainer: Trainer) -> None:
    trainer.leaves = lambda title: "seed=1" in title
    study = tiny(studies, trainer)
    assert study.carry_out(None) == NOT_FINISHED
    assert study.left
    assert not study.failed
    trainer.leaves = lambda _: False
    assert tiny(studies, trainer).carry_out(None) == 0


def test_winners_are_not_chosen_before_other_processes_are_done(studies: Path, trainer: Trainer) -> None:
    trainer.leaves = lambda title: "method.temperature=4" in title
    study = tiny(studies, trainer)
    assert study.carry_out(None) == NOT_FINISHED
    assert not study.selected.is_file()
