"""Parts of figures: style, text that fits, axes with few and readable ticks, legends outside the axes."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import EngFormatter, FixedFormatter, FixedLocator, MaxNLocator, NullLocator
from matplotlib.transforms import ScaledTranslation

from kdbench.errors import printable

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c613c", "#000000")
"""Distinguishable with any colour vision (Okabe and Ito 2008); black, the last, is the baseline's."""
MARKERS = "osD^vPX*"
DASHES = ("-", "--", "-.", ":")
TEXT, SMALL = 10, 8
"""Font sizes, points."""
PANEL = (5.2, 3.7)
"""Width and height of a panel, inches."""
STYLE: Any = {
    "font.size": TEXT,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    "svg.hashsalt": "kdbench",
    "svg.fonttype": "path",
    "text.parse_math": False,  # `$` in a name is a dollar sign
}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Draw and save figures in the report's style. A character that the font lacks is drawn as a box."""
    with matplotlib.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


@lru_cache(maxsize=4096)
def advance(character: str) -> float:
    """Return the width of a character, in units of the font size."""

    def width(text: str) -> float:
        return float(TextPath((0, 0), text, size=100).get_extents().width)

    with style():
        return (width(f"|{character}|") - width("||")) / 100


def width_of(text: str, size: float = TEXT) -> float:
    """Return the width of the widest line of a text, inches."""
    return max(sum(map(advance, line)) for line in text.split("\n")) * size / 72


def fit(text: str, inches: float, size: float = TEXT, lines: int = 2) -> str:
    """Return a text broken into lines of a given width, and cut with an ellipsis if these are too few.

    A leading underscore, which would hide a label from matplotlib's legends, stands behind a space.
    """
    rows, cut = [""], False
    for word in printable(text).split(" "):
        for number, piece in enumerate(split_word(word, inches, size)):
            joined = f"{rows[-1]} {piece}" if rows[-1] else piece
            if number == 0 and width_of(joined, size) <= inches:
                rows[-1] = joined
            else:
                rows.append(piece)
    if len(rows) > lines:
        rows, cut = rows[:lines], True
    while cut and rows[-1] and width_of(f"{rows[-1]}…", size) > inches:
        rows[-1] = rows[-1][:-1]
    fitted = "\n".join(rows) + ("…" if cut else "")
    return f" {fitted}" if fitted.startswith("_") else fitted


def split_word(word: str, inches: float, size: float) -> list[str]:
    """Return the pieces of a word that is wider than a line, or the word."""
    pieces = [""]
    for character in word:
        if pieces[-1] and width_of(pieces[-1] + character, size) > inches:
            pieces.append("")
        pieces[-1] += character
    return pieces


