"""Executing a study: stages, winners, interruptions, failures and overviews, with runs completed without training."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from safetensors.numpy import save_file

from kdbench.errors import ConfigError
from kdbench.rundir.identity import teacher_key
from kdbench.rundir.summary import RunSummary
from kdbench.study.command import study as study_command
from kdbench.study.overview import overview
from kdbench.study.plan import StudyPlan
from kdbench.study.progress import duration, state_of
from kdbench.study.read import read_study
from kdbench.study.winners import Candidate, choose
from kdbench.sweep.execute import in_turn
from kdbench.sweep.lockstep import macs_of
from kdbench.sweep.overrides import override
from kdbench.sweep.plan import JobResult, PlannedRun
from kdbench.system.signals import INTERRUPTED, NOT_FINISHED, TIME_IS_UP
from tests.conftest import composed_once, rest_wide
from tests.study.conftest import TINY, Tiny, Trainer, better_at_4

RESULTS = Path(__file__).parents[2] / "results" / "lab"


def test_a_study_goes_from_teachers_to_finals_of_the_winner(tiny: Tiny, trainer: Trainer) -> None:
    trainer.accuracy = better_at_4
    study = tiny()
    assert study.execute() == 0
    finals = [title for title in trainer.trained if "seed=0" in title or "seed=1" in title]
    assert sum("method=logit" in title for title in finals) == 2
    assert all("method.temperature=4" in title for title in finals if "method=logit" in title)
    assert len(study.plan.result_paths()) == 1 + 2 + 2
    selected = OmegaConf.to_container(OmegaConf.load(study.plan.selected))
    assert isinstance(selected, dict)
    (winner,) = selected["winners"]
    assert winner["overrides"] == ["method.temperature=4"]
    assert [candidate["default"] for candidate in winner["candidates"]] == [False, True]
    assert winner["data"]["num_val"] == 1000
    assert winner["margin"] == pytest.approx(2.0)
    assert not winner["tie"]
    assert winner["noise"] == pytest.approx(100 * (0.62 * 0.38 / 1000 + 0.6 * 0.4 / 1000) ** 0.5, abs=1e-3)
    assert (selected["selection_seeds"], selected["final_seeds"]) == ([9], [0, 1])


def test_selected_yaml_has_the_keys_of_the_one_in_results(tiny: Tiny) -> None:
    study = tiny()
    study.execute()
    kept = OmegaConf.to_container(OmegaConf.load(RESULTS / "selected.yaml"))
    written = OmegaConf.to_container(OmegaConf.load(study.plan.selected))
    assert isinstance(kept, dict)
    assert isinstance(written, dict)
    assert list(written) == list(kept)
    assert set(kept["winners"][0]) <= set(written["winners"][0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "precision", "folders", "selected", "runs"),
    [
        ("lab", "fp32", ("runs",), "selected.yaml", 38),
        pytest.param("methods", "bf16", ("runs", "selection"), "selection/selected.yaml", 121, marks=pytest.mark.wide),
        pytest.param("variance", "bf16", ("runs",), None, 39, marks=pytest.mark.wide),
    ],
)
def test_the_runs_kept_in_results_are_those_of_the_study_and_choose_the_same_winners(
    tmp_path: Path, study: str, precision: str, folders: Sequence[str], selected: str | None, runs: int
) -> None:
    results = RESULTS.with_name(study)
    (tmp_path / "runs").mkdir()
    for run in (run for folder in folders for run in (results / folder).iterdir() if run.is_dir()):
        (tmp_path / "runs" / run.name).symlink_to(run)
    output_root = override("output_root", str(tmp_path))
    plan = StudyPlan(read_study([f"study={study}", output_root, f"runtime.precision={precision}"]))
    assert [state_of(run) for run in plan.all_runs()] == ["done"] * runs
    if selected is None:
        return
    kept: Any = OmegaConf.to_container(OmegaConf.load(results / selected))
    for winner, before in zip(plan.winners["selection"], kept["winners"], strict=True):
        assert {name: value for name, value in dataclasses.asdict(winner).items() if name in before} == before


def test_keys_of_students_and_teachers_reach_the_runs_that_have_them(tiny: Tiny) -> None:
    plan = tiny("student.widths=[8,8,16,32]", "teacher.widths=[4,8,16,32]").plan
    assert not any(run.error for run in plan.all_runs())
    (teacher,) = plan.runs_of("teachers")
    assert teacher.config.student.arguments["widths"] == [4, 8, 16, 32]
    selection = plan.runs_of("selection")[0].config
    assert selection.student.arguments["widths"] == [8, 8, 16, 32]
    assert teacher_key(selection) == teacher.key
    assert plan.runs_of("finals")[0].config.student.arguments["widths"] == [8, 8, 16, 32]


def test_keys_of_the_method_reach_the_distilled_runs_and_no_other(tiny: Tiny) -> None:
    plan = tiny("method.ce_weight=0.5", "method.kd_weight=0.7", "method.alpha=null").plan
    assert not any(run.error for run in plan.all_runs())
    assert {run.config.method.params.kd_weight for run in plan.runs_of("selection")} == {0.7}


@pytest.mark.parametrize("given", ["student.wdths=[8,8,16,32]", "method.stages=[layer1]", "teacher.depht=20"])
def test_a_key_that_no_run_of_a_study_has_is_one_error(tiny: Tiny, given: str) -> None:
    with pytest.raises(ConfigError) as error:
        tiny(given)
    assert (error.value.code, error.value.key) == ("unknown_key", given.partition("=")[0])


@pytest.mark.parametrize("place", ["command line", "overrides", "grid"])
def test_a_stage_that_chooses_needs_validation_images_that_are_not_trained_on(
    tiny: Tiny, studies: Path, place: str
) -> None:
    file = studies / "study" / "tiny.yaml"
    changes = {
        "overrides": ("    choose: best", "    overrides: [data.validation=false]\n    choose: best"),
        "grid": ("{method.temperature: [2, 4]}", "{data.validation: [true, false]}"),
        "command line": ("", ""),
    }
    file.write_text(file.read_text().replace(*changes[place]))
    with pytest.raises(ConfigError) as error:
        tiny(*(["data.validation=false"] if place == "command line" else []))
    assert (error.value.code, error.value.key) == ("no_validation", "data.validation")
    assert "\n" not in str(error.value)


def test_winners_may_be_trained_without_validation_images_held_out(tiny: Tiny, trainer: Trainer, studies: Path) -> None:
    file = studies / "study" / "tiny.yaml"
    file.write_text(
        file.read_text().replace(
            "    seeds: ${final_seeds}", "    seeds: ${final_seeds}\n    overrides: [data.validation=false]"
        )
    )
    study = tiny()
    assert study.execute() == 0
    configs = [run.config.data.params for run in study.plan.runs_of("finals")]
    assert {params.validation for params in configs} == {False}


def test_runs_of_a_stage_train_together_whichever_sweep_they_belong_to(tiny: Tiny, trainer: Trainer) -> None:
    assert tiny().execute() == 0
    assert [len(titles) for titles in trainer.launched] == [1, 2, 2, 2]
    for seed, titles in enumerate(trainer.launched[2:]):
        assert all(f"seed={seed}" in title for title in titles)
        assert ["method=ce" in title for title in titles] == [True, False]


def test_one_learner_trains_one_run_after_the_other(tiny: Tiny, trainer: Trainer) -> None:
    study = tiny(max_learners=1)
    assert "in lockstep" not in overview(study.plan)
    assert study.execute() == 0
    assert [len(titles) for titles in trainer.launched] == [1] * 7


def test_the_same_command_again_trains_nothing(tiny: Tiny, trainer: Trainer) -> None:
    tiny().execute()
    trained, launched = list(trainer.trained), list(trainer.launched)
    assert tiny().execute() == 0
    assert trainer.trained == trained
    assert trainer.launched == launched


@pytest.mark.parametrize("runs", rest_wide([3, 0, 1, 2, 5, 6]))
def test_interrupted_anywhere_it_continues_to_the_same_end(tiny: Tiny, trainer: Trainer, runs: int) -> None:
    trainer.accuracy = better_at_4
    trainer.interrupt_after = runs
    assert tiny().execute() == INTERRUPTED
    trainer.interrupt_after = None
    assert tiny().execute() == 0
    assert len(trainer.trained) == len(set(trainer.trained)) == 7


def test_a_run_that_fails_is_tried_once_more_then_listed_and_the_rest_continues(tiny: Tiny, trainer: Trainer) -> None:
    attempts: list[str] = []

    def fails(title: str) -> bool:
        if "method=ce" in title and "student=resnet8" in title and "seed=1" in title:
            attempts.append(title)
            return True
        return False

    trainer.fails = fails
    study = tiny()
    assert study.execute() == 1
    assert len(attempts) == 2
    assert study.failed == {attempts[0]: "it fails"}
    assert len(trainer.trained) == 6


def test_a_run_that_fails_once_is_no_failure(tiny: Tiny, trainer: Trainer) -> None:
    seen: set[str] = set()
    trainer.fails = lambda title: title not in seen and not seen.add(title)
    assert tiny().execute() == 0
    assert len(trainer.trained) == 7


def test_without_a_winner_the_finals_of_that_pair_are_listed(tiny: Tiny, trainer: Trainer) -> None:
    trainer.fails = lambda title: "seed=9" in title
    study = tiny()
    assert study.execute() == 1
    assert "finals: resnet20_resnet8 by logit" in study.failed
    assert not any("seed=0" in title and "method=logit" in title for title in trainer.trained)


def test_time_that_is_up_has_an_exit_code_of_its_own(tiny: Tiny) -> None:
    def endless(runs: Sequence[PlannedRun], first: int) -> list[JobResult]:
        while True:
            pass

    study = tiny()
    study.launch = in_turn(endless)
    assert study.execute(minutes=0.001) == TIME_IS_UP
    assert tiny().execute() == 0


@pytest.mark.slow
def test_each_baseline_has_a_winner_of_its_own(studies: Path, tiny: Tiny, trainer: Trainer) -> None:
    two = TINY.replace("[resnet20_resnet8]", "[resnet20_resnet8, resnet20_resnet14]")
    (studies / "study" / "tiny.yaml").write_text(two.replace("[resnet8]", "[resnet8, resnet14]"))
    trainer.accuracy = lambda s: 0.6 + 0.01 * ((s.student == "resnet8") == ((s.recipe or {})["lr"] == 0.2))
    study = tiny("select_baseline=true")
    assert study.execute() == 0
    chosen = {w.student: w.overrides for w in study.plan.winners["selection"] if w.method == "ce"}
    assert chosen == {"resnet8": ["recipe.lr=0.2"], "resnet14": ["recipe.lr=0.1"]}
    tuned = [title for title in trainer.trained if "recipe.lr=0.2" in title and "seed=9" not in title]
    assert len(tuned) == 2
    assert all("student=resnet8" in title for title in tuned)


@pytest.mark.slow
def test_methods_with_the_same_grid_do_not_mix(studies: Path, tiny: Tiny, trainer: Trainer) -> None:
    same = "      logit: {method.alpha: [0.3, 0.7]}\n      feature: {method.alpha: [0.3, 0.7]}"
    text = TINY.replace("      logit: {method.temperature: [2, 4]}", same)
    (studies / "study" / "tiny.yaml").write_text(text)
    trainer.accuracy = lambda s: 0.6 + 0.01 * ((s.method == "logit") == ((s.method_params or {}).get("alpha") == 0.3))
    study = tiny()
    assert study.execute() == 0
    winners = study.plan.winners["selection"]
    assert {w.method: w.overrides for w in winners} == {"logit": ["method.alpha=0.3"], "feature": ["method.alpha=0.7"]}
    assert all(len(candidate["run_keys"]) == 1 for w in winners for candidate in w.candidates)


def test_lists_in_a_grid_compete_and_the_winner_reports(studies: Path, tiny: Tiny, trainer: Trainer) -> None:
    text = TINY.replace("logit: {method.temperature: [2, 4]}", "feature: {method.stages: [[layer1], [layer1, layer2]]}")
    (studies / "study" / "tiny.yaml").write_text(text)
    trainer.accuracy = lambda s: 0.6 + 0.01 * len((s.method_params or {}).get("stages") or [])
    study = tiny()
    assert study.execute() == 0
    (winner,) = study.plan.winners["selection"]
    assert winner.overrides == ["method.stages=[layer1,layer2]"]
    assert len(winner.candidates) == 2
    assert sum("method.stages=[layer1,layer2]" in title for title in trainer.trained) == 1 + 2


def test_finals_alone_use_the_choice_of_a_selection_with_failures(tiny: Tiny, trainer: Trainer) -> None:
    trainer.fails = lambda title: "method.temperature=4" in title
    assert tiny().execute() == 1
    assert tiny("stages=[finals]").execute() == 0
    assert all("method.temperature=2" in title for title in trainer.trained if "method=logit" in title)


def test_finals_alone_wait_for_a_selection_that_was_interrupted(tiny: Tiny, trainer: Trainer) -> None:
    study = tiny("stages=[selection]")
    trainer([run for run in study.plan.runs_of("selection") if "method.temperature=2" in run.title], 0)
    trained = list(trainer.trained)
    with pytest.raises(ConfigError) as error:
        tiny("stages=[finals]").execute()
    assert (error.value.code, error.value.key) == ("mismatch", "stages")
    assert trainer.trained == trained
    assert not study.plan.selected.is_file()


def test_a_failure_that_was_repaired_later_is_none(tiny: Tiny, trainer: Trainer) -> None:
    attempts: list[str] = []
    trainer.fails = lambda title: "student=resnet20" in title and not attempts.append(title)
    study = tiny()

    def train_the_teacher_first(runs: Sequence[PlannedRun], first: int) -> list[JobResult]:
        (teacher,) = study.plan.runs_of("teachers")
        if teacher.title not in trainer.trained and any("method=logit" in run.title for run in runs):
            trainer.fails = lambda _: False
            trainer([teacher], 0)
        return trainer(runs, first)

    study.launch = in_turn(train_the_teacher_first)
    assert study.execute() == 0
    assert len(attempts) == 2


def test_selected_yaml_names_the_seeds_that_really_report(studies: Path, tiny: Tiny) -> None:
    (studies / "study" / "tiny.yaml").write_text(TINY.replace("    seeds: ${final_seeds}", "    seeds: [9, 10]"))
    study = tiny()
    study.execute()
    selected = OmegaConf.load(study.plan.selected)
    assert (list(selected.selection_seeds), list(selected.final_seeds)) == ([9], [9, 10])


def test_winners_are_the_first_of_equals_and_only_fully_covered_settings_compete() -> None:
    def summary(accuracy: float, seed: int) -> RunSummary:
        return RunSummary(
            student="s", teacher="t", method="logit", method_params={}, recipe={}, best_val_acc=accuracy, num_val=100,
            run_key=f"{accuracy}{seed}", test_acc_best=0.0,
        )  # fmt: skip

    candidates = [
        Candidate("p", ("a=1",), [summary(0.5, 0), summary(0.6, 1)]),
        Candidate("p", ("a=2",), [summary(0.6, 0), summary(0.5, 1)]),
        Candidate("p", ("a=3",), [summary(0.9, 0)]),
        Candidate("p", ("a=4",), []),
    ]
    (winner,) = choose(candidates, "best_val_acc")
    assert winner.overrides == ["a=1"]
    assert winner.margin == 0
    assert winner.tie
    assert winner.seed_std == pytest.approx(100 * 0.1 / 2**0.5, abs=1e-3)
    assert [c["overrides"] for c in winner.candidates] == [["a=1"], ["a=2"], ["a=3"]]
    assert json.dumps(dataclasses.asdict(winner))


def test_an_override_of_what_a_stage_varies_is_refused(tiny: Tiny) -> None:
    with pytest.raises(ConfigError) as error:
        tiny("method.temperature=3")
    assert (error.value.code, error.value.key) == ("set_by_study", "method.temperature")


def test_final_runs_that_other_processes_hold_are_no_failures(tiny: Tiny, trainer: Trainer) -> None:
    trainer.skips = lambda title: "seed=1" in title
    study = tiny()
    assert study.execute() == NOT_FINISHED
    assert study.skipped
    assert not study.failed
    trainer.skips = lambda _: False
    assert tiny().execute() == 0


def test_winners_are_not_chosen_before_other_processes_are_done(tiny: Tiny, trainer: Trainer) -> None:
    trainer.skips = lambda title: "method.temperature=4" in title
    study = tiny()
    assert study.execute() == NOT_FINISHED
    assert not study.plan.selected.is_file()


# Overviews


def test_the_dry_run_shows_states_and_the_time_left_and_writes_nothing(
    studies: Path, tiny: Tiny, trainer: Trainer
) -> None:
    text = overview(tiny().plan)
    assert text.splitlines()[:2] == ["study tiny: out/studies/tiny", "Does it work?"]
    assert f"kdbench -m --config-dir {studies} data=shapes" in text
    assert "2 runs wait for the winners of selection" in text
    assert "7 runs: 0 done, 5 missing, 2 waiting for winners; time left unknown" in text
    assert not (studies.parent / "out").exists()
    trainer.interrupt_after = 2
    tiny().execute()
    plan = tiny().plan
    started = next(run for run in plan.all_runs() if state_of(run) == "missing")
    started.directory.path.mkdir(parents=True)
    started.directory.checkpoint.write_bytes(b"")
    text = overview(plan)
    assert "resumable (0 of 1 epochs)" in text
    assert "2 done, 1 resumable, 2 missing, 2 waiting" in text
    # One minute an epoch, one epoch a run, five runs, however different their teachers: the same macs everywhere.
    assert "left" in text.splitlines()[-1]
    assert "unknown" not in text.splitlines()[-1]


def test_dry_run_shows_the_groups_and_the_time_that_they_save(tiny: Tiny, trainer: Trainer) -> None:
    text = overview(tiny().plan)
    assert "in lockstep, group 1: 2 x resnet8 logit, seed 9, from resnet20, " in text
    students = {name: composed_once(f"student={name}", "method=ce").student for name in ("resnet8", "resnet20")}
    config = composed_once("student=resnet8", "data=shapes", "method=ce")
    macs = {name: macs_of(student, config) for name, student in students.items()}
    saved = macs["resnet20"] / (2 * 3 * macs["resnet8"] + 2 * macs["resnet20"])
    assert f"{saved:.0%} less arithmetic" in text
    assert "less in lockstep" not in text  # the time is not measured yet
    study = tiny("stages=[teachers,selection]")
    trainer.fails = lambda title: "seed=9" in title
    study.execute()
    # The teacher's run gives the time of a multiply-accumulate: 60 s for three times its own, over all its images.
    teacher, selecting = study.plan.runs_of("teachers")[0].config, study.plan.runs_of("selection")[0].config
    images = selecting.recipe.epochs * selecting.data.params.num_train
    per_mac = 60 / (teacher.recipe.epochs * teacher.data.params.num_train) / (3 * 1_000_000)
    assert f", up to {duration(per_mac * macs['resnet20'] * images)} less in lockstep" in overview(study.plan)


def test_the_time_left_is_that_of_similar_runs(tiny: Tiny, trainer: Trainer) -> None:
    trainer.interrupt_after = 6
    tiny().execute()
    assert tiny().progress().endswith("about 60 s left")


def test_the_line_above_runs_counts_them(tiny: Tiny, trainer: Trainer) -> None:
    trainer.interrupt_after = 3
    study = tiny()
    study.execute()
    assert study.progress().startswith("study tiny: 3 of 7 runs done, ")


def test_one_unreadable_summary_beside_the_studys_does_no_harm(studies: Path, tiny: Tiny) -> None:
    foreign = studies.parent / "out" / "runs" / "foreign"
    foreign.mkdir(parents=True)
    (foreign / "summary.json").write_text('{"environment": null, "train_seconds": 1.0}')
    assert "7 runs" in overview(tiny().plan)


def test_the_folder_holds_what_its_name_stands_for(tiny: Tiny) -> None:
    study = tiny("final_seeds=[3,4]", "data.num_train=128", "data.memory=host", "stages=[teachers]")
    assert study.plan.folder.parent == Path("out", "studies")
    assert study.plan.folder.name.startswith("tiny_")
    study.execute()
    written = OmegaConf.to_container(OmegaConf.load(study.plan.folder / "study.yaml"))
    assert isinstance(written, dict)
    assert written["study"] == "tiny"
    assert written["settings"] == {"final_seeds": [3, 4]}
    assert written["overrides"] == {"data.num_train": 128}


# The command

REFUSED = TINY.replace("[2, 4]", "[2, -4]")


def command(studies: Path, *arguments: str) -> int:
    return study_command(["study=tiny", "output_root=out", "--config-dir", str(studies), *arguments])


def test_a_refused_run_is_shown_by_the_dry_run_which_ends_with_2(
    studies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (studies / "study" / "tiny.yaml").write_text(REFUSED)
    assert command(studies, "--dry-run", "stages=[selection]") == 2
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.strip().startswith("refused")]
    assert "method.temperature=-4: method.temperature is -4" in line
    assert "2 runs: 0 done, 1 missing, 1 refused" in out
    assert not (studies.parent / "out").exists()


def test_a_refused_run_is_listed_and_the_others_run(studies: Path, tiny: Tiny, trainer: Trainer) -> None:
    (studies / "study" / "tiny.yaml").write_text(REFUSED)
    study = tiny()
    assert study.execute() == 1
    ((title, message),) = study.failed.items()
    assert "method.temperature=-4" in title
    assert "method.temperature is -4" in message
    assert len(trainer.trained) == 6


@pytest.mark.parametrize("name", rest_wide(["R&D (1), Möbel", "it's a 'test'", "a#b %20", "x=y, z"]))
def test_a_study_lies_in_a_folder_of_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name / "study").mkdir(parents=True)
    (tmp_path / name / "study" / "tiny.yaml").write_text(TINY)
    (tmp_path / name / "recipe").mkdir()
    (tmp_path / name / "recipe" / "mine.yaml").write_text("# @package _global_\nrecipe: {lr: 0.3}\n")
    assert command(Path(name), "stages=[teachers]", "--dry-run") == 0
    assert "1 runs: 0 done, 1 missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "key"),
    [
        (["--minutes", "x"], "usage", ""),
        (["--minutes", "0"], "out_of_range", "--minutes"),
        (["--minutes", "nan"], "out_of_range", "--minutes"),
        (["--max-learners", "0"], "out_of_range", "--max-learners"),
        (["--config-dir", "nowhere"], "not_found", "--config-dir"),
        (["--nonsense"], "usage", "--nonsense"),
    ],
)
def test_wrong_flags_are_refused(arguments: list[str], code: str, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        study_command(["study=lab", *arguments])
    assert (error.value.code, error.value.key) == (code, key)


@pytest.mark.slow
def test_reading_the_arguments_imports_neither_torch_nor_pandas() -> None:
    code = (
        "import sys; from kdbench.study.command import study\n"
        "try: study(['--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit(str([m for m in ('torch', 'pandas', 'scipy', 'matplotlib') if m in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr == "[]\n"
    assert "kdbench-study" in result.stdout


def test_runs_that_failed_are_handed_to_the_report(tiny: Tiny, trainer: Trainer) -> None:
    study = tiny()
    assert study.execute() == 0
    run = study.plan.runs_of("finals")[0]
    (run.directory.path / "summary.json").rename(run.directory.failure)
    assert study.plan.failed_paths() == [run.directory.path]
    assert run.directory.path not in study.plan.result_paths()


def test_the_noise_of_a_choice_is_that_of_the_images_on_which_the_two_differ(tmp_path: Path) -> None:
    candidates = []
    for name, right in (("a", [True] * 60 + [False] * 40), ("b", [True] * 56 + [False] * 44)):
        (tmp_path / name).mkdir()
        logits = np.eye(2, dtype=np.float32)[[0 if r else 1 for r in right]]
        arrays = {"val_logits": logits, "val_labels": np.zeros(100, dtype=np.int64)}
        save_file(arrays, tmp_path / name / "logits.safetensors")
        accuracy = sum(right) / 100
        summary = RunSummary(
            run_key=name, student="resnet8", method="logit", num_val=100, best_val_acc=accuracy, test_acc_best=0.5
        )
        candidates.append(Candidate("pair", (name,), [summary], [tmp_path / name]))
    (winner,) = choose(candidates, "best_val_acc")
    # On 4 of 100 images only the first is right: variance of the difference 0.04 - 0.04**2, by 99 in place of 100.
    assert winner.noise_images == pytest.approx(100 * ((0.04 - 0.04**2) / 99) ** 0.5, abs=1e-4)
    assert winner.noise is not None
    assert winner.noise > 3 * winner.noise_images
    assert winner.noise_seeds is None
    assert winner.seed_scores == [[60.0], [56.0]]


def test_several_seeds_that_choose_say_what_they_add_to_the_noise() -> None:
    def candidate(name: str, scores: Sequence[float]) -> Candidate:
        runs = [
            RunSummary(
                run_key=f"{name}{s}", student="resnet8", method="m", num_val=100, best_val_acc=s, test_acc_best=0
            )
            for s in scores
        ]
        return Candidate("pair", (name,), runs)

    (winner,) = choose([candidate("a", (0.6, 0.62, 0.64)), candidate("b", (0.5, 0.54, 0.52))], "best_val_acc")
    difference = np.array([10.0, 8.0, 12.0])
    assert winner.noise_images is None
    assert winner.noise_seeds == pytest.approx(difference.std(ddof=1) / 3**0.5, abs=1e-3)
