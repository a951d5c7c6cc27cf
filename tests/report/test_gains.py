"""Groups, the baseline of each, and the two tables of tests."""

import math

import numpy as np
import pytest
from scipy import stats

from kdbench.errors import ConfigError
from kdbench.report import statistics as st
from tests.report.conftest import RECIPE, report_of, write_group, write_run, write_selected

GAINS = (
    "student teacher method setting n n_base mean std base_mean delta ci_low ci_high p_welch p_paired p_holm "
    "significant mde80 seeds_for_0p1 seeds_for_0p2 p_equivalence equivalent seeds_for_equivalence"
).split()
INTERACTIONS = (
    "method teacher student_a student_b gain_a gain_b difference se df ci_low ci_high p p_holm mde80"
).split()  # fmt: skip
"""As the issue lists them."""
BY_LOGIT = {"teacher": "resnet20", "method": "logit"}
BASELINE, DISTILLED = (90.0, 90.2, 89.9), (90.5, 90.4, 90.6)


def exactly(mean, std, turn=0):
    """Five numbers with just this mean and this sample standard deviation, in an order that `turn` decides."""
    z = np.roll([-1.3, -0.4, 0.1, 0.7, 0.9], turn)
    z = (z - z.mean()) / z.std(ddof=1)
    return (mean + std * z).tolist()


def the_row(table, **values):
    rows = table
    for name, value in values.items():
        rows = rows[rows[name] == value]
    assert len(rows) == 1, f"{len(rows)} rows with {values}"
    return rows.iloc[0]


def names(report):
    return [group.name for group in report.groups]


def test_runs_that_differ_in_seeds_alone_are_one_group(tmp_path):
    write_group(tmp_path, BASELINE)
    write_run(tmp_path, seed=7, init_seed=8, data_seed=9, accuracy=0.9)
    report = report_of(tmp_path)
    assert [len(group.runs) for group in report.groups] == [4]
    assert report.groups[0].seeds == [(0, 0), (1, 1), (2, 2), (8, 9)]


@pytest.mark.parametrize(
    "other",
    [
        {"student": "resnet14"},
        {"method": "feature"},
        {"teacher": "resnet32"},
        {"method_params": {"alpha": 0.5}},
        {"recipe": {"lr": 0.05}},
        {"epochs": 30},
        {"precision": "bf16"},
        {"stem": "imagenet"},
        {"teacher_seed": 1},
        {"teacher_key": "another teacher"},
        {"group_key": "what no other key says"},
    ],
    ids=lambda other: next(iter(other)),
)
def test_anything_but_seeds_makes_a_group_of_its_own(tmp_path, other):
    write_group(tmp_path, DISTILLED, **BY_LOGIT)
    write_group(tmp_path, DISTILLED, **BY_LOGIT | other)
    report = report_of(tmp_path)
    assert [len(group.runs) for group in report.groups] == [3, 3]
    assert len(set(names(report))) == 2


def test_a_group_reports_the_best_and_the_last_epoch(tmp_path):
    write_group(tmp_path, BASELINE)
    row = report_of(tmp_path).groups_table.iloc[0]
    assert row["mean"] == pytest.approx(np.mean(BASELINE))
    assert row["mean_last"] == pytest.approx(np.mean(BASELINE) - 0.1)
    assert [row["std"], row["std_last"]] == pytest.approx([np.std(BASELINE, ddof=1)] * 2)
    assert (row["n"], row["params"]) == (3, 78_042)


def test_columns_start_with_the_lists_of_the_issue(tmp_path, kdbench_report):
    for student in ("resnet8", "resnet14"):
        write_group(tmp_path / "runs", BASELINE, student=student)
        write_group(tmp_path / "runs", DISTILLED, student=student, **BY_LOGIT)
    result = kdbench_report(tmp_path / "runs")
    assert result.table("gains").columns[: len(GAINS)].tolist() == GAINS
    assert result.table("interactions").columns[: len(INTERACTIONS)].tolist() == INTERACTIONS
    assert len(result.table("gains")) == 2
    assert len(result.table("interactions")) == 1
    assert len(result.table("runs")) == 12
    assert len(result.table("groups")) == 4


