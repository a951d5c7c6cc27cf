"""Each test and power computation against a published worked example, or against a computation of its own."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad
from statsmodels.stats.multitest import multipletests

from kdbench.report import statistics as st

SLEEP = (
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
)
"""Extra hours of sleep by two drugs, ten patients: Student 1908; R's data set `sleep`."""
ROSETTA = [
    # Values and p of Rosetta Code's task "Welch's t-test".
    (
        [17.2, 20.9, 22.6, 18.1, 21.7, 21.4, 23.5, 24.2, 14.7, 21.8],
        [21.5, 22.8, 21.0, 23.0, 21.6, 23.6, 22.5, 20.7, 23.4, 21.8, 20.7, 21.7, 21.5, 22.5, 23.6, 21.5, 22.5, 23.5,
         21.5, 21.8],
        0.148841696605327,
    ),
    (
        [19.8, 20.4, 19.6, 17.8, 18.5, 18.9, 18.3, 18.9, 19.5, 22.0],
        [28.2, 26.6, 20.1, 23.3, 25.2, 22.1, 17.7, 27.6, 20.6, 13.7, 23.2, 17.5, 20.6, 18.0, 23.9, 21.6, 24.3, 20.4,
         24.0, 13.2],
        0.0359722710297968,
    ),
    ([3.0, 4.0, 1.0, 2.1], [490.2, 340.0, 433.9], 0.010751561149785),
]  # fmt: skip


def spread(values):
    """Sum of squares around the mean over n - 1, written out."""
    middle = math.fsum(values) / len(values)
    return math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1)


def test_standard_deviation_divides_by_n_minus_1():
    assert st.std([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]) == pytest.approx(math.sqrt(32 / 7))


@pytest.mark.parametrize("values", [[], [3.0]])
def test_standard_deviation_of_fewer_than_two_is_nan(values):
    assert math.isnan(st.std(values))


@pytest.mark.parametrize(("values", "base", "p"), ROSETTA)
def test_welch_gives_the_published_p(values, base, p):
    assert st.welch(values, base).p == pytest.approx(p, rel=1e-10)


def test_welch_of_the_sleep_data_is_what_r_prints():
    test = st.welch(*SLEEP)
    assert test.p == pytest.approx(0.07939, abs=5e-6)
    assert test.df == pytest.approx(17.776, abs=5e-4)
    assert test.difference / test.se == pytest.approx(-1.8608, abs=5e-5)
    assert (test.low, test.high) == pytest.approx((-3.3654832, 0.2054832), abs=5e-8)


def test_welch_against_its_formula():
    values, base = [95.1, 95.3, 94.9, 95.0], [94.8, 94.9, 94.85]
    test = st.welch(values, base)
    a, b = spread(values) / 4, spread(base) / 3
    df = (a + b) ** 2 / (a**2 / 3 + b**2 / 2)
    half = stats.t.ppf(0.975, df) * math.sqrt(a + b)
    assert test.difference == pytest.approx(95.075 - 94.85)
    assert test.se == pytest.approx(math.sqrt(a + b))
    assert test.df == pytest.approx(df)
    assert (test.low, test.high) == pytest.approx((test.difference - half, test.difference + half))


def test_welch_changes_sign_with_its_arms():
    one, other = st.welch(*SLEEP), st.welch(*SLEEP[::-1])
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
    assert one.p == pytest.approx(other.p)


def test_welch_where_one_arm_alone_varies():
    test = st.welch([94.0, 95.0, 96.0], [94.0, 94.0, 94.0])
    assert test.df == pytest.approx(2)
    assert test.p == pytest.approx(stats.ttest_1samp([94.0, 95.0, 96.0], 94.0).pvalue)


def test_welch_of_equal_means_is_certain_of_nothing():
    test = st.welch([94.0, 96.0], [94.5, 95.5])
    assert (test.difference, test.p) == (0, pytest.approx(1))
    assert test.low == pytest.approx(-test.high)
    assert test.high > 0


def test_standard_error_of_equal_means_is_known_too():
    assert st.welch([94.0, 96.0], [94.5, 95.5]).se == pytest.approx(math.sqrt(2 / 2 + 0.5 / 2))


@pytest.mark.parametrize(
    ("values", "base"), [([95.0], [94.0, 94.5]), ([95.0, 95.5], [94.0]), ([95.0], [94.0]), ([95.0] * 3, [94.0] * 3)]
)
def test_where_nothing_can_be_tested_only_the_difference_is_a_number(values, base):
    test = st.welch(values, base)
    assert test.difference == pytest.approx(np.mean(values) - np.mean(base))
    assert all(math.isnan(value) for value in (test.se, test.df, test.low, test.high, test.p))
    assert math.isnan(st.equivalence(values, base, 0.1))


