"""The primary analysis: the rule, each of its estimates against an independent computation, families and verdict."""

import shutil

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from scipy import stats

from kdbench.report.design import Analysis, Block, Design, Estimate, bartlett, crossed_estimate
from kdbench.report.power import joint_level
from kdbench.report.sizes import exaggeration, shrink
from tests.report.conftest import report_of, write_group, write_run, write_selected
from tests.report.test_gains import the_row

BY_LOGIT = {"method": "logit", "teacher": "resnet20"}
BY_FEATURE = {"method": "feature", "teacher": "resnet20"}


def blocks_of(random, seeds=6, arms=4, spread=1.0):
    return Block(90 + random.standard_normal((seeds, 1)) + spread * random.standard_normal((seeds, arms)))


def frame(blocks):
    """Accuracies of blocks as a long table for statsmodels."""
    return pd.DataFrame(
        [
            {"arm": f"{number}_{arm}", "seed": f"{number}_{seed}", "accuracy": block.values[seed, arm]}
            for number, block in enumerate(blocks)
            for seed in range(block.n)
            for arm in range(block.arms)
        ]
    )


@pytest.mark.filterwarnings("ignore:The design matrix is rank-deficient")
def test_blocks_are_the_linear_model_of_arms_and_seeds():
    random = np.random.default_rng(0)
    blocks = [blocks_of(random), blocks_of(random, arms=3)]
    design = Design(blocks, Analysis.BLOCKS)
    fit = smf.ols("accuracy ~ C(arm) + C(seed)", frame(blocks)).fit()
    assert design.residual_df == fit.df_resid
    assert design.residual_std == pytest.approx(np.sqrt(fit.mse_resid))
    test = fit.t_test("C(arm)[T.0_2] = 0")  # arm 0 of block 0 is the reference level
    found = design.compare([(blocks[0], 2)], [1.0])
    assert (found.difference, found.se, found.df) == pytest.approx((test.effect[0], test.sd[0, 0], fit.df_resid))
    assert (found.p, found.interval()) == (pytest.approx(test.pvalue), pytest.approx(tuple(test.conf_int()[0])))


@pytest.mark.filterwarnings("ignore:The design matrix is rank-deficient")
def test_an_interaction_in_blocks_is_the_contrast_of_the_linear_model():
    random = np.random.default_rng(1)
    blocks = [blocks_of(random), blocks_of(random, arms=3)]
    fit = smf.ols("accuracy ~ C(arm) + C(seed)", frame(blocks)).fit()
    weights = pd.Series(0.0, fit.params.index)
    weights["C(arm)[T.0_1]"], weights["C(arm)[T.1_1]"], weights["C(arm)[T.1_0]"] = 1, -1, 1
    test = fit.t_test(weights.to_numpy())
    found = Design(blocks, Analysis.BLOCKS).compare([(blocks[0], 1), (blocks[1], 1)], [1.0, -1.0])
    assert (found.difference, found.se) == pytest.approx((test.effect.item(), test.sd.item()))


def test_a_baseline_that_several_gains_share_enters_their_mean_once():
    block = blocks_of(np.random.default_rng(2))
    found = Design([block], Analysis.BLOCKS).compare([(block, 1), (block, 2)], [0.5, 0.5])
    variance = Design([block], Analysis.BLOCKS).residual_std ** 2
    assert found.se == pytest.approx(np.sqrt((0.25 + 0.25 + 1) * variance / block.n))


def test_pairs_are_the_paired_t_test():
    block = blocks_of(np.random.default_rng(3))
    found = Design([block], Analysis.PAIRED).compare([(block, 1)], [1.0])
    test = stats.ttest_rel(block.values[:, 1], block.values[:, 0])
    interval = test.confidence_interval()
    assert found.p == pytest.approx(test.pvalue)
    assert found.interval() == pytest.approx((interval.low, interval.high))


def test_equivalence_is_two_one_sided_tests():
    block = blocks_of(np.random.default_rng(4))
    found = Design([block], Analysis.PAIRED).compare([(block, 1)], [1.0])
    difference = block.values[:, 1] - block.values[:, 0]
    both = [
        stats.ttest_1samp(difference, -2.0, alternative="greater").pvalue,
        stats.ttest_1samp(difference, 2.0, alternative="less").pvalue,
    ]
    assert found.p_equivalence(2.0) == pytest.approx(max(both))


