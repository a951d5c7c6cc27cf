"""Test images as a sample of their own: the part of a comparison's uncertainty that comes from their choice.

A run is right or wrong on each image, so a gain is a mean over seeds and images, which are crossed: every run sees
every image. Tests over seeds speak of these test images alone. For other images of the same kind the variance of the
gain between images is added, without the part in which runs differ on one image: the spread over seeds has that.

Source of the method: the random-effects analysis of variance for two crossed factors, Searle, Casella and McCulloch
1992, Variance Components.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import optimize, stats

from kdbench.metrics.probability import Ints
from kdbench.report.design import Estimate
from kdbench.report.predictions import predictions_in, same_images
from kdbench.report.statistics import ALPHA

Floats = NDArray[np.float64]
SMALLEST = 1e-12
"""Smallest p that is computed."""


@dataclass(frozen=True, eq=False)
class Correctness:
    """Correctness of two arms on the same test images, 0 or 1."""

    runs: Floats
    """[n, N]."""
    base: Floats
    """[m, N]; with n rows in the order of the same seeds where the arms are paired."""
    is_paired: bool
    labels: Ints
    """True classes of the images, [N]."""

    @property
    def gain(self) -> Floats:
        """Mean gain on each image, [N]."""
        return np.asarray(self.runs.mean(axis=0) - self.base.mean(axis=0))

    @property
    def noise(self) -> float:
        """Part of the variance of `gain` between images that is the difference between runs on one image."""
        if self.is_paired:
            return residual_variance(self.runs - self.base) / len(self.runs)
        return residual_variance(self.runs) / len(self.runs) + residual_variance(self.base) / len(self.base)


@dataclass(frozen=True)
class WithImages:
    """Estimate whose uncertainty has a second, independent part: the choice of the test images.

    The half-width of its interval is the root of the sum of squares of both parts' half-widths, so that it is never
    narrower than that of the seeds alone.

    Source: Zou and Donner 2008, Statistics in Medicine 27 (recovery of variance estimates from intervals).
    """

    estimate: Estimate
    se: float
    """Standard error of the second part, known from many images."""

    def half_width(self, level: float) -> float:
        """Return half of the width of the two-sided interval that leaves out a share `level`."""
        seeds = float(stats.t.isf(level / 2, self.estimate.df)) * self.estimate.se
        return math.hypot(seeds, float(stats.norm.isf(level / 2)) * self.se)

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval."""
        half = self.half_width(ALPHA)
        return self.estimate.difference - half, self.estimate.difference + half

    @property
    def p(self) -> float:
        """Share that the interval leaves out whose end is at zero."""
        distance = abs(self.estimate.difference)
        if distance <= 0:
            return 1.0
        if self.half_width(SMALLEST) <= distance:
            return SMALLEST
        return float(optimize.brentq(lambda level: self.half_width(level) - distance, SMALLEST, 1.0))


def residual_variance(values: Floats) -> float:
    """Return the mean square of what rows and columns leave of values [n, N]; n and N at least 2."""
    rows, columns = values.shape
    left = values - values.mean(axis=0) - values.mean(axis=1, keepdims=True) + values.mean()
    return float((left**2).sum()) / ((rows - 1) * (columns - 1))


def image_variances(parts: Sequence[Correctness], weights: Sequence[float]) -> tuple[float, float]:
    """Return the variance of a weighted sum of gains over the choice of images.

    Args:
        parts: correctness of both arms of each gain, on the same images; two runs or more in each arm.
        weights: weight of each gain; 1 for a gain, 1 and -1 for an interaction.

    Returns:
        In squared points: the variance for these very networks; the part of it that the spread over seeds does not
        have already, at least 0.
    """
    gain = sum((w * part.gain for w, part in zip(weights, parts, strict=True)), start=np.zeros(parts[0].runs.shape[1]))
    noise = sum(w**2 * part.noise for w, part in zip(weights, parts, strict=True))
    images = len(gain)
    whole = float(np.var(gain, ddof=1))
    return 1e4 * whole / images, 1e4 * max(0.0, whole - noise) / images


def correctness_of(runs: pd.DataFrame) -> tuple[Floats, Ints] | None:
    """Return the correctness [n, N] of some runs with the labels [N]; None if one has no logits, or other images."""
    found = [predictions_in(path) for path in runs.path]
    known = [own for own in found if own is not None]
    if not known or len(known) < len(found) or not all(same_images(own, known[0]) for own in known):
        return None
    return np.array([own.correct for own in known], dtype=np.float64), known[0].labels
