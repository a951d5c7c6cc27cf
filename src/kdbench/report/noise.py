"""Noise of a choice between settings by their validation accuracy: from the images, and from the seeds.

Two settings are measured on the same M validation images with the same S seeds, and chosen by their means. With chance
alone (two settings that are equally good) the variance of the difference of the means is

    2 * spread / S,

where `spread` is the variance over seeds of the accuracy on these images. A part of it is there because images are
few: networks that are equally good on all images of the kind differ on these M. That part can be measured on a single
pair of runs, by the images that only one of them classifies correctly; the rest is the part of the seeds. All variances
and standard errors are in points.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

DRAWS = 4000
"""Number of simulated choices for the optimism."""


def paired_noise(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return the standard error of the difference of two accuracies that comes from their common images.

    Args:
        a: correctness of each image by each run of a setting, [S, M].
        b: correctness of the same images by another setting, [S, M].
    """
    difference = a.mean(axis=0) - b.mean(axis=0)
    return 100 * float(np.std(difference, ddof=1)) / math.sqrt(len(difference))


def unpaired_noise(accuracies: Sequence[float], images: int, seeds: int, share: float = 1.0) -> float:
    """Return that standard error from the accuracies alone, by the binomial distribution.

    Args:
        accuracies: accuracies of the two settings, fractions.
        images: number of images.
        seeds: number of runs of each setting.
        share: share of the variance that is left because the images are common: 1 if they were not.
    """
    return 100 * math.sqrt(share * sum(a * (1 - a) for a in accuracies) / (images * seeds))


def share_of_discordance(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Return on how many images only one of two runs is right, as a share of what independent runs would have.

    Args:
        a: correctness of each image by a run, [M].
        b: correctness of the same images by another run, [M].
    """
    first, second = float(a.mean()), float(b.mean())
    independent = first * (1 - second) + second * (1 - first)
    return min(1.0, float((a != b).mean()) / independent) if independent else 1.0


def interaction_variance(choices: Sequence[Sequence[Sequence[float]]]) -> float:
    """Return the variance over seeds of what is not common to all settings of a choice, pooled over choices.

    Args:
        choices: for each choice the scores of each setting, a value per seed.

    Returns:
        Mean square of settings x seeds; NaN without a choice of two settings with two seeds.
    """
    squares, freedom = 0.0, 0
    for choice in choices:
        table = np.asarray(choice, dtype=float)
        if min(table.shape) < 2:
            continue
        rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
        squares += float((rest**2).sum())
        freedom += (table.shape[0] - 1) * (table.shape[1] - 1)
    return squares / freedom if freedom else math.nan


def seed_noise(spread: float, seeds: int, images: float) -> float:
    """Return the standard error of a difference of two settings that the seeds add to that of the images.

    Args:
        spread: variance over seeds of the accuracy on the validation images, points squared.
        seeds: number of runs of each setting.
        images: standard error that comes from the images.
    """
    return math.sqrt(max(0.0, 2 * spread / seeds - images**2))


def noise_share(scores: Sequence[float], noise: float) -> float:
    """Return the share of a grid's variance that is noise, at most 1; NaN without variance.

    Args:
        scores: score of each setting.
        noise: standard error of the difference of two of them.
    """
    variance = float(np.var(scores, ddof=1)) if len(scores) > 1 else 0.0
    return min(1.0, noise**2 / 2 / variance) if variance else math.nan


def optimism(scores: Sequence[float], noise: float) -> float:
    """Return by how much the score of a grid's winner is too high on average, in points.

    The scores are shrunk towards their mean until their variance is what is not noise; noise is added to them again,
    the best is chosen, and its score is compared with its shrunken one, in `DRAWS` simulated choices.

    Args:
        scores: score of each setting.
        noise: standard error of the difference of two of them.
    """
    share = noise_share(scores, noise)
    true = np.asarray(scores, dtype=float)
    true = true.mean() + math.sqrt(1 - (1.0 if math.isnan(share) else share)) * (true - true.mean())
    drawn = np.random.default_rng(0).normal(scale=noise / math.sqrt(2), size=(DRAWS // 2, len(true)))
    added = np.concatenate([drawn, -drawn])  # so that a choice that is always the same has none
    chosen = (true + added).argmax(axis=1)
    return max(0.0, float(added[np.arange(len(added)), chosen].mean()))


def nested_optimism(scores: Sequence[Sequence[float]]) -> float:
    """Return the optimism of a winner by leaving out each seed: chosen by the others, scored by the one left out.

    What a seed does to all settings alike is taken off. It speaks of choices by one seed fewer.

    Args:
        scores: scores of each setting, a value per seed; NaN for fewer than two seeds or settings.
    """
    table: NDArray[Any] = np.asarray(scores, dtype=float)
    if table.ndim != 2 or min(table.shape) < 2:
        return math.nan
    table = table - table.mean(axis=0)
    found = []
    for seed in range(table.shape[1]):
        others = np.delete(table, seed, axis=1).mean(axis=1)
        best = int(others.argmax())
        found.append(others[best] - table[best, seed])
    return float(np.mean(found))
