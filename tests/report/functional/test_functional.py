"""Transfer, asymmetry and shared mistakes from run directories: planted truths, controls, what is missing."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdbench import metrics
from kdbench.report.build import build_report
from kdbench.report.drawing import WIDE, style
from kdbench.report.figures.save import draw_figure
from kdbench.report.figures.sheet import Sheet, choose_looks
from kdbench.report.page import page_table
from kdbench.report.results import tables_of
from tests.report.conftest import report_of, write_run
from tests.report.functional.writing import (
    CLASSES,
    IMAGES,
    LABELS,
    TEACHERS,
    answers,
    copied,
    logits_of,
    write,
    write_controls,
    write_random_control,
    write_students,
    write_study,
    write_teachers,
)

SEEDS = range(6)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    write_study(root, SEEDS)
    return build_report([root])


def rows(table, **wanted):
    for column, value in wanted.items():
        table = table[table[column] == value]
    return table


def small(root, seeds=SEEDS, kinds=("SIDDO",), **planted):
    write_teachers(root)
    write_controls(root, seeds, kinds)
    write_students(root, seeds, **planted)
    return report_of(root)


def test_distances_are_those_of_the_metrics_and_their_differences(tmp_path):
    report = small(tmp_path, correct=0.3, incorrect=0.3)
    teacher = logits_of(answers(100, 0.85), 100)
    runs = report.runs_table.merge(report.runs[["run_key", "path"]].rename(columns={"path": "folder"}), on="run_key")
    from kdbench.report.predictions import logits_in

    def mean(name, chosen):
        return float(np.mean([metrics.DISTANCES[name](logits_in(folder), teacher) for folder in chosen.folder]))

    for row in report.functional.transfer.itertuples():
        students = runs[runs.method == "logit"]
        control = runs[(runs.method == "ce") & (runs.student == "resnet8")]
        assert row.value == pytest.approx(mean(row.metric, students))
        assert row.control_value == pytest.approx(mean(row.metric, control))
        assert row.transfer == pytest.approx(row.value - row.control_value)
        assert row.relative == pytest.approx(100 * row.transfer / row.control_value)
    assert report.functional.transfer.metric.tolist() == list(metrics.DISTANCES)


def test_a_copy_of_the_teacher_has_no_distance_and_full_agreement(tmp_path):
    write_teachers(tmp_path)
    teacher = answers(100, 0.85)
    write_controls(tmp_path, SEEDS, ("SIDDO",))
    for seed in SEEDS:
        write_run(
            tmp_path, seed=seed, teacher="resnet20", method="logit", teacher_seed=100, teacher_key=TEACHERS[100],
            logits=(logits_of(teacher, 100), LABELS), accuracy=float((teacher == LABELS).mean()),
        )  # fmt: skip
    functional = report_of(tmp_path).functional
    assert (functional.transfer.value == 0).all()
    row = functional.asymmetry.iloc[0]
    assert (row.correct, row.incorrect) == (row.teacher_right, row.teacher_wrong)
    assert (row.correct_gain, row.incorrect_gain, row.asymmetry) == pytest.approx((100, 100, 0))
    assert (functional.mistakes.shared_mistakes == 100).all()


@pytest.mark.parametrize(("right", "wrong"), [(20, 60), (90, 10), (0, 40), (50, 0)])
def test_planted_counts_are_recovered_with_size_and_sign(right, wrong, tmp_path):
    """Students are their own control, but for a number of the teacher's right and wrong answers that they copy."""
    write_teachers(tmp_path)
    teacher = answers(100, 0.85)
    for seed in SEEDS:
        own = answers((seed, 1), 0.6)
        copied = own.copy()
        for of, many in ((teacher == LABELS, right), (teacher != LABELS, wrong)):
            places = np.flatnonzero(of & (own != teacher))[:many]
            copied[places] = teacher[places]
        write(tmp_path, own, seed, init_seed=seed, data_seed=1000 + seed)
        write(tmp_path, copied, seed, teacher="resnet20", method="logit", teacher_seed=100, teacher_key=TEACHERS[100])
    (row,) = report_of(tmp_path).functional.asymmetry.itertuples()
    assert (row.correct_change, row.incorrect_change) == pytest.approx((right, wrong))
    base = [row.teacher_right - (row.correct - right), row.teacher_wrong - (row.incorrect - wrong)]
    gains = 100 * right / base[0], 100 * wrong / base[1]
    assert (row.correct_gain, row.incorrect_gain) == pytest.approx(gains)
    assert row.asymmetry == pytest.approx(gains[0] - gains[1])
    assert row.finding == ("negative" if gains[1] > gains[0] else "positive")
    assert row.asymmetry_low <= row.asymmetry <= row.asymmetry_high