def test_bartlett_is_that_of_scipy_for_independent_samples():
    samples = np.random.default_rng(5).standard_normal((3, 7)) * [[1], [2], [3]]
    found = bartlett(samples.var(axis=1, ddof=1)[None], np.full(3, 6.0))
    assert found[0] == pytest.approx(stats.bartlett(*samples).pvalue)


def test_the_mean_of_crossed_gains_has_the_variance_of_both_factors():
    gains = np.array([[1.0, 2.0, 4.0], [2.0, 2.0, 5.0]])
    found = crossed_estimate(gains)
    rows, columns = np.var([7 / 3, 3], ddof=1) / 2, np.var([1.5, 2, 4.5], ddof=1) / 3
    assert found.difference == pytest.approx(gains.mean())
    assert found.se == pytest.approx(np.sqrt(rows + columns))
    assert found.df == pytest.approx((rows + columns) ** 2 / (rows**2 / 1 + columns**2 / 2))


@pytest.mark.parametrize(
    ("seeds", "spreads", "expected"),
    [
        (5, (1, 1, 1, 1), "blocks"),
        (4, (1, 1, 1, 1), "welch"),
        (10, (1, 1, 1, 30), "paired"),
    ],
)
def test_the_rule_pools_only_with_enough_seeds_and_like_spreads(tmp_path, seeds, spreads, expected):
    random = np.random.default_rng(11)
    for number, spread in enumerate(spreads):
        arm = {} if number == 0 else {**BY_LOGIT, "method_params": {"temperature": number}}
        write_group(
            tmp_path,
            80 + 0.1 * spread * stats.norm.ppf(random.permutation(np.arange(1, seeds + 1) / (seeds + 1))),
            **arm,
        )
    assert set(report_of(tmp_path).gains_table.analysis) == {expected}


def test_the_rule_never_takes_a_standard_error_below_that_of_the_gains_own_differences(tmp_path):
    random = np.random.default_rng(0)
    for _ in range(40):
        block = blocks_of(random, seeds=8, arms=3)
        design = Design([block], Analysis.AUTO)
        if design.of_blocks == Analysis.BLOCKS:
            own = np.std(block.values[:, 1] - block.values[:, 0], ddof=1) / np.sqrt(8)
            assert design.compare([(block, 1)], [1.0]).se >= own - 1e-12


def test_arms_without_the_seeds_of_the_baseline_have_welchs_test(tmp_path):
    write_group(tmp_path, (90.0, 90.2, 90.1, 90.4))
    write_group(tmp_path, (91.0, 91.1, 91.3), seeds=(7, 8, 9), **BY_LOGIT)
    row = the_row(report_of(tmp_path).gains_table)
    assert row.analysis == "welch"
    assert (row.p_primary, row.primary_low) == pytest.approx((row.p_welch, row.ci_low))


@pytest.mark.parametrize("analysis", ["blocks", "paired", "welch"])
def test_a_declared_analysis_is_the_one_of_every_gain(tmp_path, analysis):
    write_group(tmp_path, (90.0, 90.2, 90.1, 90.4))
    write_group(tmp_path, (91.0, 91.1, 91.3, 91.2), **BY_LOGIT)
    report = report_of(tmp_path, analysis=Analysis(analysis))
    assert report.gains_table.analysis.tolist() == [analysis]
    assert any("as declared" in line for line in report.verdict)


def test_significance_follows_the_primary_analysis(tmp_path):
    base = (90.0, 91.0, 92.0, 93.0, 94.0, 95.0)
    write_group(tmp_path, base)
    write_group(tmp_path, [value + 0.5 + 0.01 * turn for turn, value in enumerate(base)], **BY_LOGIT)
    row = the_row(report_of(tmp_path).gains_table)
    assert row.p_welch > 0.5
    assert row.significant
    assert row.correlation == pytest.approx(1, abs=1e-3)


def with_teachers(root, gains, students=("resnet8",)):
    random = np.random.default_rng(0)
    for student in students:
        base = random.normal(90, 0.1, 3)
        write_group(root, base, student=student)
        for seed, gain in enumerate(gains):
            write_group(root, base + gain + random.normal(0, 0.05, 3), student=student, teacher_seed=seed, **BY_LOGIT)


