"""Numbers from saved logits: agreement beside the baseline's, flips with a test for each pair; none without logits."""

import json
import math

import numpy as np
import pytest

from kdbench.report.build import build_report
from kdbench.report.page import page_table
from kdbench.report.predictions import predictions_in
from tests.report.conftest import report_of, write_logits, write_run

N, C = 60, 4
LABELS = np.random.default_rng(0).integers(0, C, N)
TEACHER_KEY = "resnet200"


def logits(seed, right=40):
    """Logits whose arg max is the label for a number of images that `seed` picks, and the next class for the others."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(N, C)).astype(np.float32) * 0.3
    chosen = LABELS.copy()
    wrong = random.permutation(N)[right:]
    chosen[wrong] = (chosen[wrong] + 1) % C
    values[np.arange(N), chosen] += 3
    return values


def log_probabilities(values, temperature):
    scaled = np.asarray(values, dtype=np.float64) / temperature
    return scaled - np.log(np.exp(scaled).sum(axis=1, keepdims=True))


def kl(teacher, student, temperature):
    p, q = log_probabilities(teacher, temperature), log_probabilities(student, temperature)
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def right(values):
    return np.asarray(values).argmax(axis=1) == LABELS


def study(root, precision=np.float32, seeds=(0, 1, 2), teacher=True, **others):
    """Write a teacher, and baseline and distilled runs of some seeds, all with logits."""
    if teacher:
        write_run(root, student="resnet20", run_key=TEACHER_KEY, logits=(logits(99).astype(precision), LABELS))
    for seed in seeds:
        write_run(root, seed=seed, accuracy=0.9 + seed / 500, logits=(logits(seed).astype(precision), LABELS))
        write_run(
            root, seed=seed, accuracy=0.91 + seed / 500, teacher="resnet20", method="logit", teacher_key=TEACHER_KEY,
            agreement=0.9 + seed / 100, kl_t1=0.2 + seed / 10, kl_t4=0.05,
            logits=(logits(50 + seed, 45).astype(precision), LABELS), **others,
        )  # fmt: skip


@pytest.mark.parametrize(("precision", "within"), [(np.float32, 1e-6), (np.float16, 2e-3), (np.float64, 1e-6)])
def test_the_baseline_is_compared_with_that_teacher_too(tmp_path, precision, within):
    study(tmp_path, precision)
    report = report_of(tmp_path)
    row = report.fidelity.groups.iloc[0]
    teacher, baseline = logits(99), [logits(seed) for seed in range(3)]
    same = [float((teacher.argmax(axis=1) == own.argmax(axis=1)).mean()) for own in baseline]
    assert row["base_agreement"] == pytest.approx(100 * np.mean(same))
    for t in (1, 4):
        expected = np.mean([kl(teacher, own, t) for own in baseline])
        assert row[f"base_kl_t{t}"] == pytest.approx(expected, abs=within)
    assert len(report.fidelity.groups) == 1
    assert [line for line in report.fidelity.remarks if "CONTRADICTION" not in line] == []


def test_the_distilled_students_own_fidelity_is_the_mean_of_the_summaries(tmp_path):
    study(tmp_path, test_ece=0.04, test_nll=0.5)
    row = report_of(tmp_path).fidelity.groups.iloc[0]
    assert row["agreement"] == pytest.approx(91)
    assert row["agreement_std"] == pytest.approx(1)
    assert row["kl_t1"] == pytest.approx(0.3)
    assert (row["n"], row["n_base"]) == (3, 3)
    assert (row["ece"], row["base_ece"]) == pytest.approx((4, 2))
    assert (row["nll"], row["base_nll"]) == pytest.approx((0.5, 0.3))


def test_a_teacher_beside_the_students_is_found_though_it_is_not_reported(tmp_path):
    study(tmp_path)
    students = [folder for folder in tmp_path.iterdir() if TEACHER_KEY not in folder.name]
    report = build_report(students)
    assert "resnet20" not in report.runs_table["student"].tolist()
    assert report.fidelity.groups["base_agreement"].notna().all()


def test_of_several_teachers_each_is_compared_with_its_own(tmp_path):
    study(tmp_path)
    write_run(tmp_path, student="resnet20", seed=1, run_key="other", logits=(logits(77), LABELS))
    for seed in range(3):
        write_run(
            tmp_path, seed=seed, teacher="resnet20", teacher_seed=1, method="logit", teacher_key="other",
            accuracy=0.92 + seed / 500, logits=(logits(80 + seed), LABELS),
        )  # fmt: skip
    table = report_of(tmp_path).fidelity.groups
    expected = [
        100 * np.mean([(logits(key).argmax(axis=1) == logits(seed).argmax(axis=1)).mean() for seed in range(3)])
        for key in (99, 77)
    ]
    assert table["base_agreement"].tolist() == pytest.approx(expected)


def test_a_teacher_without_logits_leaves_the_baseline_without_agreement_and_a_remark(tmp_path):
    study(tmp_path, teacher=False)
    fidelity = report_of(tmp_path).fidelity
    assert fidelity.groups["base_agreement"].isna().all()
    assert fidelity.groups["agreement"].notna().all()
    (remark,) = [
        line for line in fidelity.remarks if "the logits of the teacher resnet20 (seed 0) are not here" in line
    ]
    assert remark.endswith("baselines have no agreement with it beside 1 group: resnet8 logit from resnet20")


def binomial(gained, lost):
    n = gained + lost
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(gained, lost) + 1)) / 2**n)


def test_flips_are_counted_for_each_seed_with_an_exact_test_of_its_own(tmp_path):
    study(tmp_path)
    flips = report_of(tmp_path).fidelity.flips
    assert flips["seed"].tolist() == [0, 1, 2]
    for seed, row in enumerate(flips.to_dict("records")):
        ours, theirs = right(logits(50 + seed, 45)), right(logits(seed))
        gained, lost = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
        assert (row["only_method"], row["only_baseline"]) == (gained, lost)
        assert row["both_right"] == int((ours & theirs).sum())
        assert row["both_right"] + row["only_method"] + row["only_baseline"] + row["both_wrong"] == N
        assert row["images"] == N
        assert row["p_mcnemar"] == pytest.approx(binomial(gained, lost))


def test_flips_are_of_the_same_seed_whatever_the_order_of_runs(tmp_path):
    for seed in (2, 0, 1):
        write_run(tmp_path, seed=seed, logits=(logits(seed), LABELS))
    for seed in (1, 2, 3):
        write_run(tmp_path, seed=seed, teacher="t", method="logit", logits=(logits(seed), LABELS))
    flips = report_of(tmp_path).fidelity.flips
    assert flips["seed"].tolist() == [1, 2]  # there is no baseline run of seed 3
    assert (flips[["only_method", "only_baseline"]] == 0).all(axis=None)
    assert (flips["p_mcnemar"] == 1).all()


def test_flips_are_not_counted_twice_for_a_pooled_row(tmp_path):
    study(tmp_path)
    for seed in range(3):
        write_run(
            tmp_path, seed=seed, teacher="resnet20", teacher_seed=1, method="logit", accuracy=0.92 + seed / 500,
            logits=(logits(seed), LABELS),
        )  # fmt: skip
    report = report_of(tmp_path)
    assert "pooled" in report.gains_table["teacher_seed"].tolist()
    assert len(report.fidelity.flips) == 6


def test_different_test_images_are_not_compared(tmp_path):
    write_run(tmp_path, logits=(logits(0), LABELS))
    write_run(tmp_path, teacher="t", method="logit", logits=(logits(1), (LABELS + 1) % C))
    assert report_of(tmp_path).fidelity.flips.empty


def test_summaries_alone_are_enough_for_all_that_needs_no_logits(tmp_path, kdbench_report):
    for seed in range(3):
        write_run(tmp_path / "runs", seed=seed, accuracy=0.9 + seed / 500)
        write_run(tmp_path / "runs", seed=seed, accuracy=0.91 + seed / 500, teacher="t", method="logit")
    result = kdbench_report(tmp_path / "runs")
    assert result.code == 0
    assert result.table("gains")["p_welch"].notna().all()
    assert result.table("fidelity")["agreement"].tolist() == pytest.approx([93])
    assert result.table("fidelity")["base_agreement"].isna().all()
    assert len(result.table("flips")) == 0
    assert "teacher's logits" not in result.out


@pytest.mark.slow
def test_figures_of_summaries_alone_are_those_that_need_no_more(tmp_path, kdbench_report):
    write_run(tmp_path / "runs")
    write_run(tmp_path / "runs", teacher="t", method="logit")
    result = kdbench_report(tmp_path / "runs", figures=True)
    drawn = {path.name for path in (result.folder / "figures").iterdir()}
    names = ("gains", "size", "agreement", "classes")
    assert drawn == {f"{name}.{kind}" for name in names for kind in ("png", "svg", "pdf")}
    assert "no run has a metrics.csv" in result.text("report.md")


def test_runs_that_lack_logits_are_named_with_what_is_left_out(tmp_path):
    study(tmp_path)
    for folder in (*tmp_path.glob("ce_seed1_*"), *tmp_path.glob("logit_seed[02]_*")):
        (folder / "logits.safetensors").unlink(missing_ok=True)
    report = report_of(tmp_path)
    (remark,) = [line for line in report.remarks if "no logits" in line]
    assert remark.startswith("3 runs have no logits.safetensors: ")
    assert "resnet8 ce (seed 1); resnet8 logit from resnet20 (seeds 0, 2)" in remark
    assert "flips" in remark
    assert report.fidelity.flips.empty  # there is no pair left that has both
    assert report.fidelity.groups["base_agreement"].notna().all()


def test_classes_that_rounding_leaves_open_are_counted_apart(tmp_path):
    ours, theirs = logits(50).astype(np.float16), logits(0).astype(np.float16)
    ours[3, :2], theirs[7, 1:3] = 9, 9
    write_run(tmp_path, logits=(theirs, LABELS))
    folder = write_run(tmp_path, teacher="t", method="logit", logits=(ours, LABELS))
    (row,) = report_of(tmp_path).fidelity.flips.to_dict("records")
    known = ~np.isin(np.arange(N), (3, 7))
    assert row["ties"] == 2
    assert row["both_right"] == int((right(ours) & right(theirs))[known].sum())
    assert row["only_method"] == int((right(ours) & ~right(theirs))[known].sum())
    assert row["only_baseline"] == int((right(theirs) & ~right(ours))[known].sum())
    assert sum(row[name] for name in ("both_right", "only_method", "only_baseline", "both_wrong", "ties")) == N
    assert predictions_in(folder).correct.tolist() == (right(ours) & (np.arange(N) != 3)).tolist()


def test_equal_logits_of_full_precision_count_as_in_the_accuracy(tmp_path):
    values = np.zeros((N, C), dtype=np.float32)
    write_run(tmp_path, logits=(values, LABELS))
    folder = write_run(tmp_path, teacher="t", method="logit", logits=(values, LABELS))
    assert report_of(tmp_path).fidelity.flips["ties"].tolist() == [0]
    assert predictions_in(folder).correct.tolist() == (LABELS == 0).tolist()


def test_logits_that_were_written_anew_are_read_anew(tmp_path):
    folder = write_run(tmp_path, logits=(logits(0), LABELS))
    before = predictions_in(folder).correct
    write_logits(folder, np.concatenate([logits(1), logits(2)]), np.concatenate([LABELS, LABELS]))
    assert len(predictions_in(folder).correct) == 2 * len(before)
    (folder / "logits.safetensors").unlink()
    assert predictions_in(folder) is None


DAMAGE = {
    "no safetensors": b"nothing of the kind",
    "empty": b"",
    "not finite": (np.full((N, C), np.nan, dtype=np.float32), LABELS),
    "one dimension": (np.zeros(N, dtype=np.float32), LABELS),
    "labels of fewer images": (np.zeros((N, C), dtype=np.float32), LABELS[:5]),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_logits_have_a_remark_and_the_run_counts_without(tmp_path, damage):
    study(tmp_path)
    folder = next(f for f in tmp_path.iterdir() if f.name.startswith("logit_seed1"))
    file = folder / "logits.safetensors"
    if isinstance(damage, bytes):
        file.write_bytes(damage)
    else:
        write_logits(folder, *damage)
    report = report_of(tmp_path)
    assert sum(str(file) in line for line in report.remarks) == 1
    assert report.fidelity.flips["seed"].tolist() == [0, 2]
    assert report.gains_table["n"].tolist() == [3]


def test_accuracy_of_each_class_is_a_mean_over_seeds(tmp_path):
    for seed, accuracies in enumerate(([0.5, 1.0], [0.7, 0.9])):
        write_run(tmp_path, seed=seed, per_class_acc=accuracies)
    row = report_of(tmp_path).fidelity.per_class.iloc[0]
    assert (row["class_0"], row["class_1"], row["n"]) == pytest.approx((60, 95, 2))


def test_a_class_without_images_has_no_accuracy(tmp_path):
    write_run(tmp_path, per_class_acc=[0.5, None])
    row = report_of(tmp_path).fidelity.per_class.iloc[0]
    assert row["class_0"] == pytest.approx(50)
    assert math.isnan(row["class_1"])


def test_agreement_that_some_summaries_lack_is_the_mean_of_the_others(tmp_path):
    study(tmp_path)
    file = next(tmp_path.glob("logit_seed2*")) / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"agreement": None}))
    assert report_of(tmp_path).fidelity.groups.iloc[0]["agreement"] == pytest.approx(90.5)


def test_classes_have_their_names_where_the_runs_record_them(tmp_path):
    write_run(tmp_path, per_class_acc=[0.5, 1.0], class_names=["cat", "dog"])
    row = report_of(tmp_path).fidelity.per_class.iloc[0]
    assert (row["class_cat"], row["class_dog"]) == pytest.approx((50, 100))


def test_many_classes_are_rows_of_the_page(tmp_path):
    names = [f"kind {n}" for n in range(30)]
    for seed in (0, 1):
        write_run(tmp_path, seed=seed, per_class_acc=[n / 30 for n in range(30)], class_names=names)
    table = page_table("per_class", report_of(tmp_path).fidelity.per_class)
    assert [len(table.columns), len(table.rows)] == [2, 30]
    assert [row[0].text for row in table.rows] == names
    assert table.rows[15][1].text == "50.0"


@pytest.mark.parametrize("precision", [np.float32, np.float16])
def test_logits_of_another_accuracy_than_the_summary_are_a_remark(tmp_path, precision):
    right = float((logits(1).argmax(axis=1) == LABELS).mean())
    write_run(tmp_path, accuracy=right, logits=(logits(1).astype(precision), LABELS))
    write_run(tmp_path, seed=1, accuracy=1 - right, logits=(logits(1).astype(precision), LABELS))
    (remark,) = [line for line in report_of(tmp_path).remarks if "CONTRADICTION" in line]
    assert "of 1 run have another accuracy" in remark
    assert f"resnet8 ce, seed 1 ({100 * right:.2f} % by its logits, {100 - 100 * right:.2f} %)" in remark


def test_a_tie_of_rounded_logits_is_no_contradiction(tmp_path):
    rounded = logits(1).astype(np.float16)
    right = int((rounded.argmax(axis=1) == LABELS).sum())
    wrong = int(np.flatnonzero(rounded.argmax(axis=1) != LABELS)[0])
    rounded[wrong, :] = 9  # the image may have been right before the rounding
    for seed, count in enumerate((right, right + 1)):
        write_run(tmp_path, seed=seed, accuracy=count / len(LABELS), logits=(rounded, LABELS))
    assert not [line for line in report_of(tmp_path).remarks if "CONTRADICTION" in line]


@pytest.mark.parametrize("kind", ["labels", "images", "classes"])
def test_logits_of_other_images_or_classes_are_named(tmp_path, kind):
    study(tmp_path)
    other, labels = logits(7), LABELS
    if kind == "labels":
        labels = (LABELS + 1) % other.shape[1]
    elif kind == "images":
        other, labels = other[:-1], labels[:-1]
    else:
        other = np.hstack([other, other[:, :1]])
    write_run(tmp_path, seed=5, logits=(other, labels))
    (remark,) = [line for line in report_of(tmp_path).remarks if "have other labels, or another number" in line]
    assert "1 run have" in remark
    assert "resnet8 ce, seed 5;" in remark


def test_arms_of_other_images_have_no_interval_for_other_images(tmp_path):
    for seed in range(3):
        write_run(tmp_path, seed=seed, accuracy=0.9 + seed / 500, logits=(logits(seed), LABELS))
        write_run(
            tmp_path, seed=seed, accuracy=0.91 + seed / 400, method="logit", teacher="t",
            logits=(logits(50 + seed), np.roll(LABELS, 1)),
        )  # fmt: skip
    report = report_of(tmp_path)
    assert report.gains_table.p_images.isna().all()
    assert any("3 runs have other labels" in line for line in report.remarks)
