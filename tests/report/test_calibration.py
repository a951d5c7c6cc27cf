"""Error rates of the verdict by simulation: false findings, coverage, power, equal and unequal spreads."""

import itertools

import numpy as np
import pytest
from scipy import stats

from kdbench.report import statistics as st
from kdbench.report.design import Analysis, Block, Design, crossed_estimate
from kdbench.report.images import Correctness, WithImages, image_variances
from kdbench.report.power import RulePower, joint_level
from tests.conftest import rest_wide
from tests.report.calibration import SPREADS, apply_rule, holm, simulate

NOISE = 0.004
"""Two and a half standard errors of a share near 0.05 in 20,000 draws."""


@pytest.mark.parametrize(("analysis", "seeds"), list(itertools.product(("auto", "paired", "blocks"), (2, 3, 5, 9))))
def test_the_simulated_rule_is_the_one_of_reports(analysis, seeds):
    random = np.random.default_rng(seeds)
    values = 90 + random.standard_normal((20, seeds, 4)) * random.choice([0.2, 0.5], (20, 1, 4))
    estimates, errors, freedom = apply_rule(values, analysis)
    for one, expected, se, df in zip(values, estimates, errors, freedom, strict=True):
        block = Block(one)
        design = Design([block], Analysis(analysis))
        for arm in range(1, 4):
            found = design.compare([(block, arm)], [1.0])
            assert (found.difference, found.se, found.df) == pytest.approx(
                (expected[arm - 1], se[arm - 1], df[arm - 1])
            )
    ps = random.random((5, 6)) ** 3
    assert holm(ps) == pytest.approx(np.array([st.holm(row) for row in ps.tolist()]))


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [0.0, 0.75])
@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
@pytest.mark.parametrize("spreads", SPREADS)
def test_without_any_gain_at_most_one_report_in_twenty_finds_one(spreads, seeds, correlation):
    rates = simulate(seeds, SPREADS[spreads](9), correlation)
    assert rates.family_error <= 0.05 + NOISE
    assert rates.coverage >= 0.93
    if seeds >= 5:
        assert rates.coverage <= 0.97  # with fewer, Welch's intervals do not use that seeds correlate


@pytest.mark.slow
@pytest.mark.parametrize("gains", [1, 2, 5])
def test_small_families_find_nothing_either(gains):
    for spreads, seeds in itertools.product(("equal", "baseline twice"), (3, 5, 10)):
        assert simulate(seeds, SPREADS[spreads](gains + 1), 0.5).family_error <= 0.05 + NOISE


@pytest.mark.slow
@pytest.mark.parametrize("seeds", rest_wide([5, 3, 10, 20]))
@pytest.mark.parametrize("analysis", ["auto", "paired", "blocks"])
def test_power_is_the_stated_one(analysis, seeds):
    rule = RulePower((9,), 8, Analysis(analysis))
    for correlation in (0.0,) if analysis == "auto" and seeds < 5 else (0.0, 0.5):
        # The standard deviation that the test is up against: within arm and seed, or within the arm alone.
        within = 1.0 if analysis == "auto" and seeds < 5 else np.sqrt(1 - correlation)
        for ratio in (rule.detectable(seeds), 0.7 * rule.detectable(seeds)):
            stated = rule.power(ratio, seeds)
            found = simulate(seeds, np.ones(9), correlation, ratio * within, analysis=analysis, seed=1).power
            assert found == pytest.approx(stated, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "correlation"), [(3, 0.0), (5, 0.0), (5, 0.5), (10, 0.5)])
def test_simultaneous_intervals_hold_together(seeds, correlation):
    level = joint_level((9,), seeds, Analysis.AUTO, 0)
    measured = simulate(seeds, np.ones(9), correlation, joint=level, seed=2)
    assert measured.joint_coverage == pytest.approx(0.95, abs=0.012)


@pytest.mark.slow
def test_simultaneous_intervals_of_three_correlated_seeds_are_too_wide_not_too_narrow():
    """Fewer than five seeds are not paired, so that what their arms share is not taken off."""
    level = joint_level((9,), 3, Analysis.AUTO, 0)
    assert 0.962 < simulate(3, np.ones(9), 0.5, joint=level, seed=2).joint_coverage < 0.99


@pytest.mark.slow
@pytest.mark.parametrize(("teachers", "seeds"), [(2, 3), (3, 3), (3, 5), (5, 5)])
@pytest.mark.parametrize("spreads", [(0, 0, 1), (1, 0, 1), (0, 1, 1), (1, 1, 1), (1, 1, 0.2)])
def test_gains_over_several_teachers_are_no_false_findings(teachers, seeds, spreads):
    random, draws = np.random.default_rng(0), 3000
    shapes = ((draws, teachers, 1), (draws, 1, seeds), (draws, teachers, seeds))
    gains = sum(spread * random.standard_normal(shape) for spread, shape in zip(spreads, shapes, strict=True))
    estimates = [crossed_estimate(one) for one in gains]
    ratios = np.array([abs(e.difference) / e.se for e in estimates])
    found = ratios > stats.t.ppf(0.975, [e.df for e in estimates])
    assert found.mean() <= 0.05 + 0.01


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [4, 10])
def test_intervals_for_other_test_images_cover_the_gain_on_them(seeds):
    """Accuracy of an image depends on image, arm, run and their interaction; the true gain is over all images."""
    random, images, draws = np.random.default_rng(0), 100, 600
    inside = {"seeds": 0, "both": 0}
    for _ in range(draws):
        easy, shift = random.normal(0.5, 1.5, images), random.normal(GAIN, SHIFT, images)
        runs = random.normal(0, 0.2, (2, seeds, 1)) + random.normal(0, 1.0, (2, seeds, images))
        base, ours = easy + runs[0] > 0, easy + shift + runs[1] > 0
        block = Block(100 * np.array([base.mean(axis=1), ours.mean(axis=1)]).T)
        estimate = Design([block], Analysis.PAIRED).compare([(block, 1)], [1.0])
        correct = Correctness(ours.astype(float), base.astype(float), True, np.zeros(images, dtype=np.int64))
        _, own = image_variances([correct], [1.0])
        both = WithImages(estimate, np.sqrt(own))
        assert both.interval()[0] <= estimate.interval()[0]
        assert both.p >= estimate.p - 1e-9
        for name, (low, high) in (("seeds", estimate.interval()), ("both", both.interval())):
            inside[name] += low <= TRUE_GAIN <= high
    assert inside["both"] > inside["seeds"]
    assert 0.93 <= inside["both"] / draws <= 0.985


GAIN, SHIFT = 0.3, 2.0
"""Mean and spread over images of the shift in the simulation above, in standard deviations of a run on an image."""


def true_gain():
    """Return the gain in points over all images of the simulation above, by its normal distributions."""
    base = stats.norm.cdf(0.5 / np.sqrt(1.5**2 + 0.2**2 + 1))
    ours = stats.norm.cdf((0.5 + GAIN) / np.sqrt(1.5**2 + SHIFT**2 + 0.2**2 + 1))
    return 100 * (ours - base)


TRUE_GAIN = true_gain()