def test_a_pooled_gain_is_the_primary_one_and_its_single_teachers_are_not_in_the_family(tmp_path):
    with_teachers(tmp_path, (1.0, 1.2, 0.9))
    report = report_of(tmp_path)
    families = dict(zip(report.gains_table.teacher_seed, report.gains_table.family, strict=True))
    assert families == {0: "secondary", 1: "secondary", 2: "secondary", "pooled": "primary"}
    pooled = the_row(report.gains_table, teacher_seed="pooled")
    assert (pooled.analysis, pooled.p_adjusted) == ("crossed", pytest.approx(pooled.p_primary))
    assert report.gains_table[report.gains_table.family == "secondary"].significant.isna().all()
    assert " of 1 gains " in report.verdict[0]


def test_pooled_interactions_are_paired_by_teacher_and_seed(tmp_path):
    with_teachers(tmp_path, (1.0, 3.0, -1.0), students=("resnet8", "resnet14"))
    report = report_of(tmp_path)
    row = the_row(report.interactions_table, teacher_seed="pooled")
    assert row.analysis == "crossed"
    assert row.primary_se < 0.3  # the teachers' own spread of 2 points is the same in both students


def test_crossed_seeds_are_no_replicates(tmp_path):
    random = np.random.default_rng(0)
    for arm in ({}, BY_LOGIT):
        for init in range(2):
            for data in range(3):
                write_run(tmp_path, init_seed=init, data_seed=data, accuracy=0.9 + random.normal(0, 0.01), **arm)
    row = the_row(report_of(tmp_path).gains_table)
    assert row.analysis == "crossed"
    assert row.primary_df < 3


def test_seeds_that_are_crossed_in_part_have_no_test(tmp_path):
    for arm in ({}, BY_LOGIT):
        for number, (init, data) in enumerate(((0, 0), (0, 1), (1, 1))):
            write_run(tmp_path, init_seed=init, data_seed=data, accuracy=0.9 + number / 100 + 0.01 * bool(arm), **arm)
    row = the_row(report_of(tmp_path).gains_table)
    assert np.isnan(row.p_primary)
    assert pd.isna(row.significant)


def test_equivalence_is_corrected_for_the_number_of_gains(tmp_path):
    write_group(tmp_path, (90.0, 90.2, 90.1, 90.4, 90.3))
    for number in range(3):
        write_group(tmp_path, (90.1, 90.3, 90.05, 90.4, 90.3), method_params={"temperature": number}, **BY_LOGIT)
    table = report_of(tmp_path, margin=0.25).gains_table
    assert table.p_equivalence_adjusted.to_numpy() == pytest.approx(
        min(1, 3 * table.p_equivalence_adjusted.iloc[0] / 3)
    )
    raw = report_of(tmp_path, margin=0.25, analysis=Analysis.PAIRED).gains_table
    difference = np.array((90.1, 90.3, 90.05, 90.4, 90.3)) - np.array((90.0, 90.2, 90.1, 90.4, 90.3))
    one = stats.ttest_1samp(difference, 0.25, alternative="less").pvalue
    assert raw.p_equivalence_adjusted.iloc[0] == pytest.approx(min(1, 3 * one))


def test_simultaneous_intervals_hold_the_marginal_ones(tmp_path):
    random = np.random.default_rng(0)
    write_group(tmp_path, random.normal(90, 0.2, 6))
    for number in range(4):
        write_group(tmp_path, random.normal(90.2, 0.2, 6), method_params={"temperature": number}, **BY_LOGIT)
    table = report_of(tmp_path).gains_table
    assert (table.joint_low < table.primary_low).all()
    assert (table.joint_high > table.primary_high).all()


def test_simultaneous_intervals_of_one_spread_are_dunnetts():
    samples = np.random.default_rng(0).normal(0, 1, (4, 200))
    interval = stats.dunnett(*samples[1:], control=samples[0]).confidence_interval()
    width = (interval.high - interval.low)[0] / 2
    se = np.sqrt(samples.var(axis=1, ddof=1).mean() * 2 / 200)
    level = joint_level((4,), 200, Analysis.BLOCKS, 0)
    assert width / se == pytest.approx(stats.t.isf(level / 2, 597), rel=0.03)