def test_a_planted_asymmetry_is_in_the_words(tmp_path):
    (*_, sentence) = small(tmp_path, correct=0.1, incorrect=0.7).functional.sentences
    assert "wrong answers are taken over more than right ones in 1 of 1 conditions" in sentence


def test_without_transfer_nothing_is_found(tmp_path):
    functional = small(tmp_path, correct=0.0, incorrect=0.0).functional
    assert functional.transfer.significant.eq(False).all()
    assert functional.transfer.transfer.abs().max() < 0.05
    assert functional.asymmetry.iloc[0].finding == "undecided"
    assert functional.sentences[0].startswith("0 of 4 distances of students to their teacher are significantly smaller")


def test_every_control_stands_beside_the_condition_that_it_belongs_to(study):
    transfer = rows(study.functional.transfer, metric="js_divergence", student="resnet8")
    pooled = transfer[transfer.setting.str.contains("pooled") & (transfer.alpha == 0.5)]
    assert pooled.control.tolist() == [
        "SIDDO", "baseline", "DIDDO", "other teacher", "random_control kind=per_sample",
        "random_control kind=resampled",
    ]  # fmt: skip
    assert pooled.family.tolist() == ["primary", *["other control"] * 5]
    assert set(transfer.family) == {"primary", "other control", "one teacher"}
    assert rows(study.functional.transfer, student="resnet14").control.unique().tolist() == [
        "SIDDO",
        "baseline",
        "DIDDO",
    ]


def test_controls_of_each_kind_share_the_seeds_that_their_names_say(tmp_path):
    report = small(tmp_path, kinds=("baseline", "SIDDO", "DIDDO"), correct=0.4, incorrect=0.4)
    for own in report.functional.transfers:
        for pair, student in own.students.runs.items():
            control = own.controls.runs.get(pair)
            if own.control == "SIDDO":
                assert control.init_seed == student.init_seed
                assert control.data_seed != student.data_seed
            elif own.control == "baseline":
                assert (control.init_seed, control.data_seed) == (student.init_seed, student.data_seed)
        if own.control == "DIDDO":
            inits = {run.init_seed for run in own.students.runs.values()}
            assert not inits & {run.init_seed for run in own.controls.runs.values()}


def test_seed_controls_are_groups_of_their_own_and_no_baseline(tmp_path):
    report = small(tmp_path, kinds=("baseline", "SIDDO", "DIDDO"), correct=0.4, incorrect=0.4)
    of_student = [group for group in report.groups if group.shared.student == "resnet8"]
    assert [(group.seed_control, len(group.rows)) for group in of_student] == [
        ("", 6), ("SIDDO", 6), ("DIDDO", 6), ("", 6),
    ]  # fmt: skip
    (gain,) = report.gains
    assert gain.is_paired
    assert gain.baseline is of_student[0]
    assert "crossed" not in " ".join(report.remarks)


def test_the_own_teacher_is_told_from_another_seed_of_it(study):
    own = rows(study.functional.transfer, control="other teacher", family="other control", alpha=0.9)
    assert (own.transfer < 0).all()
    assert own.significant.all()


