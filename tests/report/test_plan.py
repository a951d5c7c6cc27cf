"""A registered plan in a report: what was followed, what was not, and what nobody can tell."""

import json
import re

import pytest

from kdbench.report.command import ANALYSES
from kdbench.report.design import Analysis
from kdbench.report.plan import RULES, as_content, hash_of, plan_from
from kdbench.study.winners import yaml_of
from tests.report.conftest import RECIPE, write_group, write_run, write_selected

BASELINE, DISTILLED = (90.0, 90.2, 89.9), (90.5, 90.4, 90.6)
BY_LOGIT = {"teacher": "resnet20", "method": "logit"}
BEFORE, REGISTERED, AFTER = (f"2026-03-0{day}T12:00:00+00:00" for day in (1, 2, 3))
GAIN = {
    "student": "resnet8", "teacher": "resnet20", "teacher_seed": 0, "method": "logit", "setting": "",
    "method_params": {}, "recipe": {}, "stem": None, "seeds": [0, 1, 2], "baseline": "resnet8 by ce",
    "baseline_seeds": [0, 1, 2],
}  # fmt: skip
PLAN = {
    "study": "lab", "question": "Is it ${so}?", "changes": {}, "stages": ["finals"],
    "gains": [GAIN], "interactions": [],
    "tests": {"analysis": "auto", "rule": "", "correction": "", "level": 0.05}, "margin": 0.1,
    "stopping": {"seeds": {"finals": [0, 1, 2]}, "rule": ""}, "selection": None,
    "data": {"dataset": "cifar10", "num_train": 45000}, "recipe": RECIPE, "version": "0.1.0", "git_revision": None,
    "registered": REGISTERED,
}  # fmt: skip


@pytest.fixture
def write_plan(tmp_path):
    """Write a plan of one gain, with some keys changed, and return its file."""

    def write(**values):
        content = as_content(plan_from(PLAN | values))
        (tmp_path / "plan.yaml").write_text(yaml_of(content | {"sha256": hash_of(content)}))
        return tmp_path / "plan.yaml"

    return write


@pytest.fixture
def runs(tmp_path):
    """Write the runs of the plan, started after it was registered."""
    write_group(tmp_path / "runs", BASELINE, started=AFTER)
    write_group(tmp_path / "runs", DISTILLED, started=AFTER, **BY_LOGIT)
    return tmp_path / "runs"


def said(result):
    """Return the sentences of results.json on the plan, which are printed and on both pages too."""
    assert result.code == 0, result.error
    lines = json.loads(result.text("results.json"))["plan"]
    page = re.sub(r"\\(.)", r"\1", result.text("report.md"))
    assert all(line in result.out and line in page for line in lines)
    assert 'id="plan"' in result.text("report.html")
    return lines


def test_a_plan_that_was_followed_is_said_to_be(runs, write_plan, kdbench_report):
    first, *rest = said(kdbench_report(runs, "--plan", write_plan()))
    assert first == (
        "The plan of the study lab, registered on 2026-03-02 at 12:00 UTC with 1 gain and 0 interactions, was followed."
    )
    assert any(line.startswith("It was registered before the first of the 6 runs started") for line in rest)
    assert "Every planned gain that is here has the planned seeds." in rest


def test_runs_that_are_older_than_the_plan_are_named(tmp_path, runs, write_plan, kdbench_report):
    run = write_run(runs, seed=2, accuracy=0.906, started=BEFORE, train_seconds=61.0, **BY_LOGIT)
    for folder in runs.glob("logit_seed2*"):
        if folder != run:
            (folder / "summary.json").unlink()
    first, *rest = said(kdbench_report(runs, "--plan", write_plan()))
    assert first.endswith("was not followed in 1 respect.")
    key = run.name.rpartition("_")[2]
    assert f"1 of 6 runs started before the plan was registered: {key}." in rest


def test_a_time_in_another_zone_is_compared_as_a_time(tmp_path, write_plan, kdbench_report):
    write_group(tmp_path / "runs", BASELINE, started=AFTER)
    # The same day and a later hour, and yet before the registration.
    write_group(tmp_path / "runs", DISTILLED, started="2026-03-02T13:00:00+05:00", **BY_LOGIT)
    lines = said(kdbench_report(tmp_path / "runs", "--plan", write_plan()))
    assert any(line.startswith("3 of 6 runs started before the plan was registered") for line in lines)


def test_runs_without_a_time_leave_it_open(tmp_path, write_plan, kdbench_report):
    write_group(tmp_path / "runs", BASELINE, started=AFTER)
    write_group(tmp_path / "runs", DISTILLED, **BY_LOGIT)
    first, *rest = said(kdbench_report(tmp_path / "runs", "--plan", write_plan()))
    assert first.endswith("whether it was followed cannot be told wholly; what can be checked agrees with it.")
    assert any(line.startswith("3 of 6 runs do not record when they started") for line in rest)


def test_seeds_that_are_missing_or_were_added_are_named(runs, write_plan, kdbench_report):
    gain = GAIN | {"seeds": [0, 1, 5], "baseline_seeds": [0, 1]}
    first, *rest = said(kdbench_report(runs, "--plan", write_plan(gains=[gain])))
    assert first.endswith("was not followed in 1 respect.")
    seeds = "5 missing, 2 not planned; of the baseline 2 not planned"
    assert f"Seeds of resnet8 from resnet20 by logit: {seeds}." in rest


