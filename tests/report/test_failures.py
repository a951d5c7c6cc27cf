"""Runs that failed: named by arm and seed, and what the verdict would be if they counted."""

import numpy as np
import pandas as pd
import pytest

from kdbench.report.failures import FailedRun, with_failures
from kdbench.report.groups import group_runs
from kdbench.report.runs import read_runs
from kdbench.report.select import read_selection, with_selection
from tests.report.conftest import (
    report_of,
    write_failed_run,
    write_group,
    write_run,
    write_selected,
    write_unfinished_run,
)

BY_LOGIT = {"teacher": "resnet20", "method": "logit"}


@pytest.fixture
def runs(tmp_path):
    """Three runs in each of two arms, and one that diverged."""
    write_group(tmp_path, (90.0, 90.1, 90.2))
    write_group(tmp_path, (91.0, 91.1, 91.2), **BY_LOGIT)
    write_failed_run(tmp_path, seed=3, group_key=None, message="epoch 2, step 5: kd is nan", **BY_LOGIT)
    return tmp_path


def with_failed(root, selection=None):
    found = read_runs([root])
    whole = with_failures(found.runs, found.failed)
    assert whole is not None
    return group_runs(with_selection(whole, selection))


def test_a_failed_run_is_named_by_arm_and_seed_with_the_reason(runs):
    report = report_of(runs)
    assert len(report.runs) == 6
    (failed,) = report.failed
    assert (failed.student, failed.teacher, failed.method, failed.seed) == ("resnet8", "resnet20", "logit", 3)
    assert failed.reason == "epoch 2, step 5: kd is nan"
    assert not any("kd is nan" in remark or "unfinished" in remark for remark in report.remarks)


def test_the_console_names_a_failed_run_and_the_page_lists_it_once(runs, kdbench_report):
    result = kdbench_report(runs)
    failure = "resnet8 logit from resnet20, seed 3 (not_finite): epoch 2, step 5: kd is nan"
    assert f"note: FAILED, and without a result: {failure}" in result.out
    for page in ("report.html", "report.md"):
        assert result.text(page).count("kd is nan") == 1


def test_complete_and_interrupted_runs_are_no_failures(tmp_path):
    write_group(tmp_path, (90.0, 90.1))
    write_unfinished_run(tmp_path, student="resnet8", method="logit", teacher="resnet20", seed=7)
    report = report_of(tmp_path)
    assert report.failed == []
    (remark,) = (remark for remark in report.remarks if "unfinished" in remark)
    assert remark.endswith("resnet8 logit from resnet20, seed 7")


def test_many_interrupted_runs_are_named_in_one_line(tmp_path):
    write_run(tmp_path)
    for seed in range(5):
        write_unfinished_run(tmp_path, student="resnet8", method="ce", seed=seed)
    (remark,) = (remark for remark in report_of(tmp_path).remarks if "unfinished" in remark)
    assert remark.startswith("5 unfinished runs were left out")
    assert remark.endswith("resnet8 ce, seed 2; and 2 more")


def test_a_run_that_failed_and_is_complete_elsewhere_counts_as_complete(tmp_path):
    write_run(tmp_path / "one", run_key="same")
    write_failed_run(tmp_path / "other", run_key="same")
    report = report_of(tmp_path)
    assert report.failed == []
    assert len(report.runs) == 1


def test_with_failures_adds_a_run_at_chance_to_its_group(runs):
    baseline, distilled = with_failed(runs)
    assert baseline.accuracies == [90.0, 90.1, 90.2]
    assert distilled.accuracies == pytest.approx([91.0, 91.1, 91.2, 10.0])
    assert distilled.seeds[-1] == (3, 3)


def test_chance_follows_the_number_of_classes(tmp_path):
    names = {"class_names": [f"class {n}" for n in range(100)]}
    write_group(tmp_path, (70.0, 70.1), **names)
    write_failed_run(tmp_path, seed=5, **names)
    (group,) = with_failed(tmp_path)
    assert group.accuracies == pytest.approx([70.0, 70.1, 1.0])