def test_a_pooled_row_is_the_mean_over_its_teachers(study):
    transfer = rows(study.functional.transfer, control="SIDDO", alpha=0.9, metric="activation_distance")
    single, pooled = rows(transfer, family="one teacher"), rows(transfer, family="primary")
    assert len(single) == 2
    assert pooled.transfer.tolist() == pytest.approx([single.transfer.mean()])
    assert pooled.n.tolist() == [6]  # seeds of students, not teachers
    assert single.p_adjusted.isna().all()
    assert single.p.notna().all()


def test_p_values_are_scipys_and_adjusted_over_one_control(study):
    for control, of_control in study.functional.transfer.groupby("control"):
        counted = of_control[of_control.family != "one teacher"]
        order = np.argsort(counted.p.to_numpy(), kind="stable")
        expected = np.minimum(np.maximum.accumulate(counted.p.to_numpy()[order] * np.arange(len(order), 0, -1)), 1)
        assert counted.p_adjusted.to_numpy()[order] == pytest.approx(expected), control
    own = next(own for own in study.functional.transfers if own.control == "SIDDO" and not own.is_pooled)
    p = stats.mannwhitneyu(own.values[:, 0], own.control_values[:, 0], alternative="less", method="exact").pvalue
    assert study.functional.transfer.iloc[0].p == pytest.approx(float(p))


def test_the_smallest_p_that_the_design_can_reach_stands_beside_each_p(study):
    primary = rows(study.functional.transfer, family="primary")
    assert (primary.p_smallest == 1 / math.comb(12, 6)).all()
    assert primary.p_smallest_adjusted.tolist() == pytest.approx([len(primary) / math.comb(12, 6)] * len(primary))
    assert (primary.test == "mann-whitney").all()


def test_ten_paired_seeds_have_the_signed_rank_test(tmp_path):
    transfer = small(tmp_path, range(10), correct=0.4, incorrect=0.4).functional.transfer
    assert (transfer.test == "signed-rank").all()
    assert transfer.p_smallest.tolist() == pytest.approx([2**-10] * 4)
    assert transfer.significant.all()


def test_a_design_that_cannot_reach_the_level_has_effects_without_a_verdict(tmp_path):
    functional = small(tmp_path, range(3), correct=0.8, incorrect=0.8).functional
    transfer = functional.transfer
    assert (transfer.transfer < 0).all()
    assert transfer.p.tolist() == pytest.approx([0.05] * 4)
    assert transfer.significant.isna().all()
    assert transfer.remarks.str.contains("cannot reach 0.05 after correction").all()
    assert transfer.transfer_low.isna().all()
    assert "an effect without a verdict" in functional.sentences[0]


def test_one_seed_is_an_effect_without_a_p(tmp_path):
    functional = small(tmp_path, range(1), correct=0.8, incorrect=0.8).functional
    assert functional.transfer.transfer.notna().all()
    assert functional.transfer.p.isna().all()
    assert functional.transfer.remarks.str.startswith("one seed only").all()
    assert "There is no test: one seed only" in functional.sentences[0]


def test_without_any_control_there_is_no_transfer_and_a_remark(tmp_path):
    write_teachers(tmp_path)
    write_students(tmp_path, SEEDS)
    report = report_of(tmp_path)
    assert not len(report.functional.transfer)
    assert any("no transfer can be computed" in line and "experiment=siddo" in line for line in report.remarks)


def test_students_without_a_control_of_their_own_are_counted_out(tmp_path):
    write_teachers(tmp_path)
    write_controls(tmp_path, range(5), ("SIDDO",))
    write_students(tmp_path, range(6), correct=0.4, incorrect=0.4)
    transfer = report_of(tmp_path).functional.transfer
    assert transfer.n.tolist() == [5] * 4
    assert transfer.remarks.str.contains("1 of 6 students have no such control").all()


