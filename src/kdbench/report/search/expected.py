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


def expected_best(scores: Sequence[float], trials: int) -> float:
    """Return the expected best of some trials of a search.

    Args:
        scores: score of each trial of the search, at least one.
        trials: number of trials, from 1 to that of the scores.
    """
    return float(np.sort(np.asarray(scores, dtype=float)) @ chances(len(scores), trials))


def spread_of_best(scores: Sequence[float], trials: int) -> float:
    """Return the standard deviation of the best over all choices of some trials. Arguments: see `expected_best`."""
    ordered, weights = np.sort(np.asarray(scores, dtype=float)), chances(len(scores), trials)
    return math.sqrt(max(0.0, float(((ordered - ordered @ weights) ** 2) @ weights)))


def chances(count: int, trials: int) -> NDArray[np.float64]:
    """Return the probability of each of some ordered scores to be the best of so many drawn ones, [count]."""
    assert 1 <= trials <= count
    total = math.comb(count, trials)
    return np.array([math.comb(i, trials - 1) / total for i in range(count)])
