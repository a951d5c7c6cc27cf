"""Two reports compared: which verdicts changed, and the reason that is given."""

import json
import re
import shutil

import pytest

from kdbench.report.command import report as command
from tests.report.conftest import write_group, write_run, write_selected

BASELINE, DISTILLED = (90.0, 90.2, 89.9), (90.5, 90.72, 90.38)
BY_LOGIT = {"teacher": "resnet20", "method": "logit"}


@pytest.fixture
def old(tmp_path):
    """Write a baseline and a distilled group, and the earlier report of them; return its folder."""
    write_group(tmp_path / "runs", BASELINE)
    write_group(tmp_path / "runs", DISTILLED, **BY_LOGIT)
    assert command([str(tmp_path / "runs"), "--out", str(tmp_path / "old"), "--no-figures"]) == 0
    return tmp_path / "old"


def changes(result):
    """Return the sentences of results.json, which are printed and on the page too."""
    assert result.code == 0, result.error
    lines = json.loads(result.text("results.json"))["changes"]
    page = re.sub(r"\\(.)", r"\1", result.text("report.md"))
    assert all(line in result.out and line in page for line in lines)
    return lines


def edit(old, table, **values):
    """Change the rows of a table of the earlier report."""
    file = old / "results.json"
    content = json.loads(file.read_text())
    for row in content["tables"][table]:
        row |= values
    file.write_text(json.dumps(content))


def test_nothing_changed_is_one_sentence(tmp_path, old, kdbench_report):
    (line,) = changes(kdbench_report(tmp_path / "runs", "--against", old))
    assert line.startswith("Nothing changed")


def test_a_gain_that_is_no_longer_significant_is_named_with_its_numbers_and_the_runs_that_were_added(
    tmp_path, old, kdbench_report
):
    run = write_run(tmp_path / "runs", seed=3, accuracy=0.85, **BY_LOGIT)
    lines = changes(kdbench_report(tmp_path / "runs", "--against", old))
    key = run.name.rpartition("_")[2]
    (verdict,) = [line for line in lines if "not significant now" in line]
    assert verdict.startswith("The gain of resnet8 from resnet20 by logit: significant then, not significant now")
    assert "+0.50 [" in verdict
    assert re.search(r"-0\.88 \[.*\], p [\d.]+ now\)", verdict)
    assert f"Why: 1 run added (resnet8 logit from resnet20, seed 3, key {key})" in verdict
    assert any("changed its direction" in line for line in lines)
    assert lines[-1].startswith("Runs: 1 run added")


def test_runs_that_are_gone_or_have_other_numbers_are_the_reason(tmp_path, old, kdbench_report):
    gone, changed = sorted((tmp_path / "runs").glob("logit_seed[01]*"))
    shutil.rmtree(gone)
    summary = json.loads((changed / "summary.json").read_text())
    (changed / "summary.json").write_text(json.dumps(summary | {"test_acc_best": 0.8}))
    text = " ".join(changes(kdbench_report(tmp_path / "runs", "--against", old)))
    gone_key = gone.name.rpartition("_")[2]
    assert f"1 run gone (resnet8 logit from resnet20, seed 0, key {gone_key}); 1 run with other numbers" in text
    assert f"1 run with other numbers (resnet8 logit from resnet20, seed 1, key {summary['run_key']})" in text


def test_another_margin_is_the_reason_of_another_equivalence(tmp_path, old, kdbench_report):
    lines = changes(kdbench_report(tmp_path / "runs", "--against", old, "--margin", "5"))
    assert re.search(
        r"not shown to be within the margin then, shown to be .* now .* Why: margin 0\.1 then, 5\.0 now\.",
        lines[0],
    )
    assert lines[-1] == "Options: margin 0.1 then, 5.0 now."


def test_a_new_gain_and_the_larger_family_are_said(tmp_path, old, kdbench_report):
    write_group(tmp_path / "runs", (90.2, 89.7, 90.1), teacher="resnet20", method="feature")
    lines = changes(kdbench_report(tmp_path / "runs", "--against", old))
    assert any(line.startswith("The gain of resnet8 from resnet20 by feature is new: ") for line in lines)
    assert "number of tests among gains: 1 then, 2 now" in " ".join(lines)