def test_crossed_seeds_are_no_samples(tmp_path):
    write_teachers(tmp_path)
    for init in range(3):
        for data in range(3):
            for method, others in (("ce", {}), ("logit", {"teacher": "resnet20", "teacher_key": TEACHERS[100]})):
                own = answers((init, data, len(others)), 0.6)
                write(tmp_path, own, 0, method=method, init_seed=init, data_seed=data, teacher_seed=100, **others)
    transfer = report_of(tmp_path).functional.transfer
    assert len(transfer)
    assert transfer.p.isna().all()
    assert transfer.remarks.str.contains("no independent samples").all()


def test_a_student_with_the_first_weights_of_its_teacher_is_remarked(tmp_path):
    write(tmp_path, answers(1, 0.85), 3, student="resnet8", run_key="same", recipe={"epochs": 200})
    write_controls(tmp_path, SEEDS, ("SIDDO",))
    for seed in SEEDS:
        write(
            tmp_path, answers((seed, 5), 0.6), seed, teacher="resnet8", method="logit", teacher_seed=3,
            teacher_key="same",
        )  # fmt: skip
    (remark,) = [line for line in report_of(tmp_path).remarks if "first weights of their teacher" in line]
    assert "(seed 3)" in remark


def test_logits_of_other_images_are_compared_with_none(tmp_path):
    write_teachers(tmp_path)
    write_controls(tmp_path, SEEDS, ("SIDDO",))
    write_students(tmp_path, range(5))
    other = np.roll(LABELS, 1)
    write_run(
        tmp_path, seed=5, teacher="resnet20", method="logit", teacher_seed=100, teacher_key=TEACHERS[100],
        method_params={"alpha": 0.5, "temperature": 4.0}, logits=(logits_of(answers(1, 0.6)), other), accuracy=0.6,
        class_names=[f"kind {c}" for c in range(CLASSES)],
    )  # fmt: skip
    report = report_of(tmp_path)
    assert report.functional.transfer.n.tolist() == [5] * 4
    assert any("other labels" in line for line in report.remarks)
    assert len(report.functional.matrix.models) == 1 + 6 + 5


def test_random_controls_of_another_weight_stand_beside_no_condition(tmp_path):
    write_teachers(tmp_path)
    write_students(tmp_path, SEEDS, alpha=0.5)
    write_random_control(tmp_path, SEEDS, 0.5)
    write_random_control(tmp_path, SEEDS, 0.9)
    assert set(report_of(tmp_path).functional.transfer.control) == {"random_control"}


def test_shared_mistakes_are_counted_by_class_with_names(tmp_path):
    report = small(tmp_path, correct=0.2, incorrect=0.6)
    table = report.functional.mistakes
    assert table.class_name.tolist() == [f"kind {c}" for c in range(CLASSES)]
    teacher = answers(100, 0.85)
    wrong = [int(((teacher != LABELS) & (c == LABELS)).sum()) for c in range(CLASSES)]
    assert table.teacher_mistakes.tolist() == wrong
    assert (table.mistakes_change > 20).all()
    total = sum(table.shared_mistakes * table.teacher_mistakes) / 100
    assert total == pytest.approx(report.functional.asymmetry.iloc[0].incorrect)


def test_the_matrix_holds_the_agreement_of_all_models(study, tmp_path):
    matrix = study.functional.matrix
    assert matrix.values.shape == (len(study.runs), len(study.runs))
    assert np.array_equal(matrix.values, matrix.values.T)
    assert (np.diag(matrix.values) == 1).all()
    table = matrix.table
    assert table.run_key.tolist() == list(table.columns[2:])


def test_a_teacher_beside_the_report_is_in_the_matrix(tmp_path):
    write_teachers(tmp_path)
    students = write_controls(tmp_path, range(2), ("SIDDO",)) and write_students(tmp_path, range(2))
    folders = [folder for folder in tmp_path.iterdir() if "teacher100" not in folder.name]
    matrix = build_report(folders).functional.matrix
    assert [model.is_teacher for model in matrix.models] == [False] * 4 + [True]
    assert matrix.models[-1].name == "teacher resnet20, seed 100"
    assert matrix.values[-1, 2] == pytest.approx((students[0] == answers(100, 0.85)).mean())


