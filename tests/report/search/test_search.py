"""The part of a report about a search: how much of a gain it explains."""

import csv
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from omegaconf import OmegaConf

from kdbench.errors import ConfigError
from kdbench.report.runs import read_runs
from kdbench.report.search.build import (
    SearchedArm,
    SearchPart,
    compute_search,
    describe_arm,
    describe_best,
    search_share,
    usual_role,
)
from kdbench.report.search.expected import expected_best
from kdbench.report.search.read import Trial, read_search
from tests.report.conftest import RECIPE, report_of, write_group, write_run, write_selected

BY_LOGIT = {"teacher": "resnet20", "method": "logit"}
CE, LOGIT = [60.0, 59.0, 61.0, 58.0], [62.0, 65.0, 61.0, 64.0, 10.0]
COLUMNS = ("number", "status", "default", "student", "teacher", "method", "role", "val_acc", "run_key")


def write_search(folder: Path, logit: list[float] = LOGIT, default: bool = True) -> Path:
    """Write trials.csv of a search whose first trial of each method is the default setting."""
    rows: list[dict[str, Any]] = []
    for method, role, teacher, scores in (("ce", "baseline", "", CE), ("logit", "distilled", "resnet20", logit)):
        for n, score in enumerate(scores):
            status = "diverged" if score == 10 else "complete"
            rows.append({
                "number": len(rows), "status": status, "default": default and n == 0, "student": "resnet8",
                "teacher": teacher, "method": method, "role": role, "val_acc": score, "run_key": f"{method}{n}",
            })  # fmt: skip
    rows.append(rows[-1] | {"status": "pruned", "val_acc": 20.0, "run_key": "pruned"})
    rows.append(rows[-1] | {"status": "refused", "val_acc": ""})
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "trials.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    return folder


DATA = {"dataset": "cifar10", "validation": True, "num_train": 45000, "num_val": 5000, "num_test": 10000}


def write_best(folder: Path, **winner: Any) -> Path:
    """Write best.yaml of a search whose winner by logit is as given, and return it."""
    usual = {"data": DATA, "candidates": [{"overrides": [], "score": 65.0, "run_keys": ["logit1"]}]}
    best = write_selected(folder / "best.yaml", [usual | winner], [0], [])
    content = OmegaConf.load(best)
    content.search = {"sampler": "tpe", "trials": "trials.csv"}
    OmegaConf.save(content, best)
    return best


def write_finals(root: Path) -> None:
    write_group(root, (55.0, 55.2, 55.4), seeds=(1, 2, 3))
    write_group(root, (57.0, 57.2, 57.4), seeds=(1, 2, 3), **BY_LOGIT)


def test_the_parts_of_a_gain_are_those_of_its_trials(tmp_path, kdbench_report):
    write_finals(tmp_path / "runs")
    out = tmp_path / "report"
    result = kdbench_report(tmp_path / "runs", "--search", write_search(tmp_path / "searches/s"))
    assert result.code == 0, result.err
    baseline, logit = pd.read_csv(out / "search.csv").to_dict("records")
    assert (baseline["method"], baseline["trials"], baseline["search_gain"]) == ("ce", 4, 1.0)
    assert (logit["trials"], logit["trials_pruned"], logit["trials_diverged"]) == (6, 1, 1)
    assert (logit["val_default"], logit["val_best"], logit["search_gain"]) == (62.0, 65.0, 3.0)
    assert (logit["default_gain"], logit["tuned_gain"], logit["search_share"]) == (2.0, 5.0, 60.0)
    assert logit["trials_equal"] == 4
    assert logit["equal_gain"] == pytest.approx(expected_best([*LOGIT, 20.0], 4) - max(CE))
    page = (out / "report.md").read_text()
    assert (
        "Of +5.00 points over the baseline at its default setting, 3.00 (60 %) are what the search of 6 trials gains"
        in page
    )
    assert "pruned trials count with their best epoch" in page
    anchors = re.findall(r' id="([^"]+)"', (out / "report.html").read_text())
    assert len(anchors) == len(set(anchors))