def test_a_gain_is_over_the_same_student_equal_in_all_but_method_and_teacher(tmp_path):
    write_group(tmp_path, BASELINE)
    write_group(tmp_path, (70.0, 71.0, 72.0), recipe={"lr": 0.01})
    write_group(tmp_path, (60.0, 61.0, 62.0), student="resnet14")
    write_group(tmp_path, (50.0, 51.0, 52.0), precision="bf16")
    write_group(tmp_path, DISTILLED, **BY_LOGIT)
    row = the_row(report_of(tmp_path).gains_table)
    test = stats.ttest_ind(DISTILLED, BASELINE, equal_var=False)
    interval = test.confidence_interval(0.95)
    assert row["base_mean"] == pytest.approx(np.mean(BASELINE))
    assert row["mean"] == pytest.approx(np.mean(DISTILLED))
    assert row["delta"] == pytest.approx(np.mean(DISTILLED) - np.mean(BASELINE))
    assert row["p_welch"] == pytest.approx(test.pvalue)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((interval.low, interval.high))
    assert (row["n"], row["n_base"]) == (3, 3)
    assert "lr" in row["base_setting"]


def test_clipping_of_projections_does_not_matter_for_the_baseline(tmp_path):
    write_group(tmp_path, BASELINE)
    write_group(tmp_path, DISTILLED, recipe={"clip_projections": False}, **BY_LOGIT)
    row = the_row(report_of(tmp_path).gains_table)
    assert row["delta"] == pytest.approx(np.mean(DISTILLED) - np.mean(BASELINE))


def test_of_two_baselines_the_one_with_the_same_clipping_is_taken(tmp_path):
    write_group(tmp_path, BASELINE)
    write_group(tmp_path, (80.0, 80.1, 80.2), recipe={"clip_projections": False})
    write_group(tmp_path, DISTILLED, recipe={"clip_projections": False}, **BY_LOGIT)
    write_group(tmp_path, DISTILLED, **BY_LOGIT)
    gains = report_of(tmp_path).gains_table
    assert sorted(gains["base_mean"]) == pytest.approx([80.1, np.mean(BASELINE)])
    assert gains["setting"].tolist() != ["", ""]


@pytest.mark.parametrize("seeds", [(3, 4, 5), (1, 2, 3)])
def test_seeds_need_not_match_for_a_gain(tmp_path, seeds):
    # As kdbench writes them: one baseline_key for each seed, shared by the runs of that seed.
    for base, distilled, seed, other in zip(BASELINE, DISTILLED, range(3), seeds, strict=True):
        write_run(tmp_path, accuracy=base / 100, seed=seed, baseline_key=f"b{seed}", group_key="baseline")
        write_run(
            tmp_path, accuracy=distilled / 100, seed=other, baseline_key=f"b{other}", group_key="distilled", **BY_LOGIT
        )
    row = the_row(report_of(tmp_path).gains_table)
    assert row["delta"] == pytest.approx(np.mean(DISTILLED) - np.mean(BASELINE))
    assert row["p_welch"] == pytest.approx(stats.ttest_ind(DISTILLED, BASELINE, equal_var=False).pvalue)
    assert math.isnan(row["p_paired"])


def test_the_paired_test_needs_matching_seeds(tmp_path):
    write_group(tmp_path / "same", BASELINE, seeds=(2, 0, 1))
    write_group(tmp_path / "same", DISTILLED, seeds=(0, 1, 2), **BY_LOGIT)
    write_group(tmp_path / "more", BASELINE)
    write_group(tmp_path / "more", (*DISTILLED, 90.7), **BY_LOGIT)
    # Sorted by seed, the values of the baseline are those of seeds 0, 1, 2.
    expected = stats.ttest_rel(DISTILLED, (BASELINE[1], BASELINE[2], BASELINE[0])).pvalue
    assert the_row(report_of(tmp_path / "same").gains_table)["p_paired"] == pytest.approx(expected)
    assert math.isnan(the_row(report_of(tmp_path / "more").gains_table)["p_paired"])


