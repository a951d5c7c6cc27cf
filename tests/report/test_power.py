"""Power of the rule: simulated draws, ranges of the spread, and the columns that state them."""

import numpy as np
import pytest
from scipy import stats

from kdbench.report import statistics as st
from kdbench.report.design import Analysis, Block, Design
from kdbench.report.power import MOST_COLUMNS, RulePower, capped, contrasts, simulate, spread_interval, wishart
from tests.report.conftest import report_of, write_group
from tests.report.test_gains import the_row


@pytest.mark.parametrize("df", [2, 30])
def test_scatter_matrices_have_the_moments_of_a_wishart_distribution(df):
    scatter = wishart(np.random.default_rng(0), 40_000, 3, df)
    assert scatter.mean(axis=0) == pytest.approx(df * np.eye(3), abs=0.02 * df + 0.05)
    assert scatter[:, 0, 0].var() == pytest.approx(2 * df, rel=0.05)
    assert scatter[:, 0, 1].var() == pytest.approx(df, rel=0.05)


def test_pairs_without_correction_have_the_power_of_the_noncentral_t():
    rule, n, ratio = RulePower((2,), 1, Analysis.PAIRED), 8, 1.2
    critical = stats.t.isf(0.025, n - 1)
    exact = stats.nct.sf(critical, n - 1, ratio / np.sqrt(2 / n)) + stats.nct.cdf(
        -critical, n - 1, ratio / np.sqrt(2 / n)
    )
    assert rule.power(ratio, n) == pytest.approx(exact, abs=0.02)


def test_blocks_with_correction_have_the_power_of_the_noncentral_t():
    rule, n, ratio = RulePower((9,), 8, Analysis.BLOCKS), 6, 2.0
    df, shift = 8 * 5, ratio / np.sqrt(2 / n)
    exact = stats.nct.sf(stats.t.isf(0.05 / 16, df), df, shift)
    assert rule.power(ratio, n) == pytest.approx(exact, abs=0.02)
    assert rule.detectable(n) == pytest.approx(rule.detectable(24) * 2, rel=0.1)


def test_an_interaction_needs_twice_as_many_seeds_as_a_gain():
    gain = RulePower((3, 3), 1, Analysis.BLOCKS).needed(0.5)
    interaction = RulePower((3, 3), 1, Analysis.BLOCKS, interaction=True).needed(0.5)
    assert interaction / gain == pytest.approx(2, rel=0.1)


def test_welch_with_a_family_of_one_has_the_power_of_one_test():
    rule = RulePower((), 1, Analysis.WELCH)
    assert rule.power(1.5, 6) == pytest.approx(st.power_of(1.5, 1.0, (6, 6)), abs=1e-6)
    assert rule.detectable(6) == pytest.approx(st.smallest_detectable(1.0, (6, 6)), rel=1e-4)


def test_detectable_and_needed_are_two_sides_of_one_power():
    rule = RulePower((5,), 4, Analysis.AUTO)
    ratio = rule.detectable(12)
    assert rule.power(ratio, 12) == pytest.approx(0.8, abs=0.01)
    assert rule.needed(ratio) in (11, 12)
    assert rule.needed(0.0) is None
    assert rule.needed(1e-4) is None
    assert rule.needed(0.05) == pytest.approx(rule.needed(0.1) * 4, rel=0.01)


def test_the_range_of_a_spread_holds_it_nineteen_times_in_twenty():
    random = np.random.default_rng(0)
    samples = random.normal(0, 2.0, (4000, 9)).std(axis=1, ddof=1)
    ranges = [spread_interval(std, 8) for std in samples]
    assert np.mean([low <= 2.0 <= high for low, high in ranges]) == pytest.approx(0.95, abs=0.01)
    low, high = spread_interval(0.81, 16)  # the seeds grow with the square: 260 become 144 to 600
    assert (260 * (low / 0.81) ** 2, 260 * (high / 0.81) ** 2) == pytest.approx((144, 602), abs=2)


def test_large_reports_are_simulated_with_fewer_arms():
    assert sum(capped((31, 31, 31))) == MOST_COLUMNS
    assert min(capped((40, 2))) == 2
    assert capped((5, 3)) == (5, 3)
    whole = simulate((31, 31, 31), 6, Analysis.BLOCKS).margin(0.001)[:, 0].mean()
    assert simulate(capped((31, 31, 31)), 6, Analysis.BLOCKS).margin(0.001)[:, 0].mean() == pytest.approx(
        whole, rel=0.05
    )


def test_contrasts_are_gains_over_the_baseline_of_their_block():
    assert contrasts((3, 2)).tolist() == [[-1, 1, 0, 0, 0], [-1, 0, 1, 0, 0], [0, 0, 0, -1, 1]]


def test_the_report_states_the_power_of_its_own_rule(tmp_path):
    random = np.random.default_rng(0)
    write_group(tmp_path, random.normal(90, 0.2, 6))
    for method in ("logit", "feature", "dkd"):
        write_group(tmp_path, random.normal(90.1, 0.2, 6), method=method, teacher="resnet20")
    report = report_of(tmp_path)
    row, std = the_row(report.gains_table, method="dkd"), report.placed.design.residual_std
    rule = RulePower((4,), 3, Analysis.AUTO)
    assert row.detectable == pytest.approx(std * rule.detectable(6))
    assert row.needed_0p2 == rule.needed(0.2 / std)
    assert row.detectable_low < row.detectable < row.detectable_high
    assert row.needed_0p2_low < row.needed_0p2 < row.needed_0p2_high
    assert row.needed_0p2 > row.seeds_for_0p2


@pytest.mark.parametrize("arms", [(2,), (3, 3), (4, 4), (5,)])
def test_reports_are_simulated_by_the_rule_of_the_design(arms):
    random, n, found = np.random.default_rng(0), 8, []
    ratio = RulePower(arms, 1, Analysis.AUTO).detectable(n)
    for _ in range(600):
        blocks = [Block(random.standard_normal((n, size))) for size in arms]
        blocks[0].values[:, 1] += ratio
        found.append(Design(blocks, Analysis.AUTO).compare([(blocks[0], 1)], [1.0]).p < 0.05)
    assert np.mean(found) == pytest.approx(0.8, abs=0.05)
