"""Parts of figures: style, text that fits, axes with few and readable ticks, legends outside the axes."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
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

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#c0699a", "#b87d00", "#3d97cc", "#8c613c")
"""After Okabe and Ito (2008), distinguishable with any colour vision; the light ones are darker, so that each has a
contrast of 3 with white and with the dark page."""
INK, PAPER, GREY, BAND = "#000000", "#ffffff", "#8a8a8a", "#808080"
"""Text, axes and baselines; background; what is not highlighted; the band of equivalence."""
MARKERS = "sD^vPX*"
DASHES: Sequence[Any] = ("-", (0, (5, 1.5)), (0, (5, 1.5, 1, 1.5)), (0, (1.5, 1.2)))
TEXT, SMALL = 10, 9
"""Font sizes, points; a point is 4/3 pixels on the page."""
LINE = 0.19
"""Height of a line of text, inches."""


@dataclass(frozen=True)
class Width:
    """Width for which figures are drawn."""

    name: str
    inches: float
    columns: int
    """Largest number of panels beside each other."""
    panel: float
    """Largest width of a panel, inches."""


WIDE, NARROW = Width("wide", 12.25, 3, 7.0), Width("narrow", 3.7, 1, 3.7)
"""Widths of the page, 1180 pixels, and of a telephone; at 96 pixels per inch."""
PANEL_HEIGHT = 3.4
"""Height of a panel, inches."""
STYLE: Any = {
    "font.family": ["DejaVu Sans"],  # comes with matplotlib; a list of fonts would be searched for each text
    "font.size": TEXT,
    "figure.facecolor": PAPER,
    "axes.titlesize": 11,
    "figure.constrained_layout.w_pad": 0.08,
    "figure.constrained_layout.h_pad": 0.08,
    "axes.facecolor": "none",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": SMALL,
    "legend.handlelength": 3.0,
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


def fit_ends(text: str, inches: float, size: float = TEXT) -> str:
    """Return a text in one line of a given width, with an ellipsis in its middle if it is too wide.

    For names that may differ in their ends alone.
    """
    text = printable(text)
    fitted, kept = text, len(text)
    while width_of(fitted, size) > inches and kept > 2:
        kept -= 1
        fitted = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    return fitted


def split_word(word: str, inches: float, size: float) -> list[str]:
    """Return the pieces of a word that is wider than a line, or the word."""
    pieces = [""]
    for character in word:
        if pieces[-1] and width_of(pieces[-1] + character, size) > inches:
            pieces.append("")
        pieces[-1] += character
    return pieces


def panels(count: int, width: Width, height: float = PANEL_HEIGHT) -> tuple[Figure, list[Axes]]:
    """Return a figure with some panels, as many beside each other as the width allows."""
    rows = -(-count // width.columns)
    columns = -(-count // rows)
    inches = min(width.panel, width.inches / columns)
    figure = Figure(figsize=(inches * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def panel_inches(axes: Axes) -> float:
    """Return the width of a panel with its labels, inches."""
    figure, place = axes.figure, axes.get_subplotspec()
    assert isinstance(figure, Figure)
    assert place is not None
    return float(figure.get_figwidth()) / place.get_gridspec().ncols


def name_panel(axes: Axes, title: str, xlabel: str, ylabel: str, integer: bool = False) -> None:
    """Give a panel its title, the names of its linear axes, and few enough ticks for long numbers."""
    inches = panel_inches(axes)
    axes.set_title(fit(title, inches - 0.9, STYLE["axes.titlesize"]))
    axes.set_xlabel(fit(xlabel, inches - 0.9))
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(round_ticks(integer, 6 if inches > 4 else 4))
    axes.yaxis.set_major_locator(round_ticks())


def hide_vertical_axis(axes: Axes) -> None:
    """Take away the vertical axis of a panel whose rows have labels of their own."""
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def round_ticks(integer: bool = False, most: int = 6) -> MaxNLocator:
    """Return a locator of ticks at round numbers, few enough for numbers of eight digits on a panel's axis."""
    return MaxNLocator(most, integer=integer, steps=[1, 2, 2.5, 5, 10])