@pytest.mark.slow
def test_a_report_without_a_search_has_no_such_part(tmp_path, kdbench_report):
    write_finals(tmp_path / "runs")
    out = tmp_path / "report"
    assert kdbench_report(tmp_path / "runs").code == 0
    assert "Search of settings" not in (out / "report.md").read_text()


def test_an_unknown_default_and_an_unsearched_baseline_are_said(tmp_path, kdbench_report):
    write_finals(tmp_path / "runs")
    folder = write_search(tmp_path / "searches/s", default=False)
    trials = pd.read_csv(folder / "trials.csv")
    trials[trials.method == "logit"].to_csv(folder / "trials.csv", index=False)
    out = tmp_path / "report"
    assert kdbench_report(tmp_path / "runs", "--search", folder / "trials.csv").code == 0
    page = (out / "report.md").read_text()
    assert "the default setting was not one of them" in page
    assert "The baseline of resnet8 was not searched" in page


@pytest.mark.slow
def test_trials_among_the_reported_runs_are_named(tmp_path, kdbench_report):
    write_finals(tmp_path / "runs")
    write_run(tmp_path / "runs", seed=0, run_key="logit1", accuracy=0.6, **BY_LOGIT)
    folder = write_search(tmp_path / "searches/s")
    result = kdbench_report(tmp_path / "runs", "--search", folder)
    assert "1 of the reported runs is a trial of search s" in result.out


def test_best_yaml_leaves_its_trials_out_and_brings_its_search(tmp_path, kdbench_report):
    runs, folder = tmp_path / "runs", write_search(tmp_path / "searches/s")
    write_finals(runs)
    write_run(runs, seed=0, run_key="logit1", accuracy=0.9, best_val_acc=0.65, **BY_LOGIT)
    best = write_best(folder)
    out = tmp_path / "report"
    result = kdbench_report(runs, "--select", best)
    assert result.code == 0, result.err
    assert set(pd.read_csv(out / "runs.csv").seed) == {1, 2, 3}
    assert len(pd.read_csv(out / "search.csv")) == 2
    page = (out / "report.md").read_text()
    assert "the sampler tpe looks at earlier trials" in page
    assert "its gain on the test images is +2.00 points (n = 3)" in page


def part_of(runs: Path, search: Path) -> SearchPart:
    """Return the part of a report about a search."""
    return report_of(runs, search=read_search(search)).search


def test_only_the_gain_of_the_winning_setting_stands_beside_a_search(tmp_path):
    runs, folder = tmp_path / "runs", write_search(tmp_path / "searches/s")
    write_group(runs, (55.0, 55.2, 55.4))
    for temperature, first in ((2.0, 57.0), (4.0, 59.0)):
        percents = (first, first + 0.2, first + 0.4)
        write_group(runs, percents, method_params={"temperature": temperature}, **BY_LOGIT)
    write_best(folder, overrides=["method.temperature=4"], method_params={"temperature": 4.0})
    assert "its gain on the test images is +4.00 points (n = 3)." in part_of(runs, folder).sentences[0]
    write_best(folder, overrides=["method.temperature=8"], method_params={"temperature": 8.0})
    part = part_of(runs, folder)
    assert "on the test images" not in part.sentences[0]
    assert "the setting that won in search lab is not among the reported runs" in part.remarks[0]


def test_a_search_without_settings_has_no_gain_beside_it_unless_its_best_run_is_there(tmp_path):
    runs, folder = tmp_path / "runs", write_search(tmp_path / "searches/s")
    write_finals(runs)
    part = part_of(runs, folder)
    assert "its gain on the test images" not in " ".join(part.sentences)
    assert "the settings and data of search s are not known" in part.remarks[0]
    assert part.remarks[0].endswith(": resnet8 logit from resnet20")
    write_run(runs, seed=0, run_key="logit1", accuracy=0.57, **BY_LOGIT)
    assert "its gain on the test images is" in part_of(runs, folder).sentences[0]


def test_the_recipe_of_trials_that_the_reported_runs_do_not_have_is_said(tmp_path):
    runs, folder = tmp_path / "runs", write_search(tmp_path / "searches/s")
    write_finals(runs)
    write_best(folder, recipe=RECIPE | {"lr": 0.25})
    remarks = part_of(runs, folder).remarks
    assert any(line.endswith(f"report its winners: recipe.lr=0.25 (now {RECIPE['lr']})") for line in remarks)


