"""Gains of single classes, from the summaries."""

import re

import numpy as np
import pytest
from scipy import stats

from tests.report.conftest import report_of, write_run

BASE = [[0.50, 0.90], [0.54, 0.88], [0.51, 0.91]]
OURS = [[0.55, 0.90], [0.57, 0.91], [0.58, 0.89]]
NAMES = ["low", "dog"]


def write(root, accuracies, seeds=range(3), **others):
    for seed, values in zip(seeds, accuracies, strict=True):
        write_run(root, seed=seed, per_class_acc=values, class_names=NAMES, **others)


def test_each_class_has_the_mean_difference_of_paired_seeds_and_its_interval(tmp_path):
    write(tmp_path, BASE)
    write(tmp_path, OURS, teacher="t", method="logit")
    table = report_of(tmp_path).class_gains
    assert table["class_name"].tolist() == NAMES
    assert table["class_index"].tolist() == [0, 1]
    for index, row in enumerate(table.to_dict("records")):
        differences = 100 * (np.array(OURS) - np.array(BASE))[:, index]
        expected = stats.ttest_1samp(differences, 0).confidence_interval()
        assert (row["gain"], row["n"]) == (pytest.approx(differences.mean()), 3)
        assert (row["class_low"], row["class_high"]) == pytest.approx(tuple(expected))


def test_arms_of_other_seeds_are_compared_by_their_means(tmp_path):
    write(tmp_path, BASE)
    write(tmp_path, OURS[:2], seeds=(1, 7), teacher="t", method="logit")
    table = report_of(tmp_path).class_gains
    for index, row in enumerate(table.to_dict("records")):
        ours, theirs = 100 * np.array(OURS[:2])[:, index], 100 * np.array(BASE)[:, index]
        assert row["gain"] == pytest.approx(ours.mean() - theirs.mean())
        expected = stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval()
        assert (row["class_low"], row["class_high"]) == pytest.approx(tuple(expected))


def test_one_seed_and_a_class_without_images_have_no_interval(tmp_path):
    write(tmp_path, [[0.5, None]], seeds=(0,))
    write(tmp_path, [[0.6, None]], seeds=(0,), teacher="t", method="logit")
    table = report_of(tmp_path).class_gains
    assert table["gain"].tolist() == pytest.approx([10, np.nan], nan_ok=True)
    assert table[["class_low", "class_high"]].isna().all(axis=None)


def test_a_class_named_like_a_column_keeps_its_name_on_the_page(tmp_path, kdbench_report):
    write(tmp_path / "runs", BASE)
    write(tmp_path / "runs", OURS, teacher="t", method="logit")
    result = kdbench_report(tmp_path / "runs")
    assert len(result.table("class_gains")) == 2
    assert "mean test accuracy of the images of this class" in result.text("report.html")
    (table,) = re.findall(r'<table id="per_class-table".*?</table>', result.text("report.html"), re.DOTALL)
    assert "class from" not in table


def test_runs_that_are_no_independent_samples_have_no_interval(tmp_path):
    random = np.random.default_rng(0)
    for arm in ({}, {"method": "logit", "teacher": "resnet20"}):
        for init in range(2):
            for data in range(2):
                accuracies = random.uniform(0.4, 0.6, 2).tolist()
                write_run(tmp_path, init_seed=init, data_seed=data, per_class_acc=accuracies, class_names=NAMES, **arm)
    table = report_of(tmp_path).class_gains
    assert table.gain.notna().all()
    assert table[["class_low", "class_high"]].isna().all(axis=None)
