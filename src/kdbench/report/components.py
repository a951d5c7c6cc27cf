"""Parts of the spread over seeds: first weights, order of the images, teacher, and what remains.

For runs of which every first weights were combined with every order of the images, and with every teacher where there
are several. The model: each factor, and each combination of fewer than all factors, adds a random amount; the rest is
one per run. Estimates are those of the balanced analysis of variance: a mean square for each, and differences of them
(Searle, Casella and McCulloch 1992, Variance Components, chapter 4), truncated at zero.
"""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from kdbench.report.columns import COMPONENTS, row
from kdbench.report.gains import group_by, settings
from kdbench.report.groups import METHOD, STUDENT, RunGroup
from kdbench.report.statistics import ALPHA
from kdbench.rundir.summary import KEY

FACTORS = {KEY.init_seed: "first weights", KEY.data_seed: "order of images", KEY.teacher_seed: "teacher"}
"""Columns of the factors, with their names."""
REST = "rest"


@dataclass(frozen=True)
class Component:
    """Part of the variance of single runs, in the unit of the values, squared."""

    factors: tuple[str, ...]
    """Names of the factor or of the factors that are combined; none: the rest."""
    levels: int
    """Number of values that it took."""
    df: int
    mean_square: float
    variance: float
    low: float
    high: float
    """Ends of the 95 % interval of the variance."""


def components_table(groups: Sequence[RunGroup]) -> tuple[pd.DataFrame, list[str]]:
    """Return components.csv, and a remark for each group whose runs share seeds without a complete crossing.

    Args:
        groups: groups of the report; those that differ in the teacher's seed alone are read together.
    """
    rows, remarks = [], []
    for runs, first, setting in crossings(groups):
        name = f"{first.name} (all teachers)" if len(set(runs[KEY.teacher_seed])) > 1 else first.name
        array, names = as_array(runs)
        if array is None:
            remarks.append(
                f"{name}: {len(runs)} runs share first weights, orders of images or teachers, and not every "
                "combination is there exactly once, so the parts of the spread are not computed; train the missing "
                "combinations (study=variance)"
            )
            continue
        found = variance_components(array, names)
        total = sum(component.variance for component in found)
        rows += [component_row(component, first, setting, len(runs), total) for component in found]
    return pd.DataFrame(rows, columns=COMPONENTS), remarks


def crossings(groups: Sequence[RunGroup]) -> Iterator[tuple[pd.DataFrame, RunGroup, str]]:
    """Yield runs whose seeds are crossed, with the first of their groups, and their setting."""
    for members in with_teachers_together(groups):
        runs = pd.concat([group.runs for group in members])
        seeds = [key for key in FACTORS if len(set(runs[key])) > 1]
        if runs[[KEY.init_seed, KEY.data_seed]].isna().any(axis=None) or not shares_values(runs, seeds):
            continue
        setting = members[0].setting
        if len(members) > 1:
            kept = [part for part in setting.split() if not part.startswith("teacher_")]
            setting = " ".join([*kept, f"{len(members)} teachers"])
        yield runs, members[0], setting


def with_teachers_together(groups: Sequence[RunGroup]) -> Iterator[list[RunGroup]]:
    """Yield groups that differ in the teacher's seed alone together, and each other group alone."""
    for _, members in group_by(groups, lambda group: settings(group, (*STUDENT, *METHOD))):
        teachers = {group.shared.teacher_seed for group in members}
        if None in teachers or len(teachers) < len(members):  # weights from elsewhere, or other teachers of a seed
            yield from ([group] for group in members)
        else:
            yield members


def shares_values(runs: pd.DataFrame, seeds: Sequence[str]) -> bool:
    """Return whether several seeds vary, and some runs have the same first weights or order of images as others.

    Args:
        runs: runs that differ in their seeds alone.
        seeds: columns of the seeds that vary.
    """
    return len(seeds) > 1 and any(runs[seed].value_counts().max() > 1 for seed in seeds if seed != KEY.teacher_seed)


def as_array(runs: pd.DataFrame) -> tuple[NDArray[np.float64] | None, tuple[str, ...]]:
    """Return test accuracies in per cent with an axis for each factor, and the names of the factors.

    Seeds of weights and images that always go together are one factor. None if not every combination is there once.
    """
    keys = {FACTORS[key]: runs[key].tolist() for key in FACTORS if len(set(runs[key])) > 1}
    weights, order = (keys.get(FACTORS[key]) for key in (KEY.init_seed, KEY.data_seed))
    if weights and order and len(set(zip(weights, order, strict=True))) == len(set(weights)) == len(set(order)):
        keys = {"seed": weights} | {name: values for name, values in keys.items() if name == FACTORS[KEY.teacher_seed]}
    levels = {name: {value: n for n, value in enumerate(sorted(set(values)))} for name, values in keys.items()}
    shape = tuple(len(of) for of in levels.values())
    array = np.full(shape, np.nan)
    places = list(zip(*([levels[name][value] for value in values] for name, values in keys.items()), strict=True))
    if len(set(places)) != len(places) or len(places) != math.prod(shape):
        return None, tuple(keys)
    for place, accuracy in zip(places, runs.test_acc_best, strict=True):
        array[place] = 100 * float(accuracy)
    return array, tuple(keys)


