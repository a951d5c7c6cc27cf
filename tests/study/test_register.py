"""A study that registers what it will test before its first final run, and the report that reads it."""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from kdbench.errors import ConfigError
from kdbench.report.plan import Plan, read_plan
from kdbench.rundir.summary import RunSummary
from kdbench.study import command
from kdbench.study.execute import StudyExecution
from kdbench.study.finish import write_report
from kdbench.study.register import Registration, describe_registration, find_plan, register
from tests.study.conftest import TINY, Tiny, Trainer, better_at_4

FIXED = TINY.replace("winners_of: selection", "methods: {logit: {method.temperature: [2, 4]}, feature: null}")


def registered(study: StudyExecution, analysis: str = "auto", margin: float = 0.1) -> Registration:
    return register(study.plan, analysis, margin)


def test_a_plan_holds_hypotheses_tests_stopping_rule_and_the_source_of_the_settings(tiny: Tiny) -> None:
    study = tiny()
    written = registered(study, "paired", 0.25)
    plan = read_plan(study.plan.folder / "plan.yaml")
    assert written.is_new
    assert plan == written.plan
    (gain,) = plan.gains
    assert (gain.student, gain.teacher, gain.teacher_seed, gain.method) == ("resnet8", "resnet20", 0, "logit")
    assert (gain.setting, gain.method_params) == ("the winner of stage selection", None)
    assert (list(gain.seeds), list(gain.baseline_seeds)) == ([0, 1], [0, 1])
    assert plan.tests["analysis"] == "paired"
    assert plan.tests["level"] == 0.05
    assert plan.tests["rule"]
    assert plan.margin == 0.25
    assert plan.stopping["seeds"] == {"finals": [0, 1]}
    assert plan.selection == {"stage": "selection", "seeds": [9], "chosen_by": "best_val_acc", "winners": None}
    assert plan.data["dataset"] == "shapes"
    assert plan.data["num_train"] == 64
    assert plan.time.tzinfo is not None


@pytest.mark.slow
def test_fixed_settings_and_the_interactions_of_two_students_are_planned(tiny: Tiny, studies: Path) -> None:
    text = FIXED.replace("students: [resnet8]", "students: [resnet8, resnet14]")
    text = text.replace(
        "pairs: [resnet20_resnet8]\n    methods: {logit",
        "pairs: [resnet20_resnet8, resnet20_resnet14]\n    methods: {logit",
    )
    (studies / "study" / "tiny.yaml").write_text(text)
    plan = registered(tiny()).plan
    assert [(gain.student, gain.setting) for gain in plan.gains] == [
        ("resnet8", "method.temperature=2"), ("resnet8", "method.temperature=4"),
        ("resnet14", "method.temperature=2"), ("resnet14", "method.temperature=4"),
        ("resnet8", ""), ("resnet14", ""),
    ]  # fmt: skip
    assert [(gain.method_params or {})["temperature"] for gain in plan.gains[:4]] == [2, 4, 2, 4]
    assert [(i.method, set(i.students)) for i in plan.interactions] == [
        ("logit", {"resnet8", "resnet14"}),
        ("feature", {"resnet8", "resnet14"}),
    ]
    assert plan.selection is None


def test_several_teachers_are_hypotheses_of_their_own_and_one_pooled(tiny: Tiny, studies: Path) -> None:
    text = FIXED.replace("{method.temperature: [2, 4]}, feature: null", "null")
    text = text.replace("    seeds: ${final_seeds}", '    seeds: ${final_seeds}\n    overrides: ["teacher.seed=0,1"]')
    (studies / "study" / "tiny.yaml").write_text(text)
    plan = registered(tiny()).plan
    assert [gain.teacher_seed for gain in plan.gains] == [0, 1, "pooled"]
    assert {gain.setting for gain in plan.gains} == {""}
    assert all(list(gain.baseline_seeds) == [0, 1] for gain in plan.gains)


def test_the_same_plan_again_changes_nothing_and_after_the_finals_too(tiny: Tiny, trainer: Trainer) -> None:
    first = registered(tiny())
    content = first.file.read_bytes()
    assert not registered(tiny()).is_new
    tiny().execute()
    again = registered(tiny())
    assert not again.is_new
    assert again.plan == first.plan
    assert first.file.read_bytes() == content


def test_another_plan_is_refused_and_the_registered_one_stays(tiny: Tiny) -> None:
    file = registered(tiny()).file
    content = file.read_bytes()
    with pytest.raises(ConfigError) as error:
        registered(tiny(), margin=0.2)
    assert (error.value.code, error.value.key) == ("registered", "--register")
    assert "margin" in str(error.value)
    assert "\n" not in str(error.value)
    assert file.read_bytes() == content


@pytest.mark.parametrize("state", ["complete", "started"])
def test_a_plan_after_the_first_final_run_is_refused_and_names_it(tiny: Tiny, trainer: Trainer, state: str) -> None:
    study = tiny("stages=[teachers,selection]")
    study.execute()
    assert "selection" in study.plan.winners
    final = tiny().plan.runs_of("finals")[0]
    if state == "complete":
        trainer.complete(final)
    else:
        final.directory.path.mkdir(parents=True)
    with pytest.raises(ConfigError) as error:
        registered(tiny())
    assert (error.value.code, error.value.key) == ("too_late", "--register")
    assert f"{final.directory.path} is {state}" in str(error.value)
    assert not study.plan.folder.joinpath("plan.yaml").exists()