def test_rounding_is_no_variation():
    noisy = [95.0, 95.0 + 1e-12, 95.0 - 1e-12]
    assert not st.varies(noisy)
    assert st.varies([95.0, 95.01])
    assert math.isnan(st.welch(noisy, noisy[::-1]).p)
    assert math.isnan(st.paired(noisy, [94.0] * 3))


def test_two_arms_of_a_contrast_are_welch():
    arms = ROSETTA[0][:2]
    one, other = st.contrast(arms, (1, -1)), st.welch(*arms)
    for name in ("difference", "se", "df", "low", "high", "p"):
        assert getattr(one, name) == pytest.approx(getattr(other, name))


def test_four_arms_against_the_formula_of_satterthwaite():
    arms, weights = ([5.0, 5.4, 5.1], [4.0, 4.9, 4.2, 4.4], [3.0, 3.1], [2.0, 2.2, 2.9, 2.4, 2.6]), (1, -1, -1, 1)
    test = st.contrast(arms, weights)
    parts = [spread(arm) / len(arm) for arm in arms]
    se, df = math.sqrt(sum(parts)), sum(parts) ** 2 / sum(p**2 / (len(a) - 1) for p, a in zip(parts, arms, strict=True))
    difference = sum(w * math.fsum(arm) / len(arm) for w, arm in zip(weights, arms, strict=True))
    assert (test.difference, test.se, test.df) == pytest.approx((difference, se, df))
    # Twice the tail of Student's density, integrated rather than looked up.
    scale = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
    tail, _ = quad(lambda x: scale * (1 + x * x / df) ** (-(df + 1) / 2), abs(difference) / se, math.inf)
    assert test.p == pytest.approx(2 * tail, rel=1e-6)
    assert test.high - test.low == pytest.approx(2 * se * stats.t.ppf(0.975, df))


def test_weights_scale_a_contrast():
    arms = ([5.0, 5.4, 5.1], [4.0, 4.9, 4.2])
    one, half = st.contrast(arms, (1, -1)), st.contrast(arms, (0.5, -0.5))
    assert (half.difference, half.se, half.df, half.p) == pytest.approx((one.difference / 2, one.se / 2, one.df, one.p))


def test_contrast_with_one_arm_of_one_value_has_no_test():
    test = st.contrast(([1.0, 2.0], [1.0, 1.5], [2.0], [0.5, 1.0]), (1, -1, -1, 1))
    assert test.difference == pytest.approx(1.5 - 1.25 - 2 + 0.75)
    assert math.isnan(test.p)


def test_interval_of_a_contrast_covers_the_truth_19_times_in_20():
    random = np.random.default_rng(5)
    scales, covered = (0.5, 1.0, 2.0, 1.0), 0
    for _ in range(1000):
        test = st.contrast([scale * random.normal(size=5) for scale in scales], (1, -1, -1, 1))
        covered += test.low <= 0 <= test.high
    assert covered / 1000 == pytest.approx(0.95, abs=0.02)


def test_paired_test_of_the_sleep_data_is_what_r_prints():
    assert st.paired(*SLEEP) == pytest.approx(0.002833, abs=5e-7)


def test_paired_test_of_differences_that_are_all_alike_is_none():
    assert math.isnan(st.paired([95.0, 96.0, 97.5], [94.0, 95.0, 96.5]))
    assert math.isnan(st.paired([95.0], [94.0]))


def test_holm_gives_the_published_adjustment():
    # Wikipedia, "Holm-Bonferroni method": of 0.01, 0.04, 0.03, 0.005 the first and the last are rejected at 0.05.
    assert st.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_never_exceeds_1_and_keeps_the_order():
    assert st.holm([0.6, 0.5, 0.9]) == pytest.approx([1, 1, 1])
    ps = np.random.default_rng(0).random(30) ** 3
    adjusted = np.array(st.holm(ps.tolist()))[np.argsort(ps)]
    assert all(low <= high for low, high in pairwise(adjusted))
    assert (adjusted >= np.sort(ps)).all()


