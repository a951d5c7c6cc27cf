"""Rank tests against scipy's exact distributions and counted arrangements, the smallest p, and intervals over seeds."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from kdbench.report.functional.inference import (
    RankTest,
    bootstrap_interval,
    choose_test,
    difference,
    p_of_less,
    smallest_p,
)
from tests.report.functional.coverage import coverage, false_findings

SIGNED, MANN_WHITNEY = RankTest.SIGNED_RANK, RankTest.MANN_WHITNEY


def arms(seed, n, m, shift=0.0):
    random = np.random.default_rng(seed)
    return random.normal(size=n) + shift, random.normal(size=m)


def statistic_u(values, control):
    return sum((value > other) + 0.5 * (value == other) for value in values for other in control)


def counted_mann_whitney(values, control):
    """Return the share of arrangements with a U at most as large, by counting all of them."""
    both, n = np.concatenate([values, control]), len(values)
    seen, found = statistic_u(values, control), []
    for chosen in itertools.combinations(range(len(both)), n):
        rest = np.setdiff1d(np.arange(len(both)), chosen)
        found.append(statistic_u(both[list(chosen)], both[rest]) <= seen + 1e-9)
    return float(np.mean(found))


def counted_signed_rank(differences):
    """Return the share of signs with a sum of positive ranks at most as large; ranks include zeros (Pratt)."""
    ranks = stats.rankdata(np.abs(differences))
    kept = differences != 0
    seen = ranks[differences > 0].sum()
    signs = itertools.product((0, 1), repeat=int(kept.sum()))
    return float(np.mean([np.dot(own, ranks[kept]) <= seen + 1e-9 for own in signs]))


@pytest.mark.parametrize(
    ("test", "n", "p"),
    [
        (MANN_WHITNEY, 3, 0.05), (MANN_WHITNEY, 5, 0.004), (MANN_WHITNEY, 10, 5e-6),
        (SIGNED, 3, 0.125), (SIGNED, 5, 0.031), (SIGNED, 10, 0.001),
    ],
)  # fmt: skip
def test_the_smallest_p_is_that_of_the_published_table(test, n, p):
    assert smallest_p(test, n, n) == pytest.approx(p, rel=0.1)


@pytest.mark.parametrize("test", RankTest)
@pytest.mark.parametrize("n", range(2, 9))
def test_complete_separation_has_the_smallest_p(test, n):
    values, control = np.arange(n) / 10.0, 10 + np.arange(n) ** 1.5
    assert p_of_less(test, values, control) == pytest.approx(smallest_p(test, n, n))
    assert p_of_less(test, control, values) == pytest.approx(1.0)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (3, 3), (4, 3), (5, 5), (6, 4)])
@pytest.mark.parametrize("seed", range(4))
def test_mann_whitney_is_exact(n, m, seed):
    values, control = arms(seed, n, m, -0.5)
    expected = stats.mannwhitneyu(values, control, alternative="less", method="exact").pvalue
    assert p_of_less(MANN_WHITNEY, values, control) == pytest.approx(float(expected))
    assert expected == pytest.approx(counted_mann_whitney(values, control))


@pytest.mark.parametrize("n", [2, 4, 6, 8])
@pytest.mark.parametrize("seed", range(4))
def test_signed_rank_is_exact(n, seed):
    values, control = arms(seed, n, n, -0.5)
    expected = stats.wilcoxon(values - control, alternative="less", method="exact").pvalue
    assert p_of_less(SIGNED, values, control) == pytest.approx(float(expected))
    assert expected == pytest.approx(counted_signed_rank(values - control))


@pytest.mark.parametrize("seed", range(6))
def test_ties_are_counted_out(seed):
    random = np.random.default_rng(seed)
    values, control = random.integers(0, 3, 5).astype(float), random.integers(0, 4, 5).astype(float)
    assert p_of_less(MANN_WHITNEY, values, control) == pytest.approx(counted_mann_whitney(values, control))
    if (values != control).any():
        assert p_of_less(SIGNED, values, control) == pytest.approx(counted_signed_rank(values - control))


def test_differences_in_the_last_digit_are_ties():
    values = np.array([0.1 + 0.2, 0.5, 0.6])
    control = np.array([0.3, 0.7, 0.8])
    assert p_of_less(MANN_WHITNEY, values, control) == p_of_less(MANN_WHITNEY, np.array([0.3, 0.5, 0.6]), control)


def test_many_tied_values_have_the_exact_p_of_their_arrangements():
    random = np.random.default_rng(0)
    values, control = np.round(random.normal(size=12) - 0.3, 1), np.round(random.normal(size=12), 1)
    draws = stats.permutation_test(
        (values, control), statistic_u, permutation_type="independent", n_resamples=4000, alternative="less",
        random_state=1,
    )  # fmt: skip
    assert p_of_less(MANN_WHITNEY, values, control) == pytest.approx(draws.pvalue, abs=0.03)
    signs = random.choice([-1, 1], size=(20_000, 12)) * np.abs(values - control)
    ranks = stats.rankdata(np.abs(values - control))
    sums = np.where(signs > 0, ranks, 0).sum(axis=1)
    share = float(np.mean(sums <= ranks[values > control].sum() + 1e-9))
    assert p_of_less(SIGNED, values, control) == pytest.approx(share, abs=0.02)


@pytest.mark.parametrize("n", [9, 10, 20])
def test_complete_separation_with_a_tie_is_still_as_small_as_it_can_be(n):
    values, control = np.arange(n) / 10.0, 10 + np.arange(n) ** 1.5
    values[1] = values[0]
    assert p_of_less(MANN_WHITNEY, values, control) == pytest.approx(smallest_p(MANN_WHITNEY, n, n))
    assert p_of_less(SIGNED, values, control) == pytest.approx(smallest_p(SIGNED, n, n))


@pytest.mark.parametrize("test", RankTest)
def test_with_one_run_there_is_no_p_and_without_a_difference_it_is_one(test):
    assert p_of_less(test, np.ones(4), np.ones(4)) == 1
    assert math.isnan(p_of_less(test, np.ones(1), np.zeros(1)))
    assert math.isnan(smallest_p(test, 0, 0))


@pytest.mark.parametrize(
    ("sizes", "test"),
    [
        ([(5, 5, True)], SIGNED),  # 1/32
        ([(5, 5, True)] * 2, MANN_WHITNEY),  # 2/32 is too much
        ([(10, 10, True)] * 48, SIGNED),
        ([(10, 10, True)] * 60, MANN_WHITNEY),
        ([(10, 10, False)], MANN_WHITNEY),
        ([(10, 10, True), (10, 10, False)], MANN_WHITNEY),
        ([(10, 10, True), (3, 3, True)], MANN_WHITNEY),
        ([], MANN_WHITNEY),
    ],
)
def test_the_test_is_chosen_by_numbers_of_seeds_and_tests_alone(sizes, test):
    assert choose_test(sizes) is test


def interval(values, control, is_paired):
    low, high = bootstrap_interval(difference, values[:, None], control[:, None], is_paired)
    return float(low[0]), float(high[0])


def test_the_interval_is_the_expanded_percentile_interval_of_scipy():
    values, control = arms(0, 8, 8, 1.0)
    level = 1 - 2 * stats.norm.sf(math.sqrt(8 / 7) * stats.t.isf(0.025, 7))
    expected = stats.bootstrap(
        (values - control,), np.mean, confidence_level=level, method="percentile", n_resamples=40_000, random_state=0
    ).confidence_interval
    assert interval(values, control, True) == pytest.approx((expected.low, expected.high), abs=0.05)


@pytest.mark.parametrize(("n", "is_paired"), [(5, True), (6, True), (10, True), (5, False), (10, False)])
def test_intervals_hold_the_truth_nearly_as_often_as_they_say(n, is_paired):
    assert 0.89 <= coverage(n, is_paired, skewed=False, samples=400) <= 0.985  # of 4,000: 0.926 to 0.956


def test_fewer_than_five_seeds_have_no_interval():
    assert all(map(math.isnan, interval(np.arange(4.0), np.zeros(4), True)))
    assert all(map(math.isnan, interval(np.arange(9.0), np.zeros(4), False)))


def test_paired_arms_are_resampled_together():
    values = np.random.default_rng(0).normal(size=6) * 100
    low, high = interval(values + 1, values, True)
    assert (low, high) == pytest.approx((1, 1))
    assert interval(values + 1, values, False)[0] < 0


def test_equal_runs_have_equal_intervals():
    values, control = arms(0, 6, 6)
    assert interval(values, control, True) == interval(values.copy(), control.copy(), True)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "conditions"), [(6, 1), (10, 1), (6, 3)])
@pytest.mark.parametrize("correlation", [0.0, 0.5])
def test_where_nothing_is_transferred_few_studies_find_something(n, conditions, correlation):
    assert false_findings(n, conditions, correlation, studies=150) <= 0.09  # the aim is 0.05; 150 studies