def test_equal_initial_weights_with_other_data_order_are_no_match(tmp_path):
    for seed, (base, distilled) in enumerate(zip(BASELINE, DISTILLED, strict=True)):
        write_run(tmp_path, accuracy=base / 100, seed=seed)
        write_run(tmp_path, accuracy=distilled / 100, seed=seed, data_seed=seed + 10, **BY_LOGIT)
    row = the_row(report_of(tmp_path).gains_table)
    assert not math.isnan(row["p_welch"])
    assert math.isnan(row["p_paired"])


def test_settings_distinguish_groups_of_one_method_and_teacher(tmp_path):
    write_group(tmp_path, BASELINE)
    for alpha in (0.3, 0.5):
        write_group(tmp_path, DISTILLED, method_params={"alpha": alpha, "temperature": 4}, **BY_LOGIT)
    write_group(tmp_path, DISTILLED, teacher="resnet20", method="feature", method_params={"beta": 1})
    gains = report_of(tmp_path).gains_table
    assert gains[gains["method"] == "logit"]["setting"].tolist() == ["alpha=0.3", "alpha=0.5"]
    assert the_row(gains, method="feature")["setting"] == ""


def test_groups_that_the_summary_cannot_tell_apart_have_names_of_their_own(tmp_path):
    write_group(tmp_path, DISTILLED, group_key="a", **BY_LOGIT)
    write_group(tmp_path, DISTILLED, group_key="b", **BY_LOGIT)
    settings = [group.setting for group in report_of(tmp_path).groups]
    assert len(set(settings)) == 2
    assert all(settings)


def test_groups_of_one_teacher_are_not_pooled(tmp_path):
    write_group(tmp_path, DISTILLED, group_key="a", **BY_LOGIT)
    write_group(tmp_path, DISTILLED, group_key="b", **BY_LOGIT)
    assert report_of(tmp_path).gains_table["teacher_seed"].tolist() == [0, 0]


def test_teachers_of_one_seed_that_were_trained_differently_are_not_pooled(tmp_path):
    # A pooled row is over teachers that differ in their seed only.
    write_group(tmp_path, BASELINE)
    for key in ("long", "short"):
        write_group(tmp_path, DISTILLED, teacher_key=key, **BY_LOGIT)
    assert report_of(tmp_path).gains_table["teacher_seed"].tolist() == [0, 0]


def several(root, gains=(0.1, 0.5, 0.9)):
    """Two students of three methods, with gains that differ."""
    for place, student in enumerate(("resnet8", "resnet14")):
        write_group(root, exactly(90, 0.2, place), student=student)
        for turn, (method, gain) in enumerate(zip(("logit", "feature", "other"), gains, strict=True)):
            values = exactly(90 + gain * (1 + 2 * place), 0.2, turn + place)
            write_group(root, values, student=student, teacher="resnet20", method=method)


def test_gains_and_interactions_are_holm_families_of_their_own(tmp_path):
    several(tmp_path)
    report = report_of(tmp_path)
    for table, raw in ((report.gains_table, "p_welch"), (report.interactions_table, "p")):
        ps = table[raw].to_numpy(dtype=float)
        order, expected, largest = np.argsort(ps), np.empty(len(ps)), 0.0
        for rank, place in enumerate(order):
            largest = max(largest, min(1.0, (len(ps) - rank) * ps[place]))
            expected[place] = largest
        assert table["p_holm"].tolist() == pytest.approx(expected.tolist())
    assert len(report.gains_table) == 6
    assert len(report.interactions_table) == 3


def test_significant_is_holm_below_0p05_and_not_welch(tmp_path):
    several(tmp_path)
    gains = report_of(tmp_path).gains_table
    assert gains["significant"].tolist() == (gains["p_holm"] < 0.05).tolist()
    assert 0 < gains["significant"].sum() < len(gains)