def test_tables_have_described_columns(study):
    for name in ("transfer", "asymmetry", "mistakes"):
        page = page_table(name, tables_of(study)[name])
        assert page.rows
        assert all(column.meaning for _, column in page.columns)


def test_a_report_without_logits_has_no_functional_part(tmp_path):
    for seed in SEEDS:
        write_run(tmp_path, seed=seed)
        write_run(tmp_path, seed=seed, teacher="resnet20", method="logit")
    functional = report_of(tmp_path).functional
    assert functional.matrix is None
    assert functional.sentences == []
    assert all(
        isinstance(table, pd.DataFrame) and not len(table) for table in (functional.transfer, functional.mistakes)
    )


def test_equal_runs_give_equal_numbers(tmp_path):
    first, second = (small(tmp_path / name, correct=0.3, incorrect=0.5).functional for name in ("a", "b"))
    pd.testing.assert_frame_equal(first.transfer, second.transfer)
    pd.testing.assert_frame_equal(first.asymmetry, second.asymmetry)


def test_open_classes_of_half_precision_are_left_out(tmp_path):
    write_teachers(tmp_path)
    write_controls(tmp_path, SEEDS, ("SIDDO",))
    tied = np.zeros((IMAGES, CLASSES), dtype=np.float16)
    for seed in SEEDS:
        write_run(
            tmp_path, seed=seed, teacher="resnet20", method="logit", teacher_seed=100, teacher_key=TEACHERS[100],
            logits=(tied, LABELS), accuracy=0.001,
        )  # fmt: skip
    (row,) = report_of(tmp_path).functional.asymmetry.itertuples()
    assert (row.teacher_right, row.teacher_wrong, row.correct) == (0, 0, 0)
    assert math.isnan(row.asymmetry)


def test_students_farther_than_their_control_are_said_to_be(tmp_path):
    write_teachers(tmp_path)
    teacher = answers(100, 0.85)
    for seed in SEEDS:
        write(tmp_path, copied(answers((seed, 1), 0.6), teacher, seed, 0.8, 0.8), seed, data_seed=1000 + seed)
    write_students(tmp_path, SEEDS, correct=0, incorrect=0)
    sentence = report_of(tmp_path).functional.sentences[0]
    assert sentence.startswith(
        "0 of 4 distances of students to their teacher are significantly smaller than those of S"
    )
    assert "In 0 of 4 distances students are closer" in sentence


def test_a_fixed_initialisation_stays_one_baseline(tmp_path):
    write_teachers(tmp_path)
    for data in SEEDS:
        write(tmp_path, answers((data, 1), 0.6), data, init_seed=0, data_seed=data)
        write(
            tmp_path, answers((data, 2), 0.6), data, teacher="resnet20", method="logit", teacher_seed=100,
            teacher_key=TEACHERS[100], init_seed=0, data_seed=data,
        )  # fmt: skip
    report = report_of(tmp_path)
    (gain,) = report.gains
    assert gain.is_paired
    assert len(gain.base_values) == 6
    assert {group.seed_control for group in report.groups} == {""}


def test_further_baseline_seeds_are_no_controls_of_their_own(tmp_path):
    write_teachers(tmp_path)
    write_controls(tmp_path, range(8), ("baseline",))
    write_students(tmp_path, range(3))
    (gain,) = report_of(tmp_path).gains
    assert len(gain.base_values) == 8