def test_a_lonely_gain_shrinks_by_its_squared_standard_error():
    block = blocks_of(np.random.default_rng(6))
    estimate = Design([block], Analysis.PAIRED).compare([(block, 1)], [1.0])
    kept = max(0.0, 1 - (estimate.se / estimate.difference) ** 2)
    assert shrink([estimate]) == pytest.approx([kept * estimate.difference])


@pytest.mark.parametrize("level", [0.05, 0.01])
def test_exaggeration_is_that_of_a_simulation_of_tests(level):
    """Three seeds, a true gain of one standard deviation: what comes out significant is about twice too large."""
    random = np.random.default_rng(0)
    ours, base = random.normal(1, 1, (100_000, 3)), random.normal(0, 1, (100_000, 3))
    found = stats.ttest_ind(ours, base, axis=1)
    simulated = abs(ours.mean(axis=1) - base.mean(axis=1))[found.pvalue < level].mean()
    known = Estimate(Analysis.WELCH, 1.0, np.sqrt(2 / 3), 4.0)
    assert simulated > 1.8
    assert exaggeration(known, 1.0, level) == pytest.approx(simulated, rel=0.03)
    assert np.isnan(exaggeration(known, 0.0, level))


def test_losses_and_interactions_are_named_with_their_direction(tmp_path):
    for student, gain, noise in (
        ("resnet8", -2.0, (0.02, 0, 0.01, 0.03, 0)),
        ("resnet14", 2.0, (0, 0.02, 0.01, 0, 0.03)),
    ):
        base = np.array((80.0, 80.1, 80.3, 80.2, 80.15))
        write_group(tmp_path, base, student=student)
        write_group(tmp_path, base + gain + np.array(noise), student=student, **BY_LOGIT)
    verdict = report_of(tmp_path).verdict
    assert "-1.99 (a loss)" in verdict[0]
    assert any("resnet14 gains 4.00 more than resnet8 by logit from resnet20" in line for line in verdict)


def test_the_claim_about_capacity_is_one_contrast_over_all_gains(tmp_path):
    random = np.random.default_rng(0)
    for student, gain in (("resnet8", 0.1), ("resnet14", 0.4)):
        write_group(tmp_path, random.normal(80, 0.1, 6), student=student)
        for arm in (BY_LOGIT, BY_FEATURE):
            write_group(tmp_path, random.normal(80 + gain, 0.1, 6), student=student, **arm)
    report = report_of(tmp_path)
    row = the_row(report.capacity_table)
    means = report.gains_table.groupby("student").delta.mean()
    assert (row.student_a, row.difference) == ("resnet14", pytest.approx(means.resnet14 - means.resnet8))
    assert (row.gains_a, row.gains_b) == (2, 2)
    assert any("Over all methods and teachers resnet14 gains" in line for line in report.verdict)


def crossed_in_part(root, **arm):
    random = np.random.default_rng(len(str(arm)))
    for init, data in ((0, 0), (0, 1), (0, 2), (1, 0)):
        write_run(
            root, init_seed=init, data_seed=data, accuracy=0.9 + random.normal(0, 0.001) + 0.02 * bool(arm), **arm
        )


def test_a_row_without_a_test_is_published_without_interval_and_verdict(tmp_path, kdbench_report):
    crossed_in_part(tmp_path / "runs")
    crossed_in_part(tmp_path / "runs", **BY_LOGIT)
    result = kdbench_report(tmp_path / "runs")
    row = the_row(result.table("gains"))
    assert row.p_welch < 0.001
    assert row[["p_primary", "primary_low", "joint_low", "detectable", "analysis"]].isna().all()
    assert "dagger" not in result.text("tables.tex")
    assert "No gain can be tested" in result.out


def test_rows_over_teachers_have_no_test_where_seeds_are_crossed_in_part(tmp_path):
    crossed_in_part(tmp_path)
    for seed in (0, 1):
        crossed_in_part(tmp_path, teacher_seed=seed, **BY_LOGIT)
    pooled = the_row(report_of(tmp_path).gains_table, teacher_seed="pooled")
    assert np.isnan(pooled.p_primary)
    assert pd.isna(pooled.detectable)