@pytest.mark.parametrize("count", [1, 2, 3, 8, 200])
def test_holm_is_that_of_statsmodels_to_the_last_bit(count):
    ps = np.random.default_rng(count).random(count) ** 4
    ps[count // 2] = ps[0]  # a tie
    assert st.holm(ps.tolist()) == multipletests(ps, method="holm")[1].tolist()


def test_holm_leaves_nan_out_of_the_family():
    with_nan = st.holm([0.01, math.nan, 0.04, 0.03, math.nan, 0.005])
    assert [with_nan[i] for i in (0, 2, 3, 5)] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert math.isnan(with_nan[1])
    assert math.isnan(with_nan[4])


def test_holm_of_nothing():
    assert st.holm([]) == []
    assert all(math.isnan(p) for p in st.holm([math.nan, math.nan]))


@pytest.mark.parametrize("margin", [0.05, 0.2, 1.0])
def test_equivalence_is_the_larger_of_two_one_sided_welch_tests(margin):
    values, base = [95.1, 95.3, 94.9, 95.0, 95.2], [95.0, 95.2, 94.95, 95.15]
    a, b = spread(values) / 5, spread(base) / 4
    df, se = (a + b) ** 2 / (a**2 / 4 + b**2 / 3), math.sqrt(a + b)
    difference = sum(values) / 5 - sum(base) / 4
    expected = max(stats.t.sf((difference + margin) / se, df), stats.t.cdf((difference - margin) / se, df))
    assert st.equivalence(values, base, margin) == pytest.approx(expected)


def test_equivalence_means_that_the_90_per_cent_interval_lies_within_the_margin():
    values, base = SLEEP
    test = st.welch(values, base)
    reach = max(abs(end) for end in stats.t.interval(0.9, test.df, loc=test.difference, scale=test.se))
    assert st.equivalence(values, base, reach * 1.001) < 0.05 < st.equivalence(values, base, reach * 0.999)


def test_pooled_deviation_weighs_by_degrees_of_freedom():
    # Variances 1 (n = 3) and 8 (n = 2): (2 x 1 + 1 x 8) / 3. A group of one says nothing.
    assert st.pooled_std([[1.0, 2.0, 3.0], [2.0, 6.0], [50.0]]) == pytest.approx(math.sqrt(10 / 3))


@pytest.mark.parametrize("groups", [[], [[1.0]], [[1.0], [2.0]]])
def test_pooled_deviation_of_single_values_is_nan(groups):
    assert math.isnan(st.pooled_std(groups))


def test_pooled_deviation_of_identical_values_is_zero():
    assert st.pooled_std([[95.0, 95.0], [94.0, 94.0, 94.0]]) == 0


@pytest.mark.parametrize(
    ("n", "difference", "std", "expected"),
    [
        (20, 1.0, 1.0, 0.8689528),  # R: power.t.test(n = 20, delta = 1, sd = 1), in its help page
        (64, 0.5, 1.0, 0.8014596),  # Cohen 1988, the medium effect: 64 per group
        (20, 0.1, 0.1, 0.8689528),  # only the ratio counts
    ],
)
def test_power_is_the_published_one(n, difference, std, expected):
    assert st.power_of(difference, std, (n, n)) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(
    ("difference", "counts"), [(1.0, (5, 5)), (1.5, (3, 8)), (2.0, (5, 5, 5, 5)), (2.5, (2, 4, 6, 3))]
)
def test_power_is_how_often_a_simulated_test_notices(difference, counts):
    random, trials = np.random.default_rng(1), 40_000
    weights = [1, -1] if len(counts) == 2 else [1, -1, -1, 1]
    arms = [random.normal(size=(trials, n)) for n in counts]
    estimate = difference + sum(w * arm.mean(axis=1) for w, arm in zip(weights, arms, strict=True))
    df = sum(counts) - len(counts)
    pooled = sum(((arm - arm.mean(axis=1, keepdims=True)) ** 2).sum(axis=1) for arm in arms) / df
    t = estimate / np.sqrt(pooled * sum(1 / n for n in counts))
    noticed = float((np.abs(t) > stats.t.ppf(0.975, df)).mean())
    assert st.power_of(difference, 1.0, counts) == pytest.approx(noticed, abs=0.01)


def test_power_without_a_difference_is_the_level_of_the_test():
    assert st.power_of(0.0, 1.0, (5, 5)) == pytest.approx(0.05)


@pytest.mark.parametrize("difference", [5.0, 50.0, 1e6])
def test_power_of_the_obvious_is_1(difference):
    assert st.power_of(difference, 0.1, (5, 5)) == pytest.approx(1)


@pytest.mark.parametrize("counts", [(2, 2), (5, 5), (3, 7), (5, 5, 5, 5), (100, 100)])
def test_smallest_detectable_difference_is_noticed_4_times_in_5(counts):
    smallest = st.smallest_detectable(0.13, counts)
    assert st.power_of(smallest, 0.13, counts) == pytest.approx(0.8)


def test_smallest_detectable_difference_is_the_one_r_finds():
    # R: power.t.test(n = 5, sd = 1, power = 0.8)$delta
    assert st.smallest_detectable(1.0, (5, 5)) == pytest.approx(2.024439, abs=1e-5)


def test_smallest_detectable_difference_scales_with_the_deviation():
    assert st.smallest_detectable(0.2, (5, 5)) == pytest.approx(2 * st.smallest_detectable(0.1, (5, 5)))


@pytest.mark.parametrize(("std", "counts"), [(0.0, (5, 5)), (math.nan, (5, 5)), (0.1, (1, 5)), (0.1, (5, 5, 1, 5))])
def test_smallest_detectable_difference_of_what_cannot_be_tested_is_nan(std, counts):
    assert math.isnan(st.smallest_detectable(std, counts))


@pytest.mark.parametrize(
    ("difference", "std", "expected"),
    [
        (1.0, 1.0, 17),  # R: power.t.test(delta = 1, sd = 1, power = 0.8): n = 16.71477
        (0.5, 1.0, 64),  # Cohen 1988
        (0.8, 1.0, 26),  # Cohen 1988
        (0.2, 1.0, 394),  # G*Power 3: 394 for the small effect
        (0.2, 0.2, 17),
    ],
)
def test_seeds_are_the_published_numbers(difference, std, expected):
    assert st.seeds_for(difference, std) == expected


@pytest.mark.parametrize("difference", [0.05, 0.1, 0.2, 0.5])
def test_one_seed_fewer_is_too_few(difference):
    n = st.seeds_for(difference, 0.13)
    assert st.power_of(difference, 0.13, (n, n)) >= 0.8
    assert n == 2 or st.power_of(difference, 0.13, (n - 1, n - 1)) < 0.8


@pytest.mark.parametrize("std", [0.0, math.nan])
def test_without_a_deviation_no_number_of_seeds_is_known(std):
    assert st.seeds_for(0.1, std) is None
    assert st.seeds_for_equivalence(0.1, std) is None


def test_a_search_for_too_many_seeds_ends():
    assert st.seeds_for(1e-6, 1.0) is None
    assert st.seeds_for_equivalence(1e-6, 1.0) is None


@pytest.mark.parametrize(("margin", "n"), [(1.0, 10), (1.0, 20), (2.0, 4), (0.3, 5)])
def test_power_of_equivalence_is_how_often_simulated_tests_find_it(margin, n):
    random, trials = np.random.default_rng(2), 40_000
    a, b = random.normal(size=(2, trials, n))
    se = np.sqrt((a.var(axis=1, ddof=1) + b.var(axis=1, ddof=1)) / n)
    found = np.abs(a.mean(axis=1) - b.mean(axis=1)) < margin - stats.t.ppf(0.95, 2 * n - 2) * se
    assert st.power_of_equivalence(margin, 1.0, n) == pytest.approx(float(found.mean()), abs=0.01)


def test_many_seeds_for_equivalence_are_what_the_normal_approximation_says():
    # Chow, Shao and Wang 2008, section 3.2.3: n = 2 std^2 (z_0.95 + z_0.9)^2 / margin^2, for no true difference.
    expected = 2 * (stats.norm.ppf(0.95) + stats.norm.ppf(0.9)) ** 2 / 0.1**2
    assert st.seeds_for_equivalence(0.1, 1.0) == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize("margin", [0.1, 0.3])
def test_one_seed_fewer_is_too_few_for_equivalence(margin):
    n = st.seeds_for_equivalence(margin, 0.13)
    assert st.power_of_equivalence(margin, 0.13, n) >= 0.8 > st.power_of_equivalence(margin, 0.13, n - 1)


def test_margin_without_room_never_shows_equivalence():
    assert st.power_of_equivalence(1e-9, 1.0, 2) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("only_a", "only_b"), [(1, 6), (6, 1), (0, 5), (20, 10), (121, 59), (700, 640)])
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b):
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    assert st.mcnemar_exact(only_a, only_b) == pytest.approx(min(1.0, 2 * tail / 2**n), rel=1e-9)


def test_mcnemar_by_hand():
    assert st.mcnemar_exact(1, 6) == pytest.approx(0.125)  # 2 (1 + 7) / 128
    assert st.mcnemar_exact(5, 5) == 1
    assert st.mcnemar_exact(0, 0) == 1


@pytest.mark.parametrize("guess", [2, 3, 7, 50, 400])
@pytest.mark.parametrize("needed", [2, 3, 8, 49, 51, 399, 1000, 600_000, 1_000_000])
def test_the_fewest_seeds_do_not_depend_on_where_the_search_begins(needed, guess):
    assert st.fewest(lambda n: 0.9 if n >= needed else 0.1, guess) == needed


def test_no_number_of_seeds_is_enough_for_a_power_that_is_too_small_or_unknown():
    assert st.fewest(lambda n: 0.1) is None
    assert st.fewest(lambda n: math.nan) is None