def panels(count: int) -> tuple[Figure, list[Axes]]:
    """Return a figure with some panels, at most two beside each other."""
    columns = min(2, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def name_panel(axes: Axes, title: str, xlabel: str, ylabel: str, integer: bool = False) -> None:
    """Give a panel its title, the names of its linear axes, and few enough ticks for long numbers."""
    axes.set_title(fit(title, PANEL[0] - 1.2, STYLE["axes.titlesize"]))
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(round_ticks(integer))
    axes.yaxis.set_major_locator(round_ticks())


def round_ticks(integer: bool = False) -> MaxNLocator:
    """Return a locator of ticks few enough for numbers of eight digits on a panel's horizontal axis."""
    return MaxNLocator(6, integer=integer, steps=[1, 2, 2.5, 5, 10])


def columns_and_lines(labels: Sequence[str], inches: float) -> tuple[int, int]:
    """Return how many columns a legend can have in a given width, and how many lines it then has."""
    entry = max(width_of(label, SMALL) for label in labels) + 0.65  # handle, and space between columns
    columns = max(1, min(4, len(labels), int(inches / entry)))
    return columns, -(-len(labels) // columns) * max(label.count("\n") + 1 for label in labels)


def legend_height(lines: int) -> float:
    return 0.17 * lines + 0.15


def legend_below(figure: Figure, handles: Mapping[str, Any]) -> None:
    """Put a legend below all panels, in room of its own."""
    inches = figure.get_figwidth() - 0.3
    labels = [fit(label, min(inches - 0.7, 4.0), SMALL) for label in handles]
    columns, lines = columns_and_lines(labels, inches)
    figure.set_figheight(figure.get_figheight() + legend_height(lines))
    figure.legend(list(handles.values()), labels, loc="outside lower center", ncols=columns)


def panel_legends_below(figure: Figure, panel_handles: Sequence[tuple[Axes, Mapping[str, Any]]]) -> None:
    """Put a legend below each panel, in room of its own."""
    inches, heights = PANEL[0] - 0.9, dict[int, float]()
    for axes, handles in panel_handles:
        labels = [fit(label, inches - 0.5, SMALL) for label in handles]
        columns, lines = columns_and_lines(labels, inches)
        below = axes.transAxes + ScaledTranslation(0, -0.5, figure.dpi_scale_trans)
        axes.legend(
            list(handles.values()), labels, loc="upper left", ncols=columns, bbox_to_anchor=(0, 0),
            bbox_transform=below, borderaxespad=0,
        )  # fmt: skip
        row = axes.get_subplotspec().rowspan.start  # type: ignore[union-attr]  # panels are subplots
        heights[row] = max(heights.get(row, 0.0), legend_height(lines))
    figure.set_figheight(figure.get_figheight() + sum(heights.values()))


def label_log_axis(axis: Axis) -> None:
    """Put few ticks with plain numbers on a logarithmic axis whose limits are set."""
    low, high = sorted(axis.get_view_interval())
    ticks = log_ticks(low, high)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FixedFormatter([f"{tick:,.0f}" if tick >= 1e5 else f"{tick:,.5g}" for tick in ticks]))
    axis.set_minor_locator(NullLocator())


def log_ticks(low: float, high: float) -> list[float]:
    """Return three to seven round numbers between two numbers above 0, spread over a logarithmic axis."""
    decades = math.log10(high / low)
    powers = 10.0 ** np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    if decades < 1:
        ticks = np.asarray(MaxNLocator(7, min_n_ticks=3, steps=[1, 2, 5, 10]).tick_values(low, high))
    elif decades < 3:
        ticks = np.outer(powers, (1, 2, 5) if decades < 2 else (1, 3)).ravel()
    else:
        ticks = powers[:: math.ceil(decades / 6)]
    return [float(tick) for tick in ticks if low <= tick <= high]


def label_sizes(axes: Axes, students: Mapping[str, float]) -> bool:
    """Label the places of students on an axis of log10(size) with their names and sizes.

    Labels that would overlap stand upright; students too near for that share a label, with the name of the smallest.

    Args:
        axes: panel with its limits set.
        students: size of each.

    Returns:
        Whether the labels stand upright.
    """
    low, high = axes.get_xlim()
    per_inch = (high - low) / (PANEL[0] - 1.0)
    number = EngFormatter(places=1)
    clusters = [([name], [math.log10(size)]) for name, size in sorted(students.items(), key=lambda item: item[1])]
    labels = [f"{fit(names[0], 1.3, lines=1)}\n{number(10 ** at[0])}" for names, at in clusters]
    gaps = [(b[1][0] - a[1][0]) / per_inch for a, b in pairwise(clusters)]
    needed = [(width_of(a) + width_of(b)) / 2 + 0.1 for a, b in pairwise(labels)]
    upright = any(gap < need for gap, need in zip(gaps, needed, strict=True))
    while upright and len(clusters) > 1:
        centres = [float(np.mean(at)) for _, at in clusters]
        nearest = int(np.argmin(np.diff(centres)))
        if centres[nearest + 1] - centres[nearest] >= 0.2 * per_inch:
            break
        names, at = clusters.pop(nearest + 1)
        clusters[nearest] = (clusters[nearest][0] + names, clusters[nearest][1] + at)
    if upright:
        labels = []
        for names, at in clusters:
            rest = f" and {len(names) - 1} more" if len(names) > 1 else f" ({number(10 ** at[0])})"
            labels.append(fit(names[0], 1.0, lines=1) + rest)
    axes.set_xticks([float(np.mean(at)) for _, at in clusters], labels, rotation=90 if upright else 0)
    return upright