@pytest.mark.parametrize("recorded", [True, False])
def test_final_runs_may_train_on_the_validation_images(tmp_path, recorded):
    runs, folder = tmp_path / "runs", write_search(tmp_path / "searches/s")
    final = {"validation": False, "num_train": 50000, "best_val_acc": None, "best_val_epoch": None}
    write_group(runs, (55.0, 55.2, 55.4), **final)
    write_group(runs, (57.0, 57.2, 57.4), **final, **BY_LOGIT)
    trial = write_run(tmp_path / "trial", seed=9, run_key="logit1", accuracy=0.57, **BY_LOGIT)
    if recorded:
        write_best(folder, method_params={})
    read = read_runs([runs, trial]).runs
    found = read_search(folder)
    report = report_of(runs)
    part = compute_search(found, report.runs, report.gains, None, read)
    assert "its gain on the test images is +2.00 points (n = 3)" in part.sentences[0]
    assert [line for line in part.remarks if "other training images" in line] == [
        f"the trials of search {found.name} had other training images than the runs that report its winners: "
        "validation=True (now False); num_train=45000 (now 50000)"
    ]


def test_other_training_images_do_not_hide_the_report_of_a_selection(tmp_path, kdbench_report):
    final = {"validation": False, "num_train": 50000, "best_val_acc": None, "best_val_epoch": None}
    write_group(tmp_path / "runs", (55.0, 55.2), seeds=(1, 2), **final)
    write_group(tmp_path / "runs", (57.0, 57.2), seeds=(1, 2), **final, **BY_LOGIT)
    result = kdbench_report(tmp_path / "runs", "--select", write_best(write_search(tmp_path / "searches/s")))
    assert result.code == 0, result.error
    assert "had other training images" in result.out


@pytest.mark.parametrize(
    ("winner", "said"),
    [
        ({"data": DATA | {"dataset": "cifar100"}}, "trials have dataset=cifar100, and these runs have dataset=cifar10"),
        ({"data": DATA | {"num_val": 500}}, "trials have num_val=500, and these runs have num_val=5000"),
    ],
)
def test_a_search_of_other_data_is_refused(tmp_path, winner, said):
    write_finals(tmp_path / "runs")
    folder = write_search(tmp_path / "searches/s")
    write_best(folder, **winner)
    with pytest.raises(ConfigError, match=said) as error:
        part_of(tmp_path / "runs", folder)
    assert (error.value.code, error.value.key) == ("mismatch", "--search")


def test_a_search_of_other_students_is_refused(tmp_path):
    write_group(tmp_path / "runs", (55.0, 55.2), student="resnet14")
    with pytest.raises(ConfigError, match="none of its students, teachers and methods") as error:
        part_of(tmp_path / "runs", write_search(tmp_path / "searches/s"))
    assert (error.value.code, error.value.key) == ("mismatch", "--search")


NOT_RECORDED = "It is not recorded which of these trials had the default setting"
NOT_PLANNED = "The default setting, which is the one without the grid, could not be planned"


@pytest.mark.parametrize(
    ("recorded", "gains", "said"),
    [
        ([{"default": False}, {"default": True}], 2, ""),
        ([{}, {}], 0, NOT_RECORDED),
        ([{"default": None}, {"default": None}], 0, NOT_PLANNED),
    ],
    ids=["recorded", "of an earlier version", "not planned"],
)
def test_the_default_setting_of_a_grid_is_known_where_its_file_records_it(tmp_path, recorded, gains, said):
    write_finals(tmp_path / "runs")
    candidates = [
        {"overrides": [f"method.alpha={n}"], "score": score, "run_keys": [f"c{n}"]} | recorded[n]
        for n, score in enumerate((65.0, 63.0))
    ]
    teachers = ("resnet20", "resnet32")
    winners = [{"teacher": teacher, "score": 65.0, "candidates": candidates} for teacher in teachers]
    part = part_of(tmp_path / "runs", write_selected(tmp_path / "selected.yaml", winners, [9], [1, 2, 3]))
    text = "\n".join(part.sentences)
    assert "which was not drawn" not in text
    assert text.count("+2.00 points over the default setting") == gains
    assert [sentence for sentence in (NOT_RECORDED, NOT_PLANNED) if sentence in text] == ([said] if said else [])
    assert ("given again, records it" in text) == (said == NOT_RECORDED)
    assert "was not one of them" not in text
    assert text.count("The baseline of resnet8 was not searched") == 1