def columns_and_lines(labels: Sequence[str], inches: float) -> tuple[int, int]:
    """Return how many columns a legend can have in a given width, and how many lines it then has."""
    entry = max(width_of(label, SMALL) for label in labels) + 0.8  # handle, and space between columns
    columns = max(1, min(4, len(labels), int(inches / entry)))
    return columns, -(-len(labels) // columns) * max(label.count("\n") + 1 for label in labels)


def legend_height(lines: int) -> float:
    return LINE * lines + 0.15


def legend_below(figure: Figure, handles: Mapping[str, Any]) -> None:
    """Put a legend below all panels, in room of its own."""
    inches = figure.get_figwidth() - 0.3
    labels = [fit(label, min(inches - 0.9, 4.0), SMALL, lines=3) for label in handles]
    columns, lines = columns_and_lines(labels, inches)
    figure.set_figheight(figure.get_figheight() + legend_height(lines))
    figure.legend(list(handles.values()), labels, loc="outside lower center", ncols=columns)


def panel_legends_below(
    figure: Figure, panel_handles: Sequence[tuple[Axes, Mapping[str, Any]]], below: float = 0.5
) -> None:
    """Put a legend below each panel, in room of its own.

    Args:
        figure: the figure.
        panel_handles: panels with the labels and handles of their legends.
        below: distance from the lower end of the axes, which labels of ticks and axis fill, inches.
    """
    heights = dict[int, float]()
    for axes, handles in panel_handles:
        inches = panel_inches(axes) - 0.7
        labels = [fit(label, inches - 0.7, SMALL, lines=3) for label in handles]
        columns, lines = columns_and_lines(labels, inches)
        corner = axes.transAxes + ScaledTranslation(0, -below, figure.dpi_scale_trans)
        axes.legend(
            list(handles.values()), labels, loc="upper left", ncols=columns, bbox_to_anchor=(0, 0),
            bbox_transform=corner, borderaxespad=0,
        )  # fmt: skip
        place = axes.get_subplotspec()
        assert place is not None
        row = place.rowspan.start
        heights[row] = max(heights.get(row, 0.0), legend_height(lines) + below - 0.5)
    figure.set_figheight(figure.get_figheight() + sum(heights.values()))


def label_log_axis(axis: Axis, most: int = 7) -> None:
    """Put few ticks with plain numbers on a logarithmic axis whose limits are set."""
    low, high = sorted(axis.get_view_interval())
    ticks = log_ticks(low, high)
    ticks = ticks[:: -(-len(ticks) // most)]
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


LEVELS = 3
"""Largest number of rows of labels below an axis of sizes."""


def label_sizes(axes: Axes, students: Mapping[str, float]) -> int:
    """Label the places of students on an axis of log10(size) with their names and sizes.

    Labels that would overlap stand in rows below each other; where three rows are too few, the nearest students share a
    label, with the name of the smallest.

    Args:
        axes: panel with its limits set.
        students: size of each.

    Returns:
        The number of rows.
    """
    inches, number = panel_inches(axes), EngFormatter(places=1)
    low, high = axes.get_xlim()
    per_inch = (high - low) / (inches - 1.0)
    clusters = [([name], [math.log10(size)]) for name, size in sorted(students.items(), key=lambda item: item[1])]

    def label(names: Sequence[str], at: Sequence[float]) -> str:
        first = fit(names[0], min(1.5, inches / 3), SMALL, lines=1)
        return f"{first}\n" + (f"and {len(names) - 1} more" if len(names) > 1 else number(10 ** at[0]))

    while True:
        places = [float(np.mean(at)) / per_inch for _, at in clusters]
        labels = [label(names, at) for names, at in clusters]
        levels = stack(places, [width_of(text, SMALL) + 0.12 for text in labels])
        if max(levels) < LEVELS or len(clusters) == 1:
            break
        nearest = int(np.argmin(np.diff(places)))
        names, at = clusters.pop(nearest + 1)
        clusters[nearest] = (clusters[nearest][0] + names, clusters[nearest][1] + at)
    axes.set_xticks([place * per_inch for place in places], [""] * len(places))
    for place, text, level in zip(places, labels, levels, strict=True):
        drop = {"arrowstyle": "-", "color": GREY, "lw": 0.5, "shrinkA": 0, "shrinkB": 0}
        axes.annotate(
            text, (place * per_inch, 0), xytext=(0, -6 - 28 * level), xycoords=axes.get_xaxis_transform(),
            textcoords="offset points", ha="center", va="top", fontsize=SMALL, arrowprops=drop if level else None,
            zorder=4 - level, bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
    axes.xaxis.labelpad = 24 + 28 * max(levels)
    return max(levels) + 1


def stack(places: Sequence[float], widths: Sequence[float]) -> list[int]:
    """Return the row of each label, from 0, in which it does not overlap the one to its left; in inches."""
    ends: list[float] = []
    levels = []
    for place, width in zip(places, widths, strict=True):
        free = [level for level, end in enumerate(ends) if end <= place - width / 2]
        level = free[0] if free else len(ends)
        ends[level : level + 1] = [place + width / 2]
        levels.append(level)
    return levels