def test_a_selection_leaves_the_shared_baseline_of_capacity_as_it_is(tmp_path):
    random = np.random.default_rng(0)
    for student in ("resnet8", "resnet14"):
        write_group(tmp_path, random.normal(80, 0.3, 5), student=student)
        for arm in (BY_LOGIT, BY_FEATURE):
            write_group(tmp_path, random.normal(80.3, 0.3, 5), student=student, **arm)
    winners = [
        {"student": student, "method": method, "margin": 1.0, "noise": 0.1}
        for student in ("resnet8", "resnet14")
        for method in ("logit", "feature")
    ]
    selected = write_selected(tmp_path / "selected.yaml", winners, (9,), range(5))
    reports = [report_of(tmp_path, chosen, analysis=Analysis.WELCH) for chosen in (None, selected)]
    without, with_choice = (the_row(report.capacity_table) for report in reports)
    assert with_choice.primary_se == pytest.approx(without.primary_se)
    assert with_choice.primary_df == pytest.approx(without.primary_df)


def test_a_pooled_row_by_welch_states_no_power_of_runs(tmp_path):
    with_teachers(tmp_path, (1.0, 1.2, 0.9))
    table = report_of(tmp_path, analysis=Analysis.WELCH).gains_table
    assert pd.isna(the_row(table, teacher_seed="pooled").detectable)


def teachers_with_seeds(root, seeds_of_teachers, random=None):
    """Write a baseline of five seeds, and students of several teachers; the gain varies with the seed."""
    random = random or np.random.default_rng(0)
    seed, gain = random.normal(0, 0.1, 20), random.normal(0, 0.25, 20)  # the same for all teachers
    write_group(root, 90 + seed[:5] + random.normal(0, 0.05, 5))
    for teacher, seeds in enumerate(seeds_of_teachers):
        noise = random.normal(0, 0.05, len(seeds))
        write_group(root, (90 + seed + gain)[list(seeds)] + noise, seeds, teacher_seed=teacher, **BY_LOGIT)


def test_a_pooled_gain_is_over_the_seeds_that_every_teacher_and_the_baseline_have(tmp_path):
    teachers_with_seeds(tmp_path / "lacks", [range(5), (0, 1, 2, 4), range(5)])
    teachers_with_seeds(tmp_path / "whole", [(0, 1, 2, 4)] * 3)
    for folder in (tmp_path / "whole").glob("ce_seed3_*"):
        shutil.rmtree(folder)
    pooled = the_row(report_of(tmp_path / "lacks").gains_table, teacher_seed="pooled")
    assert pooled.analysis == "crossed"
    assert "over seeds 0, 1, 2, 4 alone, since runs are missing" in pooled.remarks
    assert pooled.n_base == 4
    whole = the_row(report_of(tmp_path / "whole").gains_table, teacher_seed="pooled")
    assert (whole.primary_se / pooled.primary_se, whole.primary_df) == pytest.approx((1, pooled.primary_df), abs=0.2)


@pytest.mark.parametrize("seeds", [[(0, 1), (1, 2), (2, 3)], [(0,), (0,), (0,)], [(5, 6), (6, 7), (7, 8)]])
def test_a_pooled_gain_has_no_test_where_teachers_share_some_seeds_alone(tmp_path, seeds):
    teachers_with_seeds(tmp_path, seeds)
    report = report_of(tmp_path)
    pooled = the_row(report.gains_table, teacher_seed="pooled")
    assert pd.isna(pooled.p_primary)
    assert "no independent samples" in pooled.remarks
    assert any(line.startswith("teachers pooled: no independent samples") for line in report.remarks)
    assert set(report.gains_table.family) == {"primary"}  # the teachers' own rows then count


def test_teachers_without_common_seeds_are_independent(tmp_path):
    teachers_with_seeds(tmp_path, [(5, 6, 7), (8, 9, 10), (11, 12, 13)])
    pooled = the_row(report_of(tmp_path).gains_table, teacher_seed="pooled")
    assert (pooled.analysis, pooled.p_primary) == ("welch", pytest.approx(pooled.p_welch))