@pytest.mark.slow
def test_the_grid_of_a_study_is_a_search(tmp_path, kdbench_report):
    runs = tmp_path / "runs"
    write_finals(runs)
    winner = {
        "overrides": [], "method_params": {}, "score": 65.0, "margin": 1.0,
        "candidates": [
            {"overrides": [f"method.alpha={n}"], "score": score, "run_keys": [f"c{n}"]}
            for n, score in enumerate((65.0, 63.0))
        ],
    }  # fmt: skip
    selected = write_selected(tmp_path / "selected.yaml", [winner], [9], [1, 2, 3])
    out = tmp_path / "report"
    assert kdbench_report(runs, "--search", selected).code == 0
    (row,) = pd.read_csv(out / "search.csv").to_dict("records")
    assert (row["sampler"], row["trials"], row["val_best"], row["expected_one"]) == ("grid", 2, 65.0, 64.0)


@pytest.mark.slow
def test_the_figure_is_there_with_a_search_alone(tmp_path, kdbench_report):
    write_finals(tmp_path / "runs")
    folder = write_search(tmp_path / "searches/s")
    assert kdbench_report(tmp_path / "runs", figures=True).code == 0
    figure = tmp_path / "report/figures/search.png"
    assert not figure.exists()
    assert kdbench_report(tmp_path / "runs", "--search", folder, figures=True).code == 0
    assert figure.is_file()


def searched(*scores: float, default: float, status: str = "complete", method: str = "logit") -> SearchedArm:
    """Return an arm whose first trial is the default setting."""
    arm = ("resnet8", None if method == "ce" else "resnet20", method)
    first = Trial(*arm, "", status, default, is_default=True)
    return SearchedArm(arm, "", [first, *(Trial(*arm, "", "complete", score) for score in scores)])


def test_a_gain_of_which_the_search_is_no_part_is_said_plainly():
    baseline = searched(61.0, default=60.0, method="ce")
    above, below = searched(63.0, default=58.0), searched(59.0, default=58.0)
    assert search_share(above, baseline) is None
    assert search_share(below, baseline) is None
    assert (
        "2.00 points below that of the baseline, and the best setting 3.00 points above it: without the search there "
        "is no gain, so it explains all of it" in describe_arm(above, baseline, [])
    )
    assert (
        "2.00 points below that of the baseline, and the best setting 1.00 points below it: there is no gain"
        in describe_arm(below, baseline, [])
    )
    assert "Of " not in describe_arm(above, baseline, [])
    assert search_share(searched(63.0, default=61.0), baseline) == pytest.approx(100 * 2 / 3)


@pytest.mark.parametrize(("status", "said"), [("diverged", "its loss was not finite"), ("pruned", "it was pruned")])
def test_a_default_setting_without_a_result_is_said(status, said):
    arm = searched(63.0, default=10.0, status=status)
    assert arm.default is None
    assert f"the default setting has no result ({said})" in describe_best(arm)
    assert "points over the default" not in describe_best(arm)


def test_a_search_that_finds_nothing_better_than_the_default_setting_says_so():
    baseline = searched(default=63.0, method="ce")
    line = describe_arm(searched(62.0, default=63.0), baseline, [])
    assert "a validation accuracy of 63.00 %, that of the default setting" in line
    assert "0.00 points" in line
    assert "-0.00" not in line


def test_only_complete_trials_can_be_the_best():
    assert searched(63.0, default=70.0, status="pruned").best == 63.0
    assert searched(default=70.0, status="pruned").best is None
    assert "none of 1 trial is complete" in describe_best(searched(default=70.0, status="pruned"))


def test_a_control_without_a_teacher_is_no_baseline():
    assert usual_role(("resnet8", None, "ce")) == "baseline"
    assert usual_role(("resnet8", None, "label_smoothing")) == ""