def test_the_deviation_is_pooled_over_all_groups_of_two_and_more(tmp_path):
    write_group(tmp_path, exactly(90, 0.3))
    write_group(tmp_path, exactly(91, 0.1), **BY_LOGIT)
    write_run(tmp_path, teacher="resnet20", method="feature", accuracy=0.5)
    report = report_of(tmp_path)
    assert report.std == pytest.approx(math.sqrt((0.3**2 + 0.1**2) / 2))
    row = the_row(report.gains_table, method="logit")
    assert row["mde80"] == pytest.approx(st.smallest_detectable(report.std, (5, 5)))
    for size, column in ((0.1, "seeds_for_0p1"), (0.2, "seeds_for_0p2")):
        # n grows with the square of std / gain: 2 (1.96 + 0.84)^2 of it, and about one for the t distribution.
        normal = 2 * ((stats.norm.ppf(0.975) + stats.norm.ppf(0.8)) * report.std / size) ** 2
        assert normal < row[column] < normal + 2.5
    assert row["seeds_for_equivalence"] == st.seeds_for_equivalence(0.1, report.std)


def test_equivalence_is_found_where_it_is_and_by_the_margin_given(tmp_path):
    write_group(tmp_path, exactly(90, 0.05))
    write_group(tmp_path, exactly(90.02, 0.05, 2), **BY_LOGIT)
    write_group(tmp_path, exactly(91, 0.05, 1), teacher="resnet20", method="feature")
    wide, narrow = report_of(tmp_path, margin=0.15).gains_table, report_of(tmp_path, margin=0.03).gains_table
    assert the_row(wide, method="logit")["equivalent"]
    assert not the_row(wide, method="feature")["equivalent"]
    assert not the_row(narrow, method="logit")["equivalent"]
    test = stats.ttest_ind_from_stats(90.02, 0.05, 5, 90, 0.05, 5, equal_var=False)
    se, df = 0.05 * math.sqrt(2 / 5), 8
    assert test.statistic == pytest.approx(0.02 / se)
    assert the_row(wide, method="logit")["p_equivalence"] == pytest.approx(stats.t.cdf((0.02 - 0.15) / se, df))


def test_tables_show_the_size_with_which_a_run_predicts_and_gains_compare_students(tmp_path):
    sizes = {"num_params": 1000, "macs": 2000}
    write_group(tmp_path, exactly(90, 0.1), **sizes)
    write_group(tmp_path, exactly(91, 0.1), **BY_LOGIT, **sizes, inference_params=1500, inference_macs=2500)
    report = report_of(tmp_path)
    for table in (report.groups_table, report.runs_table):
        assert table.groupby("method")[["params", "macs"]].first().values.tolist() == [[1000, 2000], [1500, 2500]]
    assert the_row(report.gains_table)["delta"] == pytest.approx(1)


def test_an_interaction_is_the_larger_students_gain_minus_the_smaller_ones(tmp_path):
    # Named so that neither the alphabet nor the order of writing gives the larger one.
    arms = {}
    for student, size, gain, turn in (("a_small", 10, 0.2, 0), ("b_large", 1000, 0.7, 1)):
        arms[student] = exactly(90 + gain, 0.1, turn), exactly(90, 0.2 + 0.1 * turn, turn + 2)
        write_group(tmp_path, arms[student][0], student=student, num_params=size, **BY_LOGIT)
        write_group(tmp_path, arms[student][1], student=student, num_params=size)
    row = the_row(report_of(tmp_path).interactions_table)
    assert (row["student_a"], row["student_b"]) == ("b_large", "a_small")
    assert (row["gain_a"], row["gain_b"], row["difference"]) == pytest.approx((0.7, 0.2, 0.5))
    parts = [sd**2 / 5 for sd in (0.1, 0.3, 0.1, 0.2)]
    df, se = sum(parts) ** 2 / sum(part**2 / 4 for part in parts), math.sqrt(sum(parts))
    assert (row["se"], row["df"]) == pytest.approx((se, df))
    assert row["p"] == pytest.approx(2 * stats.t.sf(0.5 / se, df))
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(stats.t.interval(0.95, df, loc=0.5, scale=se))
    assert row["mde80"] == pytest.approx(st.smallest_detectable(report_of(tmp_path).std, (5, 5, 5, 5)))