def test_a_planned_gain_that_is_missing_and_one_that_was_not_planned_are_named(runs, write_plan, kdbench_report):
    other = GAIN | {"method": "feature", "setting": "method.alpha=0.5", "method_params": {"alpha": 0.5}}
    first, *rest = said(kdbench_report(runs, "--plan", write_plan(gains=[other])))
    assert first.endswith("was not followed in 1 respect.")
    assert "1 of 1 planned gain is missing here: resnet8 from resnet20 by feature (method.alpha=0.5)." in rest
    assert "Not in the plan, exploratory: resnet8 from resnet20 by logit." in rest


@pytest.mark.parametrize(
    "planned",
    [{"method_params": {"temperature": 4}}, {"recipe": {"lr": 0.2}}, {"teacher_seed": 1}, {"teacher": "resnet32"}],
    ids=lambda planned: next(iter(planned)),
)
def test_a_gain_with_another_setting_is_not_the_planned_one(runs, write_plan, kdbench_report, planned):
    lines = said(kdbench_report(runs, "--plan", write_plan(gains=[GAIN | planned])))
    assert any("missing here" in line for line in lines)
    assert any(line.startswith("Not in the plan, exploratory: ") for line in lines)


def test_interactions_are_compared_whichever_student_is_named_first(runs, write_plan, kdbench_report):
    write_group(runs, BASELINE, student="resnet14", started=AFTER)
    write_group(runs, DISTILLED, student="resnet14", started=AFTER, **BY_LOGIT)
    gains = [GAIN, GAIN | {"student": "resnet14"}]
    planned = {"method": "logit", "teacher": "resnet20", "teacher_seed": 0, "students": ["resnet8", "resnet14"]}
    lines = said(kdbench_report(runs, "--plan", write_plan(gains=gains, interactions=[planned])))
    assert lines[0].endswith("was followed.")
    assert "Every planned interaction is here." in lines
    lines = said(kdbench_report(runs, "--plan", write_plan(gains=gains)))
    assert "Not in the plan, exploratory: resnet14 against resnet8 from resnet20 by logit." in lines


def test_margin_and_analysis_are_those_of_the_plan_unless_the_command_line_differs(runs, write_plan, kdbench_report):
    plan = write_plan(margin=0.3, tests=PLAN["tests"] | {"analysis": "paired"})
    result = kdbench_report(runs, "--plan", plan)
    options = json.loads(result.text("results.json"))["options"]
    assert (options["margin"], options["analysis"]) == (0.3, "paired")
    assert said(result)[0].endswith("was followed.")
    lines = said(kdbench_report(runs, "--plan", plan, "--margin", "0.5", "--analysis", "welch"))
    assert lines[0].endswith("was not followed in 2 respects.")
    assert "The margin of equivalence is 0.5 points; 0.3 points was planned." in lines
    assert "The primary analysis is welch; paired was planned." in lines


def test_settings_that_were_chosen_otherwise_than_planned_are_named(tmp_path, runs, write_plan, kdbench_report):
    winner = {"student": "resnet8", "teacher": "resnet20", "method": "logit", "overrides": ["method.temperature=4"]}
    selection = {"stage": "selection", "seeds": [8], "chosen_by": "best_val_acc", "winners": [winner]}
    plan = write_plan(selection=selection, gains=[GAIN | {"method_params": None}])
    selected = write_selected(tmp_path / "selected.yaml", [{"overrides": []}], [9], [0, 1, 2])
    lines = said(kdbench_report(runs, "--plan", plan, "--select", selected))
    assert lines[0].endswith("was not followed in 2 respects.")
    assert "The seeds that chose the settings: 9; planned: 8." in lines
    assert any("no override was chosen; the plan names method.temperature=4" in line for line in lines)
    lines = said(kdbench_report(runs, "--plan", plan))
    assert any("made without the selection" in line for line in lines)


def test_other_data_than_planned_are_named(runs, write_plan, kdbench_report):
    lines = said(kdbench_report(runs, "--plan", write_plan(data={"dataset": "cifar10", "num_train": 20000})))
    assert "num_train is 45000; 20000 was planned." in lines


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (lambda text: text.replace("margin: 0.1", "margin: 0.4"), "checksum"),
        (lambda text: text.replace(REGISTERED, BEFORE), "checksum"),
        (lambda _: "", "damaged"),
        (lambda _: "a: [", "damaged"),
        (lambda _: "just text", "damaged"),
        (lambda text: text.partition("sha256:")[0], "damaged"),
    ],
)
def test_a_plan_that_was_changed_or_is_damaged_is_refused_in_one_line(runs, write_plan, kdbench_report, edit, code):
    file = write_plan()
    changed = edit(file.read_text())
    assert changed != file.read_text()
    file.write_text(changed)
    result = kdbench_report(runs, "--plan", file)
    assert (result.code, result.error.code, result.error.key) == (2, code, "--plan")
    assert "\n" not in str(result.error)
    assert not result.folder.exists()


@pytest.mark.parametrize(("content", "code"), [({"schema": 99}, "mismatch"), ({"schema": 1, "margin": 0.1}, "damaged")])
def test_a_plan_of_another_layout_is_refused(tmp_path, runs, kdbench_report, content, code):
    (tmp_path / "plan.yaml").write_text(yaml_of(content | {"sha256": hash_of(content)}))
    result = kdbench_report(runs, "--plan", tmp_path / "plan.yaml")
    assert (result.code, result.error.code, result.error.key) == (2, code, "--plan")


def test_a_plan_that_does_not_exist_is_refused(runs, kdbench_report):
    result = kdbench_report(runs, "--plan", "nowhere.yaml")
    assert (result.code, result.error.code, result.error.key) == (2, "not_found", "--plan")


def test_the_analyses_of_the_command_line_are_those_that_a_plan_can_register():
    assert tuple(RULES) == ANALYSES == tuple(Analysis)[: len(ANALYSES)]
    assert set(Analysis) - set(ANALYSES) == {Analysis.CROSSED}
