"""Figure of the agreement of all models with each other."""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from kdbench.report.drawing import LINE, SMALL, fit, fit_ends, round_ticks, width_of
from kdbench.report.figures.sheet import Sheet
from kdbench.report.functional.matrix import AgreementMatrix
from kdbench.report.gains import group_by

MOST_MODELS, MOST_GROUPS = 40, 60
"""Largest number of models that are drawn one by one, and of groups that are drawn by their means."""
COLOUR_MAP = "cividis"
LIGHT, DARK = "#fefefe", "#010101"
"""Colours of the values, which the page does not change as it does with ink and paper."""


def draw_matrix(sheet: Sheet) -> tuple[Figure, str] | str:
    matrix = sheet.report.functional.matrix
    if matrix is None:
        return "fewer than two runs have logits of the same images"
    if len(matrix.models) <= MOST_MODELS:
        names = [model.name for model in matrix.models]
        values, what = matrix.values, "every model with every other"
    else:
        values, names = mean_by_group(matrix)
        models = f"all {len(matrix.models)} models: the CSV file"
        what = f"teachers, and groups of other models, means over pairs of different models ({models})"
    cut = f" The first {MOST_GROUPS} of {len(names)} are shown." if len(names) > MOST_GROUPS else ""
    values, names = 100 * values[:MOST_GROUPS, :MOST_GROUPS], names[:MOST_GROUPS]
    figure = draw_cells(sheet, values, names)
    where = "The numbers below count the rows from above. " if sheet.width.columns > 1 else "Names of the rows: below. "
    return figure, (
        f"Test images on which both predict the same class, per cent: {what}. {where}Models are in the order of the "
        f"table Groups, then other teachers. File: agreement_matrix.csv.{cut}"
    )


def mean_by_group(matrix: AgreementMatrix) -> tuple[np.ndarray, list[str]]:
    """Return the mean agreement between the models of each two groups, and the groups' names.

    Within a group, a model is not compared with itself; a group of one model has no such value. Teachers stand one by
    one: their students agree with their own teacher, not with the mean of several.
    """
    members = group_by(
        list(enumerate(matrix.models)), lambda item: (item[1].group, item[0] if item[1].is_teacher else None)
    )
    places = [[place for place, _ in of_group] for _, of_group in members]
    names = [
        of_group[0][1].name if teacher is not None else f"{group} ({len(of_group)})"
        for (group, teacher), of_group in members
    ]
    values = np.full((len(places), len(places)), np.nan)
    for a, rows in enumerate(places):
        for b, columns in enumerate(places):
            block = matrix.values[np.ix_(rows, columns)]
            if a != b:
                values[a, b] = block.mean()
            elif len(rows) > 1:
                values[a, b] = block[~np.eye(len(rows), dtype=bool)].mean()
    return values, names


def draw_cells(sheet: Sheet, values: np.ndarray, names: list[str]) -> Figure:
    """Draw the cells with the names of their rows: beside them, or on a narrow page as a list below."""
    count, is_wide, whole = len(names), sheet.width.columns > 1, sheet.width.inches
    beside = min(max(width_of(f"{name}  {count}", SMALL) for name in names) + 0.6, whole / 2) if is_wide else 0.5
    width = min(whole - beside - 1.1, max(2.0, 0.6 * count))
    tall = max(1.0, (0.24 if is_wide else 0.12) * count)
    listed = [] if is_wide else [fit(f"{place}  {name}", whole - 0.3, SMALL) for place, name in enumerate(names, 1)]
    below = 0.55 + LINE * sum(text.count("\n") + 1 for text in listed)
    height = tall + below + 0.25
    figure = Figure(figsize=(beside + width + 1.1, height))
    left, bottom = beside / figure.get_figwidth(), below / height
    axes = figure.add_axes((left, bottom, width / figure.get_figwidth(), tall / height))
    known = values[np.isfinite(values) & ~np.eye(count, dtype=bool)]
    scale = Normalize(float(known.min()), float(known.max())) if known.size else Normalize(0.0, 100.0)
    cells = np.ma.masked_invalid(values)
    extent = (0, count, count, 0)
    mesh = axes.imshow(cells, cmap=COLOUR_MAP, norm=scale, interpolation="none", extent=extent, aspect="auto")
    axes.grid(visible=False)
    label_rows(axes, names, (width, tall), beside if is_wide else None)
    write_values(axes, values, (width, tall), scale)
    bar_left = left + (width + 0.15) / figure.get_figwidth()
    bar = figure.add_axes((bar_left, bottom, 0.14 / figure.get_figwidth(), tall / height))
    figure.colorbar(mesh, cax=bar, ticks=round_ticks())
    bar.grid(visible=False)
    top = below - 0.5
    for text in listed:
        figure.text(0.1 / whole, top / height, text, fontsize=SMALL, va="top")
        top -= LINE * (text.count("\n") + 1)
    return figure


def label_rows(axes: Axes, names: list[str], size: tuple[float, float], beside: float | None) -> None:
    """Number rows and columns, as many as there is room for, and name the rows where there is room beside them.

    Args:
        axes: panel of the cells.
        names: names of the rows.
        size: width and height of all cells, inches.
        beside: room for names, inches; None: there is none.
    """
    every = [max(1, math.ceil(least / (inches / len(names)))) for inches, least in zip(size, (0.26, 0.18), strict=True)]
    columns, rows = (list(range(0, len(names), step)) for step in every)
    axes.set_xticks([place + 0.5 for place in columns], [str(place + 1) for place in columns], fontsize=SMALL)
    texts = [str(place + 1) if beside is None else f"{names[place]}  {place + 1}" for place in rows]
    fitted = texts if beside is None else [fit_ends(text, beside - 0.5, SMALL) for text in texts]
    axes.set_yticks([place + 0.5 for place in rows], fitted, fontsize=SMALL)
    axes.tick_params(length=0)


def write_values(axes: Axes, values: np.ndarray, size: tuple[float, float], scale: Normalize) -> None:
    """Write the value into each cell, where all fit."""
    if size[0] / len(values) < width_of("00", SMALL) + 0.06 or size[1] / len(values) < LINE:
        return
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = LIGHT if scale(value) < 0.5 else DARK
            axes.text(column + 0.5, row + 0.5, f"{value:.0f}", ha="center", va="center", fontsize=SMALL, color=colour)
