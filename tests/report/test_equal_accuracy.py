"""Agreement with a teacher beyond that of an undistilled network of equal accuracy, and agreement by correctness."""

import math
from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm
from scipy import stats

from kdbench.report.equal_accuracy import excess_row, slope_of
from tests.report.conftest import report_of, write_run

RESULTS = Path(__file__).parents[2] / "results" / "lab"
N, RIGHT = 1000, 800
"""Images, and those of them that the teacher classifies correctly: the first ones."""
LABELS = np.arange(N) % 4
TEACHER = np.where(np.arange(N) < RIGHT, LABELS, (LABELS + 1) % 4)
EMPTY = (
    "agreement_slope agreement_expected agreement_excess agreement_excess_low agreement_excess_high agreement_explained"
).split()


def network(right, repaired, repeated):
    """Return predicted classes.

    Args:
        right: number of images that student and teacher classify correctly.
        repaired: number of images that the student alone classifies correctly.
        repeated: number of images on which it makes the teacher's mistake.
    """
    predicted = (LABELS + 2) % 4
    predicted[:right] = LABELS[:right]
    predicted[RIGHT : RIGHT + repaired] = LABELS[RIGHT : RIGHT + repaired]
    predicted[N - repeated :] = TEACHER[N - repeated :]
    return predicted


def write(root, predicted, **others):
    logits = np.eye(4, dtype=np.float32)[predicted]
    accuracy, agreement = float((predicted == LABELS).mean()), float((predicted == TEACHER).mean())
    known = {"agreement": agreement} if "teacher" in others else {}
    return write_run(root, accuracy=accuracy, logits=(logits, LABELS), **known, **others)


def study(root, students=("resnet8", "resnet14"), repeated=(60, 60, 60)):
    """Write a teacher, baselines whose agreement is their accuracy plus a constant, and distilled runs of one."""
    write(root, TEACHER, student="resnet18", run_key="the-teacher")
    for student in students:
        for seed, same in enumerate(repeated):
            right = {"resnet8": 500, "resnet14": 600}[student] + 10 * seed
            write(root, network(right, 40, same), student=student, seed=seed)
    for seed in range(3):
        write(
            root, network(540 + 10 * seed, 40, 80), seed=seed, teacher="resnet18", method="logit",
            teacher_key="the-teacher",
        )  # fmt: skip


def test_what_accuracy_explains_is_no_excess(tmp_path):
    study(tmp_path)
    row = report_of(tmp_path).fidelity.groups.iloc[0]
    # Gain 4 points, agreement 6 points more than the baseline's; undistilled networks gain a point for a point.
    assert row["agreement"] - row["base_agreement"] == pytest.approx(6)
    assert row["agreement_slope"] == pytest.approx(1)
    assert row["agreement_expected"] == pytest.approx(row["base_agreement"] + 4)
    assert row["agreement_excess"] == pytest.approx(2)
    assert row["agreement_explained"] == pytest.approx(100 * 4 / 6)


def test_agreement_is_split_by_whether_the_teacher_is_right(tmp_path):
    study(tmp_path)
    row = report_of(tmp_path).fidelity.groups.iloc[0]
    assert row["agreement_right"] == pytest.approx(100 * 550 / RIGHT)
    assert row["base_agreement_right"] == pytest.approx(100 * 510 / RIGHT)
    assert row["same_mistake"] == pytest.approx(100 * 80 / 200)
    assert row["base_same_mistake"] == pytest.approx(100 * 60 / 200)


def test_one_baseline_gives_no_slope_but_the_split(tmp_path):
    study(tmp_path, students=("resnet8",))
    row = report_of(tmp_path).fidelity.groups.iloc[0]
    assert row[EMPTY].isna().all()
    assert row[["agreement_right", "base_agreement_right", "same_mistake", "base_same_mistake"]].notna().all()


def test_baselines_whose_accuracies_hardly_differ_give_no_slope():
    near, close, far = (90.0, 90.6), (90.8, 91.0), (94.0, 94.4)
    assert slope_of([(near, near), (close, close)]) is None
    assert slope_of([(near, near), (far, far)]).value == pytest.approx(1)