def test_pooled_gains_over_different_seeds_have_no_interaction(tmp_path):
    random = np.random.default_rng(0)
    for student, lacking in (("resnet8", ()), ("resnet14", (3,))):
        write_group(tmp_path, random.normal(90, 0.1, 5), student=student)
        for teacher in (0, 1, 2):
            seeds = [seed for seed in range(5) if teacher or seed not in lacking]
            accuracies = random.normal(91, 0.1, len(seeds))
            write_group(tmp_path, accuracies, seeds, student=student, teacher_seed=teacher, **BY_LOGIT)
    report = report_of(tmp_path)
    assert report.gains_table[report.gains_table.teacher_seed == "pooled"].p_primary.notna().all()
    assert pd.isna(the_row(report.interactions_table, teacher_seed="pooled").p_primary)


@pytest.mark.wide
def test_a_missing_run_of_a_pooled_gain_brings_no_false_findings(tmp_path):
    """The gain of a seed is alike for all teachers; as independent means of teachers a third of such nulls is found."""
    random, found = np.random.default_rng(0), 0
    for number in range(150):
        teachers_with_seeds(tmp_path / str(number), [range(5), range(4), range(5)], random)
        found += the_row(report_of(tmp_path / str(number)).gains_table, teacher_seed="pooled").p_primary < 0.05
    assert found / 150 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 150)


def test_capacity_says_how_much_of_it_the_two_students_have_in_common(tmp_path):
    for student, gains in (("resnet8", {"logit": 0.1, "feature": 0.5}), ("resnet14", {"logit": 0.4})):
        random = np.random.default_rng(0)
        base = random.normal(80, 0.1, 5)
        write_group(tmp_path, base, student=student)
        for method, gain in gains.items():
            values = base + gain + random.normal(0, 0.01, 5)
            write_group(tmp_path, values, student=student, method=method, teacher="resnet20")
    report = report_of(tmp_path)
    row, table = the_row(report.capacity_table), report.gains_table
    (small, large) = (the_row(table, student=student, method="logit").delta for student in ("resnet8", "resnet14"))
    assert (row.gains_a, row.gains_b, row.gains_common) == (1, 2, 1)
    assert row.difference_common == pytest.approx(large - small)
    assert any(f"only one is by the same method from the same teacher: over that the difference is {large - small:+.2f}"
               in line for line in report.verdict)  # fmt: skip


def test_students_without_a_common_method_and_teacher_are_not_compared(tmp_path):
    for student, arm in (("resnet8", BY_LOGIT), ("resnet14", BY_FEATURE)):
        write_group(tmp_path, (90.0, 90.2, 90.1), student=student)
        write_group(tmp_path, (91.0, 91.1, 91.3), student=student, **arm)
    assert report_of(tmp_path).capacity_table.empty


@pytest.mark.parametrize("arms", [2, 3])
def test_few_arms_are_paired_since_they_do_not_show_whether_spreads_are_alike(arms):
    random = np.random.default_rng(0)
    small, large = blocks_of(random, arms=arms), Block(90 + np.vstack([np.eye(4), -np.eye(4)]))
    design = Design([small, large], Analysis.AUTO)
    assert design.p_homogeneity == pytest.approx(1)  # of the large one alone, whose arms vary alike
    assert design.compare([(large, 1)], [1.0]).analysis == Analysis.BLOCKS
    differences = small.values[:, 1] - small.values[:, 0]
    found = design.compare([(small, 1)], [1.0])
    assert (found.analysis, found.p) == (Analysis.PAIRED, pytest.approx(stats.ttest_1samp(differences, 0).pvalue))
    assert design.compare([(small, 1), (large, 1)], [1.0, -1.0]).analysis == Analysis.PAIRED


def test_a_report_of_one_arm_beside_its_baseline_claims_no_equal_spreads(tmp_path):
    write_group(tmp_path, (90.0, 90.0, 90.0, 90.0, 90.0))
    write_group(tmp_path, (91.0, 91.9, 90.3, 91.2, 92.8), **BY_LOGIT)
    verdict = report_of(tmp_path).verdict
    assert any("paired t-tests over seeds, since students with fewer than 3 arms beside" in line for line in verdict)
    assert not any("Bartlett" in line for line in verdict)