def test_three_students_make_three_pairs(tmp_path):
    for turn, student in enumerate(("resnet8", "resnet14", "resnet18")):
        write_group(tmp_path, exactly(90, 0.2, turn), student=student)
        write_group(tmp_path, exactly(90.5, 0.2, turn + 1), student=student, **BY_LOGIT)
    table = report_of(tmp_path).interactions_table
    pairs = set(zip(table["student_a"], table["student_b"], strict=True))
    assert pairs == {("resnet18", "resnet14"), ("resnet18", "resnet8"), ("resnet14", "resnet8")}


def test_students_of_different_teachers_or_methods_do_not_interact(tmp_path):
    for student, teacher, method in (("resnet8", "resnet20", "logit"), ("resnet14", "resnet32", "logit")):
        write_group(tmp_path, BASELINE, student=student)
        write_group(tmp_path, DISTILLED, student=student, teacher=teacher, method=method)
    write_group(tmp_path, DISTILLED, student="resnet14", teacher="resnet20", method="feature")
    assert report_of(tmp_path).interactions_table.empty


def test_several_settings_of_one_student_pair_by_equal_settings_or_are_said(tmp_path):
    for student in ("resnet8", "resnet14"):
        write_group(tmp_path, BASELINE, student=student)
    for alpha in (0.3, 0.5):
        write_group(tmp_path, DISTILLED, student="resnet8", method_params={"alpha": alpha}, **BY_LOGIT)
    write_group(tmp_path, DISTILLED, student="resnet14", method_params={"alpha": 0.5}, **BY_LOGIT)
    row = the_row(report_of(tmp_path).interactions_table)
    assert (row["setting_a"], row["setting_b"]) == ("alpha=0.5", "alpha=0.5")
    write_group(tmp_path, DISTILLED, student="resnet18", method_params={"alpha": 0.9}, **BY_LOGIT)
    write_group(tmp_path, BASELINE, student="resnet18")
    assert any("no interaction of resnet18 and resnet8" in line for line in report_of(tmp_path).remarks)


def write_three_teachers(root, student="resnet8", shift=0.0):
    means = []
    for teacher_seed in range(3):
        values = exactly(90.3 + 0.1 * teacher_seed + shift, 0.2, teacher_seed)
        write_group(root, values, student=student, teacher_seed=teacher_seed, **BY_LOGIT)
        means.append(sum(values) / 5)
    write_group(root, exactly(90, 0.2, 3), student=student)
    return means


def test_teachers_of_several_seeds_have_a_group_each_and_a_pooled_row(tmp_path):
    means = write_three_teachers(tmp_path)
    gains = report_of(tmp_path).gains_table
    assert gains["teacher_seed"].tolist() == [0, 1, 2, "pooled"]
    assert gains["n"].tolist() == [5, 5, 5, 3]
    assert len(set(gains["setting"])) == 4
    pooled = the_row(gains, teacher_seed="pooled")
    test = stats.ttest_ind(means, exactly(90, 0.2, 3), equal_var=False)
    assert pooled["delta"] == pytest.approx(0.4)
    assert pooled["p_welch"] == pytest.approx(test.pvalue)
    assert pooled["std"] == pytest.approx(0.1)
    assert math.isnan(pooled["p_paired"])


def test_students_of_the_same_teachers_interact_by_teacher_and_pooled(tmp_path):
    write_three_teachers(tmp_path)
    write_three_teachers(tmp_path, "resnet14", 0.5)
    table = report_of(tmp_path).interactions_table
    assert table["teacher_seed"].tolist() == [0, 1, 2, "pooled"]
    assert table["difference"].tolist() == pytest.approx([0.5] * 4)


def test_means_of_single_teachers_do_not_count_twice_in_the_pooled_deviation(tmp_path):
    write_three_teachers(tmp_path)
    assert report_of(tmp_path).std == pytest.approx(0.2)


