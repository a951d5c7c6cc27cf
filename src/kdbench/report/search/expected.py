"""The expected best of k trials of a search.

A search reports the best of its n trials, and the best grows with n. What a reader can compare is the best that k
trials would have found: the mean of the maximum over all choices of k of the n trials. Ordered by score,
v_1 <= ... <= v_n, the maximum is v_i where i is chosen and the other k - 1 are among the i - 1 below, so

    E(k) = sum_i v_i * C(i - 1, k - 1) / C(n, k).

This is the curve of Dodge et al. (2019, "Show Your Work") for draws without replacement: E(1) is the mean of the
trials, and E(n) their maximum. It estimates what k new trials would find without bias where all trials are independent
draws of one distribution. A default setting among them is none, nor are the points of a grid or of a sampler that
learns: there it describes these n trials alone.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-12
"""Error of a sum of chances, which must not move a quantile to the next score."""


def expected_best(scores: Sequence[float], trials: int) -> float:
    """Return the expected best of some trials of a search.

    Args:
        scores: score of each trial of the search, at least one.
        trials: number of trials, from 1 to that of the scores.
    """
    return float(np.sort(np.asarray(scores, dtype=float)) @ chances(len(scores), trials))


def quantiles_of_best(scores: Sequence[float], trials: int, levels: Sequence[float]) -> list[float]:
    """Return quantiles of the best over all choices of some trials: the smallest score that is reached so often.

    Unlike the mean with a standard deviation on each side, they never leave the range of the scores.

    Args:
        scores: see `expected_best`.
        trials: see `expected_best`.
        levels: shares of the choices, from 0 to 1.
    """
    ordered, reached = np.sort(np.asarray(scores, dtype=float)), np.cumsum(chances(len(scores), trials))
    places = np.searchsorted(reached, np.asarray(levels) - ROUNDING)
    return [float(ordered[min(place, len(scores) - 1)]) for place in places]


def chances(count: int, trials: int) -> NDArray[np.float64]:
    """Return the probability of each of some ordered scores to be the best of so many drawn ones, [count]."""
    assert 1 <= trials <= count
    total = math.comb(count, trials)
    return np.array([math.comb(i, trials - 1) / total for i in range(count)])