def test_the_teacher_and_its_own_teacher_are_no_controls(tmp_path):
    first = answers(1, 0.85)
    write(tmp_path, first, 3, student="resnet8", run_key="first")
    second = copied(answers(2, 0.7), first, 0, 0.5, 0.5)
    write(
        tmp_path, second, 200, student="resnet8", run_key="second", teacher="resnet8", method="logit", teacher_seed=3,
        teacher_key="first",
    )  # fmt: skip
    for seed in SEEDS:
        if seed != 3:
            write(tmp_path, answers((seed, 8), 0.6), seed)
        write(
            tmp_path, copied(answers((seed, 5), 0.6), second, seed, 0.3, 0.3), seed, teacher="resnet8", method="logit",
            teacher_seed=200, teacher_key="second", method_params={"alpha": 0.3},
        )  # fmt: skip
    report = report_of(tmp_path)
    own = next(own for own in report.functional.transfers if own.group.shared.teacher_key == "second")
    assert own.control == "baseline"
    assert [init for init, _ in own.seeds] == [0, 1, 2, 4, 5]
    assert "1 of 6 students have no such control" in own.remark


def test_a_control_run_counts_once(tmp_path):
    write_teachers(tmp_path)
    write(tmp_path, answers(7, 0.6), 0, init_seed=0, data_seed=1000)
    for data in SEEDS:
        write(
            tmp_path, answers((data, 2), 0.6), data, teacher="resnet20", method="logit", teacher_seed=100,
            teacher_key=TEACHERS[100], init_seed=0, data_seed=data,
        )  # fmt: skip
    transfer = report_of(tmp_path).functional.transfer
    assert transfer.p.isna().all()
    assert transfer.transfer_low.isna().all()
    assert transfer.remarks.str.contains("no independent samples").all()


def test_a_teacher_with_few_students_does_not_take_the_verdict_away(tmp_path):
    write_teachers(tmp_path, (100, 101))
    write_controls(tmp_path, range(6), ("SIDDO",))
    write_students(tmp_path, range(6), 100, correct=0.5, incorrect=0.5)
    write_students(tmp_path, range(1), 101, correct=0.5, incorrect=0.5)
    transfer = rows(report_of(tmp_path).functional.transfer, control="SIDDO", metric="js_divergence")
    assert transfer.family.tolist() == ["primary", "primary"]  # no table of two teachers and two seeds
    assert transfer.n.tolist() == [6, 1]
    assert transfer.p_adjusted.notna().tolist() == [True, False]


def test_a_pooled_row_is_over_the_seeds_that_all_teachers_have(tmp_path):
    write_teachers(tmp_path, (100, 101))
    write_controls(tmp_path, range(6), ("SIDDO",))
    write_students(tmp_path, range(6), 100, correct=0.5, incorrect=0.5)
    write_students(tmp_path, range(4), 101, correct=0.5, incorrect=0.5)
    (pooled,) = [own for own in report_of(tmp_path).functional.transfers if own.is_pooled and own.control == "SIDDO"]
    assert [init for init, _ in pooled.seeds] == [0, 1, 2, 3]
    assert "over seeds 0, 1, 2, 3 alone" in pooled.remark


def test_rows_without_an_interval_have_no_finding(tmp_path):
    write_teachers(tmp_path)
    write_controls(tmp_path, SEEDS, ("SIDDO",))
    write_students(tmp_path, SEEDS, correct=0.1, incorrect=0.7, alpha=0.5)
    write_students(tmp_path, range(3), correct=0.1, incorrect=0.7, alpha=0.9)
    report = report_of(tmp_path)
    assert rows(report.functional.asymmetry, control="SIDDO").finding.notna().tolist() == [True, False]
    assert "in 1 of 1 conditions" in report.functional.sentences[-1]
    with style():
        drawing = draw_figure("asymmetry", Sheet(report, WIDE, choose_looks(report)))
    assert len(drawing.marks) == 2
    assert not [mark.text for mark in drawing.marks.values() if "nan" in mark.text]


def test_equal_values_have_a_p_of_one(tmp_path):
    write_teachers(tmp_path)
    for seed in SEEDS:
        own = answers((seed, 1), 0.6)
        write(tmp_path, own, seed)
        write(tmp_path, own, seed, teacher="resnet20", method="logit", teacher_seed=100, teacher_key=TEACHERS[100])
    transfer = report_of(tmp_path).functional.transfer
    assert (transfer.transfer == 0).all()
    assert transfer.p_adjusted.tolist() == [1] * 4