def selection_of(root, final_seeds=(1, 2, 3)):
    """Two settings tried with seed 0, more runs of both, and the file that says which won."""
    keys = {}
    for alpha in (0.3, 0.5):
        keys[alpha] = f"selection{alpha}"
        write_run(root, accuracy=0.99, run_key=keys[alpha], method_params={"alpha": alpha}, **BY_LOGIT)
    for alpha in (0.3, 0.5):
        write_group(root, DISTILLED, seeds=(1, 2, 3), method_params={"alpha": alpha}, **BY_LOGIT)
    write_group(root, BASELINE, seeds=(1, 2, 3))
    winner = {
        "method_params": {"alpha": 0.5}, "margin": 0.1, "noise": 0.4,
        "candidates": [{"overrides": [], "score": 90, "run_keys": [key]} for key in keys.values()],
    }  # fmt: skip
    return write_selected(root / "selected.yaml", [winner], (0,), final_seeds)


def test_a_selection_keeps_the_winner_and_leaves_out_the_runs_that_chose(tmp_path):
    selected = selection_of(tmp_path)
    assert len(report_of(tmp_path).gains_table) == 2
    report = report_of(tmp_path, selected)
    row = the_row(report.gains_table)
    assert (row["n"], row["mean"]) == (3, pytest.approx(np.mean(DISTILLED)))
    assert set(report.runs["method_params.alpha"]) == {None, 0.5}
    assert not report.runs.run_key.str.startswith("selection").any()
    assert not any("MARKED" in line for line in report.verdict)
    assert any("0 of 1 choices of a setting were clear" in line for line in report.verdict)


def test_seeds_that_choose_and_report_are_marked(tmp_path):
    selected = selection_of(tmp_path, final_seeds=(0, 1, 2, 3))
    report = report_of(tmp_path, selected)
    assert any("MARKED" in line and "seeds 0 " in line for line in report.verdict)
    assert the_row(report.gains_table)["n"] == 4


def test_a_selection_leaves_alone_what_did_not_compete(tmp_path):
    selected = selection_of(tmp_path)
    write_group(tmp_path, DISTILLED, teacher="resnet32", method="logit")
    teachers = report_of(tmp_path, selected).gains_table["teacher"].tolist()
    assert sorted(teachers) == ["resnet20", "resnet32"]


def test_baselines_with_a_selection_of_their_own_are_the_base(tmp_path):
    write_group(tmp_path, BASELINE)
    write_group(tmp_path, (91.0, 91.1, 91.2), recipe={"lr": 0.05})
    write_group(tmp_path, DISTILLED, **BY_LOGIT)
    recipe = dict(RECIPE) | {"lr": 0.05}
    winners = [{"teacher": None, "method": "ce", "recipe": recipe, "overrides": ["recipe.lr=0.05"]}, {}]
    report = report_of(tmp_path, write_selected(tmp_path / "selected.yaml", winners, (9,), (0, 1, 2)))
    assert the_row(report.gains_table)["base_mean"] == pytest.approx(91.1)
    assert any("was selected too" in line for line in report.remarks)


REFERENCE = [
    # Student, teacher, method, mean, std: the table of REFERENCE.md, five seeds each.
    ("resnet18", None, "ce", 94.86, 0.14),
    ("resnet18", "resnet34", "logit", 94.78, 0.09),
    ("resnet18", "resnet34", "feature", 94.98, 0.15),
    ("resnet18", "resnet50", "logit", 94.91, 0.08),
    ("resnet18", "resnet50", "feature", 94.95, 0.20),
    ("resnet34", None, "ce", 95.04, 0.13),
    ("resnet34", "resnet50", "logit", 95.13, 0.16),
    ("resnet34", "resnet50", "feature", 95.24, 0.10),
    ("resnet34", "resnet101", "logit", 95.10, 0.16),
    ("resnet34", "resnet101", "feature", 95.26, 0.11),
]