def test_gains_whose_shrunken_size_is_not_known_are_not_said_to_be_nothing(tmp_path):
    write_group(tmp_path, (90.0, 90.5, 90.2))
    write_group(tmp_path, (95.0, 95.5, 95.2), **BY_LOGIT)
    report = report_of(tmp_path)
    assert the_row(report.gains_table).significant
    assert np.isnan(the_row(report.gains_table).shrunken)
    assert not any("nothing is left" in line for line in report.verdict)


def test_a_declared_analysis_that_does_not_apply_is_said(tmp_path):
    write_group(tmp_path, (90.0, 90.2, 90.1, 90.4))
    write_group(tmp_path, (91.0, 91.1, 91.3), seeds=(7, 8, 9), **BY_LOGIT)
    (line,) = [line for line in report_of(tmp_path, analysis=Analysis.BLOCKS).verdict if line.startswith("Primary")]
    assert "(the declared analysis, seeds as blocks (which takes all spreads as equal), applies to none" in line
    write_group(tmp_path, (91.0, 91.1, 91.3, 91.2), **BY_FEATURE)
    (line,) = [line for line in report_of(tmp_path, analysis=Analysis.BLOCKS).verdict if line.startswith("Primary")]
    assert "where the declared analysis, seeds as blocks (which takes all spreads as equal), does not apply" in line


def test_welch_as_declared_for_rows_over_teachers_is_a_warning(tmp_path):
    with_teachers(tmp_path, (1.0, 1.2, 0.9))
    verdict = report_of(tmp_path, analysis=Analysis.WELCH).verdict
    assert any(
        "as declared (which takes what teachers or crossed seeds share as independent" in line for line in verdict
    )


@pytest.mark.parametrize(
    ("base", "ours", "seeds", "reason"),
    [
        ((90.0,), (91.0,), None, "one seed only"),
        ((90.0, 90.0), (91.0, 91.0), None, "no variation over seeds"),
        ((90.0, 90.3), (91.0, 91.1), (0, 0), "seeds that are no independent samples"),
    ],
)
def test_the_verdict_names_the_reason_why_a_gain_has_no_test(tmp_path, base, ours, seeds, reason):
    write_group(tmp_path, base)
    for number, (accuracy, seed) in enumerate(zip(ours, seeds or range(len(ours)), strict=True)):
        write_run(tmp_path, seed=seed, accuracy=accuracy / 100, run_key=f"run{number}", **BY_LOGIT)
    first = report_of(tmp_path).verdict[0]
    assert first.startswith(f"No gain can be tested, of 1 computed: {reason}")


def test_capacity_of_crossed_seeds_is_crossed(tmp_path):
    random = np.random.default_rng(0)
    effects = {name: random.normal(0, 0.3, (3, 1)) + random.normal(0, 0.3, (1, 3)) for name in ("logit", "feature")}
    for student in ("resnet8", "resnet14"):
        for method in ("ce", "logit", "feature"):
            arm = {} if method == "ce" else {"method": method, "teacher": "resnet20"}
            sign = 1 if student == "resnet8" else -1
            shared = sign * effects.get(method, np.zeros((3, 3)))
            for init in range(3):
                for data in range(3):
                    accuracy = 0.9 + (shared[init, data] + random.normal(0, 0.05)) / 100
                    write_run(tmp_path, student=student, init_seed=init, data_seed=data, accuracy=accuracy, **arm)
    report = report_of(tmp_path)
    row = the_row(report.capacity_table)
    assert row.analysis == "crossed"
    gains = {(gain.group.shared.student, gain.group.shared.method): gain.crossed for gain in report.gains}
    differences = [gains["resnet14", method] - gains["resnet8", method] for method in ("logit", "feature")]
    expected = crossed_estimate(np.mean(differences, axis=0))
    assert (row.difference, row.primary_se) == pytest.approx((expected.difference, expected.se))