def variance_components(values: NDArray[np.float64], names: Sequence[str]) -> list[Component]:
    """Return the components of variance of a complete crossing with one value in each cell, the rest last.

    With A, B, ... the factors, the expected mean square of a set of factors T is the sum over all sets U that hold it
    of var(U) times the number of values for each combination of U; so var(T) is an alternating sum of mean squares.

    Its interval is that of Williams (1962, Biometrika 49) and Tukey: the mean square of T over what it would be without
    var(T) follows an F distribution, and over itself a chi-squared one. Where the latter is a sum of several mean
    squares, its degrees of freedom are Satterthwaite's.

    Args:
        values: an axis for each factor, each of two levels or more.
        names: name of each factor.
    """
    axes = range(values.ndim)
    subsets = [subset for size in range(1, values.ndim + 1) for subset in itertools.combinations(axes, size)]
    squares = {subset: mean_square(values, subset) for subset in subsets}
    found = []
    for subset in subsets:
        whole = len(subset) == values.ndim
        square, df = squares[subset]
        each = values.size / math.prod(values.shape[axis] for axis in subset)
        noise, noise_df = without_component(subset, squares)
        low, high = component_interval(square, df, noise, noise_df)
        found.append(
            Component(
                factors=() if whole else tuple(names[axis] for axis in subset),
                levels=math.prod(values.shape[axis] for axis in subset),
                df=df,
                mean_square=square,
                variance=max(0.0, square - noise) / each,
                low=low / each,
                high=high / each,
            )
        )
    return found


def mean_square(values: NDArray[np.float64], subset: Sequence[int]) -> tuple[float, int]:
    """Return mean square and degrees of freedom of a factor, or of factors combined without their parts."""
    effect = values
    for axis in range(values.ndim):
        average = effect.mean(axis=axis, keepdims=True)
        effect = effect - average if axis in subset else np.broadcast_to(average, effect.shape)
    df = math.prod(values.shape[axis] - 1 for axis in subset)
    return float((effect**2).sum()) / df, df


def without_component(
    subset: tuple[int, ...], squares: Mapping[tuple[int, ...], tuple[float, int]]
) -> tuple[float, float]:
    """Return what a mean square would be without its own component, from the others, and its degrees of freedom."""
    parts = [
        (-((-1) ** (len(other) - len(subset))) * square, df)
        for other, (square, df) in squares.items()
        if set(subset) < set(other)
    ]
    total = sum(part for part, _ in parts)
    if total <= 0:
        return 0.0, math.inf
    return total, total**2 / sum(part**2 / df for part, df in parts)


def component_interval(square: float, df: int, noise: float, noise_df: float) -> tuple[float, float]:
    """Return the 95 % interval of a component times the number of values for each of its levels.

    Args:
        square: mean square of the component.
        df: degrees of freedom.
        noise: mean square that is expected without the component; 0 for the rest.
        noise_df: degrees of freedom of it.
    """
    ends = []
    for tail in (1 - ALPHA / 2, ALPHA / 2):
        ratio = stats.f.ppf(tail, df, noise_df) if noise and math.isfinite(noise_df) else stats.chi2.ppf(tail, df) / df
        ends.append(max(0.0, df * (square - noise * ratio) / stats.chi2.ppf(tail, df)))
    return ends[0], ends[1]


def component_row(component: Component, group: RunGroup, setting: str, n: int, total: float) -> dict[str, Any]:
    """Return a row of components.csv.

    Args:
        component: part of the variance.
        group: group of the runs, or one of them.
        setting: setting of the group.
        n: number of runs.
        total: variance of a single run.
    """
    shared = group.shared
    return row(
        student=shared.student, teacher=shared.teacher, method=shared.method, role=shared.role, setting=setting, n=n,
        factor=" x ".join(component.factors) or REST, levels=component.levels, component_df=component.df,
        component=math.sqrt(component.variance), component_low=math.sqrt(component.low),
        component_high=math.sqrt(component.high), share=100 * component.variance / total if total else math.nan,
    )  # fmt: skip