def test_no_gain_of_the_reference_study_survives_holm(tmp_path):
    for turn, (student, teacher, method, mean, std) in enumerate(REFERENCE):
        write_group(tmp_path, exactly(mean, std, turn), student=student, teacher=teacher, method=method)
    report = report_of(tmp_path)
    gains = report.gains_table
    baselines = {student: (mean, std) for student, teacher, _, mean, std in REFERENCE if not teacher}
    for student, teacher, method, mean, std in REFERENCE:
        if teacher:
            row = the_row(gains, student=student, teacher=teacher, method=method)
            test = stats.ttest_ind_from_stats(mean, std, 5, *baselines[student], 5, equal_var=False)
            assert row["p_welch"] == pytest.approx(test.pvalue)
            assert row["delta"] == pytest.approx(mean - baselines[student][0])
    assert (gains["p_welch"] < 0.05).sum() == 2
    assert gains["significant"].sum() == 0
    assert report.verdict[0] == "0 of 8 gains are significant after Holm."
    assert report.std == pytest.approx(math.sqrt(sum(std**2 for *_, std in REFERENCE) / 10))
    assert gains["seeds_for_0p2"].tolist() == [9] * 8
    assert set(gains["analysis"]) == {"blocks"}
    needed = gains["needed_0p2"].iloc[0]
    assert 1.4 * 9 < needed < 2.2 * 9  # with the correction, and the spread after the removal of seeds
    assert any(f"0.2 points would need {needed} (" in line for line in report.verdict)
    assert (report.interactions_table["p"] > 0.05).all()
    logit = the_row(report.interactions_table, method="logit")
    assert (logit["student_a"], logit["teacher"]) == ("resnet34", "resnet50")
    assert logit["difference"] == pytest.approx((95.13 - 95.04) - (94.91 - 94.86))
    claim = the_row(report.capacity_table)
    assert round(claim["difference"], 2) == 0.10
    assert claim["primary_low"] < 0 < claim["primary_high"]
    assert any("resnet34 gains +0.10 points more than resnet18 (95 % " in line for line in report.verdict)


def test_a_report_of_baselines_says_that_there_is_no_gain(tmp_path):
    write_group(tmp_path, BASELINE)
    report = report_of(tmp_path)
    assert report.gains_table.empty
    assert report.verdict == ["There is no distilled student here, so there is no gain to report."]


def test_a_teacher_whose_weights_were_given_is_no_distilled_student(tmp_path):
    write_group(tmp_path, BASELINE)
    write_run(tmp_path, method="checkpoint", seed=9)
    assert report_of(tmp_path).gains_table.empty


def test_mixed_data_sets_are_compared_only_with_their_like(tmp_path):
    write_group(tmp_path, BASELINE)
    write_group(tmp_path, (50.0, 51.0, 52.0), dataset="shapes")
    write_group(tmp_path, DISTILLED, **BY_LOGIT)
    with pytest.raises(ConfigError, match="dataset"):
        report_of(tmp_path)
    row = the_row(report_of(tmp_path, allow_mixed=True).gains_table)
    assert row["base_mean"] == pytest.approx(np.mean(BASELINE))


def test_a_baseline_may_have_any_name(tmp_path):
    write_group(tmp_path, BASELINE, method="my_ce", role="baseline")
    write_group(tmp_path, DISTILLED, **BY_LOGIT)
    row = the_row(report_of(tmp_path).gains_table)
    assert row["delta"] == pytest.approx(np.mean(DISTILLED) - np.mean(BASELINE))


def test_a_method_named_like_the_baseline_may_be_distilled(tmp_path):
    write_group(tmp_path, BASELINE, method="plain", role="baseline")
    write_group(tmp_path, DISTILLED, method="ce", role="distilled", teacher="resnet20")
    assert the_row(report_of(tmp_path).gains_table)["method"] == "ce"


def test_several_baselines_have_a_remark(tmp_path):
    write_group(tmp_path, BASELINE)
    write_group(tmp_path, (80.0, 80.1, 80.2), method="my_ce", role="baseline")
    write_group(tmp_path, DISTILLED, **BY_LOGIT)
    report = report_of(tmp_path)
    assert the_row(report.gains_table)["base_mean"] == pytest.approx(np.mean(BASELINE))
    assert any("several baselines (resnet8 ce, resnet8 my_ce)" in line for line in report.remarks)