def test_an_arm_of_which_every_run_failed_has_a_gain_of_its_own(tmp_path):
    write_group(tmp_path, (90.0, 90.2))
    for seed in (0, 1):
        write_failed_run(tmp_path, seed=seed, **BY_LOGIT)
    _, distilled = with_failed(tmp_path)
    assert (distilled.shared.method, distilled.shared.role) == ("logit", "distilled")
    assert np.mean(distilled.accuracies) == pytest.approx(10.0)


@pytest.mark.parametrize("code", ["out_of_memory", "no_space"])
def test_a_run_that_the_machine_ended_is_named_but_is_no_evidence_on_its_method(tmp_path, code):
    write_group(tmp_path, (90.0, 90.1))
    write_failed_run(tmp_path, seed=2, code=code)
    found = read_runs([tmp_path])
    assert [run.code for run in found.failed] == [code]
    assert with_failures(found.runs, found.failed) is None


def test_without_failed_runs_there_is_no_second_table(tmp_path):
    write_run(tmp_path)
    found = read_runs([tmp_path])
    assert with_failures(found.runs, found.failed) is None
    assert with_failures(found.runs, [FailedRun("resnet8", None, "ce", 0, "unknown", "gone")]) is None


def test_failed_candidates_of_a_selection_do_not_report(tmp_path):
    write_group(tmp_path, (90.0, 90.1), seeds=(1, 2))
    write_group(tmp_path, (91.0, 91.1), seeds=(1, 2), **BY_LOGIT)
    write_failed_run(tmp_path, seed=9, **BY_LOGIT)
    write_failed_run(tmp_path, seed=3, **BY_LOGIT)
    selection = read_selection(write_selected(tmp_path / "selected.yaml", [{}], (9,), (1, 2, 3)))
    _, distilled = with_failed(tmp_path, selection)
    assert [init for init, _ in distilled.seeds] == [1, 2, 3]


@pytest.mark.parametrize("content", ["", "[]", '{"code": "x"}', '{"code": "x", "message": "y", "epoch": 1, "run": {}}'])
def test_a_damaged_record_of_a_failure_is_a_remark_of_its_own(tmp_path, content):
    write_run(tmp_path)
    folder = write_failed_run(tmp_path, seed=1)
    (folder / "failure.json").write_text(content)
    report = report_of(tmp_path)
    assert report.failed == []
    assert any(remark.startswith("FAILED, and failure.json cannot be read: ") for remark in report.remarks)


def test_the_table_with_failures_has_the_columns_and_missing_values_of_the_one_without(runs):
    found = read_runs([runs])
    whole = with_failures(found.runs, found.failed)
    assert whole is not None
    assert list(whole.columns[: len(found.runs.columns)]) == list(found.runs.columns)
    assert whole.isna().to_numpy().any()
    assert not any(isinstance(value, float) and pd.isna(value) for value in whole.to_numpy().ravel().tolist())


def test_where_every_distilled_run_failed_the_verdict_counts_nothing(tmp_path):
    write_group(tmp_path, (90.0, 90.1, 90.2))
    write_failed_run(tmp_path, seed=0, **BY_LOGIT)
    verdict = report_of(tmp_path).verdict
    assert "1 run failed and has no result" in verdict[1]
    assert "0 of 0" not in " ".join(verdict)


def test_a_failed_run_that_leaves_nothing_to_test_is_said_beside_what_was_found(tmp_path):
    write_group(tmp_path, (90.0, 90.1, 90.2))
    write_group(tmp_path, (91.0, 91.15, 91.2), **BY_LOGIT)
    write_failed_run(tmp_path, seed=2, teacher_seed=0, run_key="again", **BY_LOGIT)
    verdict = report_of(tmp_path).verdict
    assert verdict[0].startswith("1 of 1 gains is significant")
    assert verdict[1].endswith("With them at the accuracy of chance no gain can be tested.")