def test_the_interval_holds_the_spread_over_seeds_and_the_error_of_the_slope(tmp_path):
    study(tmp_path, repeated=(52, 66, 61))
    row = report_of(tmp_path).fidelity.groups.iloc[0]
    accuracy = np.array([54, 55, 56, 64, 65, 66], dtype=float)
    agreement = np.array([500 + 52, 510 + 66, 520 + 61, 600 + 52, 610 + 66, 620 + 61]) / 10
    line = sm.OLS(agreement, sm.add_constant(accuracy)).fit()
    assert row["agreement_slope"] == pytest.approx(line.params[1])
    ours = np.array([62.0, 63.0, 64.0]) - line.params[1] * np.array([58.0, 59.0, 60.0])
    theirs = agreement[:3] - line.params[1] * accuracy[:3]
    parts = [(ours.var(ddof=1) / 3, 2), (theirs.var(ddof=1) / 3, 2), ((4 * line.bse[1]) ** 2, 4)]
    variance = sum(part for part, _ in parts)
    df = variance**2 / sum(part**2 / of for part, of in parts)
    half = stats.t.ppf(0.975, df) * math.sqrt(variance)
    excess = ours.mean() - theirs.mean()
    assert row["agreement_excess"] == pytest.approx(excess)
    assert row["agreement_excess_low"] == pytest.approx(excess - half)
    assert row["agreement_excess_high"] == pytest.approx(excess + half)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "spread"), [(3, 0.3), (5, 0.3), (5, 1.0)])
def test_the_interval_covers_a_true_excess_19_times_in_20(n, spread):
    random, covered, times = np.random.default_rng(n), 0, 1000

    def arm(accuracy, excess=0.0):
        accuracies = accuracy + random.normal(0, spread, n)
        return accuracies.tolist(), (5 + accuracies + excess + random.normal(0, 0.4, n)).tolist()

    for _ in range(times):
        base, other = arm(70.0), arm(77.0)
        row = excess_row(arm(73.0, 1.5), base, slope_of([base, other]))
        covered += row["agreement_excess_low"] <= 1.5 <= row["agreement_excess_high"]
    assert 0.93 <= covered / times <= 0.98


def test_an_accuracy_far_beyond_the_undistilled_networks_has_a_remark(tmp_path):
    study(tmp_path)
    far = {"teacher": "resnet18", "teacher_key": "the-teacher", "method": "feature"}
    write(tmp_path, network(800, 40, 80), **far)
    report = report_of(tmp_path)
    (remark,) = [line for line in report.remarks if "beyond the undistilled networks" in line]
    assert "resnet8 feature from resnet18" in remark
    assert "logit" not in remark


@pytest.fixture(scope="module")
def lab():
    return report_of(RESULTS / "runs", RESULTS / "selected.yaml")


def test_accuracy_explains_half_to_two_thirds_of_the_excess_in_the_lab(lab):
    table = lab.fidelity.groups
    assert table["agreement_slope"].between(0.98, 1.12).all()
    assert table["agreement_explained"].between(49, 70).all()
    assert (table["agreement_excess"] > 0).all()


def test_flips_of_rounded_logits_agree_with_the_accuracies_of_the_runs(lab):
    accuracies = {
        (run.student, run.teacher if run.role == "distilled" else "", run.method, run.seed): run.test_acc_best
        for run in lab.runs_table.itertuples()
    }
    assert len(lab.fidelity.flips) == 18
    for row in lab.fidelity.flips.itertuples():
        assert row.both_right + row.only_method + row.only_baseline + row.both_wrong + row.ties == row.images
        assert row.ties > 0
        ours = accuracies[row.student, row.teacher, row.method, row.seed] / 100 * row.images
        theirs = accuracies[row.student, "", "ce", row.seed] / 100 * row.images
        assert row.both_right + row.only_method <= round(ours) <= row.both_right + row.only_method + row.ties
        assert row.both_right + row.only_baseline <= round(theirs) <= row.both_right + row.only_baseline + row.ties