def with_control(root):
    for turn, student in enumerate(("resnet8", "resnet14")):
        write_group(root, exactly(90, 0.2), student=student)
        write_group(root, exactly(92, 0.2, 1 + turn), student=student, method="smoothing", role="control")
        write_group(root, exactly(90.5, 0.2, 2 + turn), student=student, **BY_LOGIT)


def test_a_control_has_a_gain_but_is_no_distilled_gain(tmp_path):
    with_control(tmp_path)
    report = report_of(tmp_path)
    assert sorted(report.gains_table["role"]) == ["control", "control", "distilled", "distilled"]
    assert report.gains_table[report.gains_table["role"] == "control"]["delta"].tolist() == pytest.approx([2, 2])
    assert " of 2 gains " in report.verdict[0]
    assert "smoothing" not in report.verdict[0]
    assert sorted(report.interactions_table["role"]) == ["control", "distilled"]
    assert any(" of 1 interactions " in line for line in report.verdict)


def test_controls_are_a_holm_family_of_their_own(tmp_path):
    with_control(tmp_path / "with")
    for student in ("resnet8", "resnet14"):
        write_group(tmp_path / "without", exactly(90, 0.2), student=student)
        write_group(tmp_path / "without", exactly(90.5, 0.2, 2), student=student, **BY_LOGIT)
    both = report_of(tmp_path / "with").gains_table
    alone = report_of(tmp_path / "without").gains_table
    assert both[both["role"] == "distilled"]["p_holm"].tolist() == pytest.approx(alone["p_holm"].tolist())


def test_a_control_without_a_teacher_has_no_agreement_and_no_remark(tmp_path):
    with_control(tmp_path)
    report = report_of(tmp_path)
    controls = report.fidelity.groups[report.fidelity.groups["role"] == "control"]
    assert controls["agreement"].isna().all()
    assert controls["base_nll"].notna().all()
    assert not any("teacher's logits" in line for line in report.remarks)


def test_summaries_without_a_role_are_not_compared_and_have_a_remark(tmp_path):
    write_group(tmp_path, BASELINE, role=None)
    write_group(tmp_path, DISTILLED, role=None, **BY_LOGIT)
    report = report_of(tmp_path)
    assert report.gains_table.empty
    assert any("6 runs have no role" in line for line in report.remarks)


def test_runs_of_equal_seeds_with_other_baseline_keys_are_no_baseline(tmp_path):
    for seed, percent in enumerate(BASELINE):
        write_run(tmp_path, accuracy=percent / 100, seed=seed, baseline_key=f"other{seed}")
        write_run(tmp_path, accuracy=percent / 100, seed=seed, baseline_key=f"b{seed}", **BY_LOGIT)
    assert the_row(report_of(tmp_path).gains_table)["n_base"] == 0


def test_baselines_whose_recipe_lost_a_selection_are_not_compared_with(tmp_path):
    write_group(tmp_path, BASELINE)
    write_group(tmp_path, DISTILLED, **BY_LOGIT)
    winners = [{"teacher": None, "method": "ce", "recipe": RECIPE | {"lr": 0.05}, "overrides": ["recipe.lr=0.05"]}, {}]
    report = report_of(tmp_path, write_selected(tmp_path / "selected.yaml", winners, (9,), (0, 1, 2)))
    assert the_row(report.gains_table)["n_base"] == 0
    assert any("no baseline (with the selected recipe)" in line for line in report.remarks)


def test_baseline_runs_of_other_seeds_do_not_report_a_selection(tmp_path):
    selected = selection_of(tmp_path)
    write_run(tmp_path, seed=50, accuracy=0.1)
    row = the_row(report_of(tmp_path, selected).gains_table)
    assert (row["n_base"], row["base_mean"]) == (3, pytest.approx(np.mean(BASELINE)))