def test_open_classes_of_one_side_change_no_count(tmp_path):
    """Rounded logits leave a hundred images of the students open, which then agree as often as the others."""
    write_teachers(tmp_path)
    for seed in SEEDS:
        own = answers((seed, 1), 0.6)
        values = logits_of(own, seed).astype(np.float16)
        values[:100] = 0
        write(tmp_path, own, seed, data_seed=1000 + seed)
        write_run(
            tmp_path, seed=seed, teacher="resnet20", method="logit", teacher_seed=100, teacher_key=TEACHERS[100],
            logits=(values, LABELS), accuracy=0.6,
        )  # fmt: skip
    (row,) = report_of(tmp_path).functional.asymmetry.itertuples()
    assert row.teacher_right < 800
    assert abs(row.correct_change) < 15  # not the hundred images fewer


def test_models_of_other_data_are_in_no_common_matrix(tmp_path):
    write(tmp_path, answers(1, 0.6), 0)
    write(tmp_path, answers(2, 0.6), 1)
    write(tmp_path, answers(3, 0.6), 2, dataset="other")
    matrix = report_of(tmp_path, allow_mixed=True).functional.matrix
    assert [model.seed for model in matrix.models] == [0, 1]


def test_the_primary_control_of_several_teachers_is_one_that_all_have(tmp_path):
    write_teachers(tmp_path, (100, 101))
    write_controls(tmp_path, SEEDS, ("baseline",))
    write_controls(tmp_path, range(3), ("SIDDO",))
    write_students(tmp_path, SEEDS, 100)
    write_students(tmp_path, range(3, 6), 101)  # none of these has a SIDDO control
    transfer = rows(report_of(tmp_path).functional.transfer, metric="js_divergence")
    assert set(rows(transfer, family="primary").control) == {"baseline"}


def test_students_of_the_next_teacher_seed_are_the_other_teachers_control(study):
    own = next(o for o in study.functional.transfers if o.control == "other teacher" and o.teacher_seed == 100)
    assert {run.teacher_seed for run in own.controls.runs.values()} == {101}
    back = next(o for o in study.functional.transfers if o.control == "other teacher" and o.teacher_seed == 101)
    assert {run.teacher_seed for run in back.controls.runs.values()} == {100}


def test_every_row_and_seed_of_the_figures_is_linked(study):
    with style():
        for name in ("transfer", "asymmetry", "mistakes", "scaling"):
            drawing = draw_figure(name, Sheet(study, WIDE, choose_looks(study)))
            texts = [mark.text for mark in drawing.marks.values()]
            assert texts
            assert not [text for text in texts if "nan" in text.split()]
    primary = study.functional.transfer.family == "primary"
    with style():
        drawing = draw_figure("transfer", Sheet(study, WIDE, choose_looks(study)))
    assert sum(len(marks) for marks in drawing.points.values()) == 6 * int(primary.sum())


def test_lines_of_the_scaling_figure_differ_in_one_quantity(study):
    with style():
        drawing = draw_figure("scaling", Sheet(study, WIDE, choose_looks(study)))
    legends = [
        [text.get_text().replace("\n", " ") for text in axes.get_legend().get_texts()] for axes in drawing.figure.axes
    ]
    assert [len(lines) for lines in legends] == [1, 1, 2]  # size, temperature, alpha of two teachers
    assert "seed 100" in legends[2][0]
    assert "seed 101" in legends[2][1]


def test_a_baseline_with_fewer_seeds_leaves_the_controls_of_the_others(tmp_path):
    write_teachers(tmp_path)
    write_controls(tmp_path, range(2), ("baseline",))
    write_controls(tmp_path, SEEDS, ("SIDDO", "DIDDO"))
    write_students(tmp_path, SEEDS)
    report = report_of(tmp_path)
    sizes = {own.control: (len(own.seeds), len(own.control_seeds)) for own in report.functional.transfers}
    assert sizes == {"SIDDO": (6, 6), "baseline": (2, 2), "DIDDO": (6, 6)}


