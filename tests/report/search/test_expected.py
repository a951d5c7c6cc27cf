"""The expected best of k trials, by hand and against draws."""

import itertools

import numpy as np
import pytest

from kdbench.report.search.expected import expected_best, quantiles_of_best

SCORES = [3.0, 1.0, 2.0]


def test_by_hand() -> None:
    assert expected_best(SCORES, 1) == pytest.approx(2)
    assert expected_best(SCORES, 2) == pytest.approx((2 + 3 + 3) / 3)  # {1, 2}, {1, 3}, {2, 3}
    assert expected_best(SCORES, 3) == 3
    assert quantiles_of_best(SCORES, 2, (0.1, 1 / 3, 0.34, 0.9)) == [2, 2, 3, 3]
    assert quantiles_of_best(SCORES, 3, (0.1, 0.9)) == [3, 3]


@pytest.mark.parametrize("trials", range(1, 8))
def test_against_all_choices_ties_included(trials: int) -> None:
    scores = [55.0, 61.5, 61.5, 10.0, 58.25, 70.0, 10.0]
    best = [max(choice) for choice in itertools.combinations(scores, trials)]
    assert expected_best(scores, trials) == pytest.approx(np.mean(best))
    low, high = quantiles_of_best(scores, trials, (0.1, 0.9))
    assert [low, high] == list(np.quantile(best, (0.1, 0.9), method="inverted_cdf"))
    assert high <= max(scores)


def test_against_draws() -> None:
    generator = np.random.default_rng(0)
    scores = generator.normal(size=40)
    drawn = np.array([generator.permutation(scores)[:12].max() for _ in range(20_000)])
    assert expected_best(list(scores), 12) == pytest.approx(drawn.mean(), abs=4 * drawn.std() / np.sqrt(len(drawn)))


def test_many_trials_are_no_problem_of_size() -> None:
    scores = list(np.linspace(0, 1, 2000))
    values = [expected_best(scores, k) for k in (1, 10, 1000, 2000)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(0.5)
    assert values[-1] == 1