def test_an_interaction_that_is_gone_is_named(tmp_path, kdbench_report):
    for student in ("resnet8", "resnet14"):
        write_group(tmp_path / "runs", BASELINE, student=student)
        write_group(tmp_path / "runs", DISTILLED, student=student, **BY_LOGIT)
    assert command([str(tmp_path / "runs"), "--out", str(tmp_path / "old"), "--no-figures"]) == 0
    for folder in (tmp_path / "runs").iterdir():
        if json.loads((folder / "summary.json").read_text())["student"] == "resnet14":
            shutil.rmtree(folder)
    lines = changes(kdbench_report(tmp_path / "runs", "--against", tmp_path / "old"))
    assert any(
        line.startswith("The interaction of resnet14 against resnet8 from resnet20 by logit is gone") for line in lines
    )


def test_another_selection_is_said(tmp_path, old, kdbench_report):
    selected = write_selected(tmp_path / "selected.yaml", [{}], [9], [0, 1, 2])
    lines = changes(kdbench_report(tmp_path / "runs", "--against", old, "--select", selected))
    assert lines[-1].startswith("Options: selection: none then, of the study lab, seeds [9] (resnet8 logit) now")


def test_the_same_runs_computed_by_another_version_are_said_to_be_computed_differently(tmp_path, old, kdbench_report):
    edit(old, "gains", significant=False)
    file = old / "results.json"
    file.write_text(file.read_text().replace('"version": "', '"version": "0.0.', 1))
    (line, *_) = changes(kdbench_report(tmp_path / "runs", "--against", old))
    assert "not significant then, significant now" in line
    assert re.search(r"Why: computed differently from the same runs \(kdbench 0\.0\..* then, .* now\)\.$", line)


def test_numbers_that_moved_without_a_verdict_are_counted(tmp_path, old, kdbench_report):
    edit(old, "gains", delta=0.4)
    (line,) = changes(kdbench_report(tmp_path / "runs", "--against", old))
    assert line == "No verdict changed; 1 of 1 gains and interactions have other numbers."


def test_a_report_is_compared_with_the_one_that_it_replaces(tmp_path, old, kdbench_report):
    kdbench_report(tmp_path / "runs")
    write_run(tmp_path / "runs", seed=3, accuracy=0.85, **BY_LOGIT)
    result = kdbench_report(tmp_path / "runs", "--against", tmp_path / "report")
    assert any("not significant now" in line for line in changes(result))


def test_another_analysis_of_a_row_is_the_reason_and_stands_in_the_last_line(tmp_path, old, kdbench_report):
    edit(old, "gains", significant=False, analysis="blocks")
    lines = changes(kdbench_report(tmp_path / "runs", "--against", old))
    words = "by seeds as blocks with one spread then, by Welch's t-test now"
    assert lines[0].endswith(f"Why: {words}.")
    assert lines[-1] == f"Analysis of 1 of the gains and interactions: {words}."


def test_another_analysis_without_another_verdict_is_said(tmp_path, old, kdbench_report):
    edit(old, "gains", analysis="paired")
    lines = changes(kdbench_report(tmp_path / "runs", "--against", old))
    assert lines[0].startswith("No verdict changed; 0 of 1")
    assert lines[-1].endswith("by the paired t-test over seeds then, by Welch's t-test now.")


def test_an_earlier_report_of_other_data_or_of_other_runs_is_said_first(tmp_path, old, kdbench_report):
    write_group(tmp_path / "other data", BASELINE, dataset="cifar100")
    write_group(tmp_path / "other data", DISTILLED, dataset="cifar100", **BY_LOGIT)
    first, *_ = changes(kdbench_report(tmp_path / "other data", "--against", old))
    assert first.startswith("OTHER DATA: cifar10 then, cifar100 now")
    write_group(tmp_path / "other runs", BASELINE, recipe={"lr": 0.2})
    write_group(tmp_path / "other runs", DISTILLED, recipe={"lr": 0.2}, **BY_LOGIT)
    first, *_ = changes(kdbench_report(tmp_path / "other runs", "--against", old))
    assert first.startswith("NO RUN IN COMMON")