def test_teachers_and_selection_may_be_trained_before_and_the_winners_are_part_of_the_plan(
    tiny: Tiny, trainer: Trainer
) -> None:
    trainer.accuracy = better_at_4
    tiny("stages=[teachers,selection]").execute()
    selection = registered(tiny()).plan.selection
    assert selection is not None
    assert selection["winners"] == [
        {"student": "resnet8", "teacher": "resnet20", "method": "logit", "overrides": ["method.temperature=4"]}
    ]


def test_a_study_that_distils_nothing_cannot_be_registered(tiny: Tiny) -> None:
    with pytest.raises(ConfigError) as error:
        registered(tiny("stages=[teachers,selection]"))
    assert (error.value.code, error.value.key) == ("nothing_to_register", "--register")


def test_the_dry_run_says_whether_and_with_which_differences_it_is_registered(tiny: Tiny) -> None:
    assert describe_registration(tiny().plan).startswith("not registered")
    file = registered(tiny(), margin=0.3).file
    assert describe_registration(tiny().plan).endswith(f": {file}")
    other = describe_registration(tiny("final_seeds=[0,1,2]").plan)
    assert f"{file}; this command line differs in " in other
    assert "stopping" in other


def test_other_seeds_belong_to_the_registered_study_and_other_overrides_do_not(tiny: Tiny) -> None:
    file = registered(tiny()).file
    assert find_plan(tiny("final_seeds=[0,1,2]").plan) == file
    assert find_plan(tiny("data.num_train=128").plan) is None


@pytest.mark.slow
def test_a_refused_run_of_a_registered_study_is_said_by_the_dry_run_which_ends_with_2(
    tiny: Tiny, studies: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (studies / "study" / "tiny.yaml").write_text(FIXED)
    file = registered(tiny()).file
    (studies / "study" / "tiny.yaml").write_text(FIXED.replace("[2, 4]", "[2, -4]"))
    (line,) = describe_registration(tiny().plan).splitlines()
    assert f"{file}; this command line cannot be compared with it: method.temperature is -4" in line
    assert command.study(["study=tiny", "output_root=out", "--config-dir", str(studies), "--dry-run"]) == 2
    assert "cannot be compared with it" in capsys.readouterr().out


def test_a_damaged_plan_is_an_error_of_the_dry_run(tiny: Tiny) -> None:
    file = registered(tiny()).file
    file.write_text(file.read_text().replace("margin: 0.1", "margin: 0.2"))
    with pytest.raises(ConfigError) as error:
        describe_registration(tiny().plan)
    assert error.value.code == "checksum"


# The command

Report = dict[str, Any]


def complete_with_all(self: Trainer, run: Any) -> Path:
    """Complete a run with what a report needs of its summary."""
    path = Trainer.complete(self, run)
    summary = RunSummary(**json.loads((path / "summary.json").read_text()) | {"checksum": None})
    role = "baseline" if summary.method == "ce" else "distilled"
    recipe = run.config.recipe.settings()
    values = {
        "role": role,
        "dataset": "shapes",
        "test_acc_best": 0.5 + 0.01 * (summary.seed or 0),
        "recipe": recipe,
        "num_val": 50,
    }
    seeds = {"teacher_seed": 0 if summary.teacher else None, "started": "2099-01-01T00:00:00+00:00"}
    run.directory.write_summary(dataclasses.replace(summary, **values, **seeds))
    return path


def report_of(study: StudyExecution, *flags: str) -> Report:
    """Return the results of the report that the command ends with."""
    given = command.parse_arguments(["study=tiny", *flags])
    assert isinstance(given, argparse.Namespace)
    assert write_report(study, given) == 0
    results: Report = json.loads((study.plan.folder / "report" / "results.json").read_text())
    return results


@pytest.fixture
def recording(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """The trainer, whose runs have what a report needs."""
    monkeypatch.setattr(trainer, "complete", lambda run: complete_with_all(trainer, run))
    return trainer


@pytest.mark.slow
def test_the_report_of_a_registered_study_says_that_the_plan_was_followed(tiny: Tiny, recording: Trainer) -> None:
    registered(tiny(), "welch", 0.3)
    study = tiny()
    assert study.execute() == 0
    results = report_of(study)
    assert results["plan"][0].endswith("was followed.")
    assert (results["options"]["margin"], results["options"]["analysis"]) == (0.3, "welch")


@pytest.mark.slow
def test_a_registered_study_with_other_seeds_and_margin_is_executed_and_the_report_says_so(
    tiny: Tiny, recording: Trainer
) -> None:
    registered(tiny())
    study = tiny("final_seeds=[0,1,2]")
    assert study.execute() == 0
    lines = report_of(study, "--margin", "0.4")["plan"]
    assert lines[0].endswith("was not followed in 2 respects.")
    assert any("by logit (the winner of stage selection): 2 not planned; of the baseline 2" in line for line in lines)
    assert "The margin of equivalence is 0.4 points; 0.1 points was planned." in lines


def test_register_writes_the_plan_and_trains_nothing(studies: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["study=tiny", "output_root=out", "--config-dir", str(studies), "--register", "--analysis", "blocks"]
    assert command.study(arguments) == 0
    file = Path("out/studies/tiny/plan.yaml")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("study tiny: composing its runs")
    assert second.startswith(f"registered: {file} (gains: 1, interactions: 0, analysis blocks, margin 0.1")
    assert isinstance(read_plan(file), Plan)
    assert not Path("out/runs").exists()
    assert OmegaConf.load(file).study == "tiny"
    assert command.study(arguments) == 0
    assert "already registered on " in capsys.readouterr().out