@pytest.mark.parametrize(
    ("last", "teachers", "seeds"),
    [((0,), 3, "0, 1, 2, 3, 4"), ((0, 1), 3, "0, 1, 2, 3, 4"), ((0, 1, 2, 4), 4, "0, 1, 2, 4")],
)
def test_a_pooled_gain_is_over_the_largest_complete_table(tmp_path, last, teachers, seeds):
    teachers_with_seeds(tmp_path, [range(5), range(5), range(5), last])
    report = report_of(tmp_path)
    pooled = the_row(report.gains_table, teacher_seed="pooled")
    assert (pooled.analysis, pooled.n) == ("crossed", teachers)
    assert len(report.gains[-1].base_values) == len(seeds.split())
    families = dict(zip(report.gains_table.teacher_seed, report.gains_table.family, strict=True))
    assert families[3] == ("secondary" if teachers == 4 else "primary")
    (remark,) = [line for line in report.remarks if line.startswith("teachers pooled: over seeds")]
    assert ("without teacher_seed=3" in remark) == (teachers == 3)


def test_crossed_seeds_with_a_gap_are_named_by_both(tmp_path):
    random = np.random.default_rng(0)
    for teacher in (None, 0, 1, 2):
        arm = {} if teacher is None else {"teacher_seed": teacher, **BY_LOGIT}
        for init in range(2):
            for data in range(3):
                if (teacher, init, data) != (1, 0, 2):
                    write_run(
                        tmp_path, init_seed=init, data_seed=data, seed=0, accuracy=0.9 + random.normal(0, 0.01), **arm
                    )
    pooled = the_row(report_of(tmp_path).gains_table, teacher_seed="pooled")
    assert (pooled.analysis, pooled.n) == ("crossed", 2)
    assert "over seeds 0, 0/1, 0/2, 1/0, 1, 1/2 alone" in pooled.remarks
    assert "without teacher_seed=1" in pooled.remarks


def test_one_first_weights_for_all_teachers_are_no_shared_seeds(tmp_path):
    random = np.random.default_rng(0)
    for place, teacher in enumerate((None, 0, 1, 2)):
        arm = {} if teacher is None else {"teacher_seed": teacher, **BY_LOGIT}
        for data in range(3 * place, 3 * place + 3):
            write_run(tmp_path, init_seed=0, data_seed=data, accuracy=0.9 + random.normal(0, 0.01), **arm)
    assert the_row(report_of(tmp_path).gains_table, teacher_seed="pooled").analysis == "welch"


def test_arms_that_differ_by_rounding_alone_have_no_test(tmp_path):
    base = np.array((90.1, 90.7, 89.9, 90.3, 90.2))
    write_group(tmp_path, base)
    for arm, gain in ((BY_LOGIT, 1.0), (BY_FEATURE, 0.5)):
        write_group(tmp_path, base + gain, **arm)
    report = report_of(tmp_path)
    assert report.gains_table.p_primary.isna().all()
    assert report.verdict[0].startswith("No gain can be tested, of 2 computed: no variation over seeds.")


def test_the_power_of_an_arm_with_other_seeds_is_that_of_welchs_test(tmp_path):
    random = np.random.default_rng(0)
    shared = random.normal(0, 1, 6)
    write_group(tmp_path, 90 + shared + random.normal(0, 0.05, 6))
    write_group(tmp_path, 91 + shared + random.normal(0, 0.05, 6), **BY_LOGIT)
    write_group(tmp_path, 91 + random.normal(0, 1, 6), seeds=range(6, 12), **BY_FEATURE)
    table = report_of(tmp_path).gains_table
    paired, other = the_row(table, method="logit"), the_row(table, method="feature")
    assert (paired.analysis, other.analysis) == ("paired", "welch")
    assert other.detectable > 5 * paired.detectable


def test_a_declared_pairing_beside_arms_with_other_seeds_gives_each_its_reason(tmp_path):
    write_group(tmp_path, (90.0, 90.2, 90.1, 90.4))
    write_group(tmp_path, (91.0, 91.1, 91.3, 91.2), **BY_FEATURE)
    write_group(tmp_path, (91.0, 91.1, 91.3), seeds=(7, 8, 9), **BY_LOGIT)
    (line,) = [line for line in report_of(tmp_path, analysis=Analysis.BLOCKS).verdict if line.startswith("Primary")]
    assert line.startswith(
        "Primary analysis: seeds as blocks over all arms with one spread, as declared; Welch's t-tests, where an arm "
        "has other seeds than its baseline, where the declared analysis, seeds as blocks (which takes all spreads as "
        "equal), does not apply."
    )