def test_logits_that_are_missing_on_both_sides_leave_the_pairs_that_are_there(tmp_path):
    write_teachers(tmp_path, (100, 101))
    write_controls(tmp_path, SEEDS, ("SIDDO",))
    for teacher_seed in (100, 101):
        write_students(tmp_path, SEEDS, teacher_seed)
    for folder in tmp_path.iterdir():
        is_student = folder.name.startswith("logit_seed")
        seed = int(folder.name.split("seed")[1].split("_")[0])
        if (is_student and seed < 3) or (not is_student and "teacher" not in folder.name and seed >= 3):
            (folder / "logits.safetensors").unlink()
    transfer = report_of(tmp_path).functional.transfer
    assert "SIDDO" not in set(transfer.control)  # no student has its own control left


def test_old_runs_without_both_seeds_have_their_baseline_and_no_other_control(tmp_path):
    write_teachers(tmp_path)
    for seed in SEEDS:
        write(tmp_path, answers((seed, 1), 0.6), seed, init_seed=None, data_seed=None)
        write(
            tmp_path, answers((seed, 2), 0.6), seed, teacher="resnet20", method="logit", teacher_seed=100,
            teacher_key=TEACHERS[100], init_seed=None, data_seed=None,
        )  # fmt: skip
    assert set(report_of(tmp_path).functional.transfer.control) == {"baseline"}


def test_of_tables_of_equal_size_that_with_more_seeds_is_pooled(tmp_path):
    TEACHERS[102] = "teacher102"
    write_teachers(tmp_path, (100, 101, 102))
    write_controls(tmp_path, SEEDS, ("SIDDO",))
    for teacher_seed, many in ((100, 6), (101, 6), (102, 4)):
        write_students(tmp_path, range(many), teacher_seed)
    (pooled,) = [own for own in report_of(tmp_path).functional.transfers if own.is_pooled and own.control == "SIDDO"]
    assert len(pooled.seeds) == 6
    assert "without teacher_seed=102" in pooled.remark


def test_conditions_without_a_control_in_common_keep_their_own_primary_one(tmp_path):
    write_teachers(tmp_path, (100, 101))
    write_controls(tmp_path, range(3), ("SIDDO",))
    write_controls(tmp_path, range(10, 13), ("baseline",))
    write_students(tmp_path, range(3), 100)
    write_students(tmp_path, range(10, 13), 101)
    primary = rows(report_of(tmp_path).functional.transfer, family="primary", metric="js_divergence")
    assert primary.teacher_seed.tolist() == [100, 101]


def test_a_pooled_row_counts_the_students_without_a_control(tmp_path):
    write_teachers(tmp_path, (100, 101))
    write_controls(tmp_path, range(4), ("SIDDO",))
    for teacher_seed in (100, 101):
        write_students(tmp_path, SEEDS, teacher_seed)
    (pooled,) = [own for own in report_of(tmp_path).functional.transfers if own.is_pooled and own.control == "SIDDO"]
    assert len(pooled.seeds) == 4
    assert "2 of 6 students have no such control" in pooled.remark


def test_a_pooled_row_has_no_teachers_of_another_family(tmp_path):
    TEACHERS[102] = "teacher102"
    write_teachers(tmp_path, (100, 101, 102))
    write_controls(tmp_path, (0, 1, 2, 6, 7, 8), ("SIDDO",))
    write_controls(tmp_path, range(6), ("baseline",))
    write_students(tmp_path, range(6), 100)  # its primary control is SIDDO
    write_students(tmp_path, range(3, 6), 101)  # has the baseline alone
    write_students(tmp_path, range(6, 9), 102)  # has SIDDO alone
    transfer = rows(report_of(tmp_path).functional.transfer, control="baseline", metric="js_divergence")
    assert dict(zip(transfer.teacher_seed, transfer.family, strict=True)) == {100: "other control", 101: "primary"}
