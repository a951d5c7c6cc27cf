"""Figure of accuracy against what a network costs on a device, with the Pareto front."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.markers import CARETDOWNBASE
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator, StrMethodFormatter
from matplotlib.transforms import ScaledTranslation

from kdbench.report.anchors import link, row_anchor
from kdbench.report.deployment.comparisons import engine_of, latency, size_of_form
from kdbench.report.deployment.forms import Form
from kdbench.report.deployment.measurement import ENGINES, MILLION, latency_of, measured, number_of
from kdbench.report.drawing import (
    COLOURS,
    GREY,
    INK,
    label_log_axis,
    legend_below,
    name_panel,
    panels,
)
from kdbench.report.figures.sheet import Mark, Sheet, count, first_of
from kdbench.report.groups import BASELINE
from kdbench.rundir.summary import KEY

MOST_FORMS = 40
MARKERS = "osD^vPX*<>dphH8"
"""Markers by the steps of compression; uncompressed networks have a circle."""
MOST_DECADES = 1.4
"""Powers of ten on a logarithmic axis up to which its ticks are dense."""
LOGARITHMIC = 3.0
"""Ratio of the largest to the smallest cost from which the axis is logarithmic."""
DEPTH, LEAST_DEPTH = 3.0, 2.0
"""Depth of the accuracy axis below the best form: so many times that of the median form, and at least so many points.
Forms below stand at its end: a network that was pruned and not trained on would leave no room for all others."""
ROUNDING = 1e-9
HEIGHT = 4.2
"""Height of a panel, inches."""
Cost = dict[int, tuple[float | None, list[float | None]]]
"""Mean cost of each form, by its id, and the cost of each of its runs."""


def draw_deployment(sheet: Sheet) -> tuple[Figure, str] | str:
    forms, cut = first_of(sheet.report.deployment.compared, MOST_FORMS, "forms")
    costs = {name: cost for name, cost in costs_of(forms).items() if any(mean for mean, _ in cost.values())}
    if not costs:
        return "no network was measured"
    figure, all_axes = panels(len(costs), sheet.width, HEIGHT)
    looks = looks_of(forms)
    floor = floor_of(forms)
    for axes, (name, cost) in zip(all_axes, costs.items(), strict=True):
        shown = [form for form in forms if cost[id(form)][0]]
        draw_front(axes, [(cost[id(form)][0] or 1.0, float(np.mean(form.accuracies))) for form in shown], floor)
        for form in shown:
            draw_form(sheet, axes, form, cost, looks[id(form)], floor, name)
        name_panel(axes, "", name, "test accuracy, %")
        set_limits(axes, shown, cost, forms, floor)
    legend_below(figure, legend_of(forms, looks, floor))
    session = forms[0].session
    where = f", measured on {session.place}" if session else ""
    some_are_below = any(is_below(form, floor) for form in forms)
    below = " Forms far below the others stand at the lower end, with an arrow; the legend has their accuracy."
    return figure, (
        f"Test accuracy against what a prediction costs{where}. Large marks are means over seeds, small ones single "
        "seeds. Colour: network and training; marker: compression. The line is the Pareto front: no form is both "
        f"cheaper and more accurate than one on it, by these means.{below if some_are_below else ''}{cut}"
    )


def costs_of(forms: Sequence[Form]) -> dict[str, Cost]:
    """Return every cost of some forms, by the name of its axis; the first is latency."""
    engine = engine_of(forms)

    def cost(means: Sequence[float | None], values: Sequence[Sequence[float | None]], scale: float = 1.0) -> Cost:
        scaled = [[None if v is None else v / scale for v in own] for own in values]
        ends = [None if mean is None else mean / scale for mean in means]
        return {id(form): (mean, own) for form, mean, own in zip(forms, ends, scaled, strict=True)}

    timed = [[latency_of(row, engine or ENGINES[0], 1) for row in form.rows] for form in forms]
    sizes = [[number_of(measured(row, "size_bytes")) for row in form.rows] for form in forms]
    macs = [[number_of(row.get(KEY.macs)) for row in form.rows] for form in forms]
    energy = [[number_of(measured(row, "energy_mj_per_image")) for row in form.rows] for form in forms]
    return {
        f"latency of one image ({engine}), ms": cost([latency(form, engine) for form in forms], timed),
        "size of the file, MB": cost([size_of_form(form) for form in forms], sizes, MILLION),
        "million multiply-accumulates": cost([form.mean(KEY.macs) for form in forms], macs, MILLION),
        "energy of one image, mJ": cost([form.mean("energy_mj_per_image", True) for form in forms], energy),
    }


def looks_of(forms: Sequence[Form]) -> dict[int, tuple[str, str]]:
    """Return colour and marker of each form, by its id: the colour says network and training, the marker the steps."""
    arms = list(dict.fromkeys(arm_of(form) for form in forms))
    steps = list(dict.fromkeys(form.identity.steps for form in forms if form.identity.steps))
    markers = {(): MARKERS[0]} | {own: MARKERS[1 + place % (len(MARKERS) - 1)] for place, own in enumerate(steps)}
    palette = [INK, *COLOURS]
    # Networks without a teacher first: the first of them is black, as baselines are in every figure.
    arms.sort(key=lambda arm: arm[-1] != BASELINE)
    colours = {arm: palette[place % len(palette)] for place, arm in enumerate(arms)}
    taken: dict[tuple[str, str], int] = {}
    for form in forms:
        look = colours[arm_of(form)], markers[form.identity.steps]
        if look in taken:  # more networks than colours, or more compressions than markers
            own = product([look[0]], MARKERS)
            look = next(free for free in (*own, *product(palette, MARKERS)) if free not in taken)
        taken[look] = id(form)
    return {form: look for look, form in taken.items()}


def arm_of(form: Form) -> tuple[Any, ...]:
    """Return network and training of a form."""
    own = form.identity
    return own.network, own.method, own.teacher, own.setting, own.role


def floor_of(forms: Sequence[Form]) -> float:
    """Return the accuracy at the lower end of the axis."""
    means = [float(np.mean(form.accuracies)) for form in forms]
    depth = max(LEAST_DEPTH, DEPTH * (max(means) - float(np.median(means))))
    shown = [form.accuracies for form, mean in zip(forms, means, strict=True) if mean >= max(means) - depth]
    return min(min(accuracies) for accuracies in shown)


def is_below(form: Form, floor: float) -> bool:
    """Return whether a form stands at the lower end of the axis, since its accuracy lies below."""
    return float(np.mean(form.accuracies)) < floor - ROUNDING


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points of (cost, accuracy) than which no other one is cheaper and as accurate, cheapest first."""
    front: list[tuple[float, float]] = []
    for cost, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or accuracy > front[-1][1]:
            front.append((cost, accuracy))
    return front


def draw_front(axes: Axes, points: Sequence[tuple[float, float]], floor: float) -> None:
    """Draw the front as steps: up to the next point, a network of this accuracy is the best that there is."""
    front = pareto_front([point for point in points if point[1] >= floor - ROUNDING])
    if front:
        axes.step(*zip(*front, strict=True), where="post", color=GREY, lw=1.2, zorder=1)


def draw_form(sheet: Sheet, axes: Axes, form: Form, cost: Cost, look: tuple[str, str], floor: float, name: str) -> None:
    """Draw the mean of a form and each of its runs, linked to its row."""
    colour, marker = look
    number = list(sheet.report.deployment.forms).index(form) + 1
    mean, values = cost[id(form)]
    accuracy = float(np.mean(form.accuracies))
    known = [
        (value, run) for value, run in zip(values, form.runs, strict=True) if value and run.accuracy >= floor - ROUNDING
    ]
    if known:
        (dots,) = axes.plot(
            [value for value, _ in known], [run.accuracy for _, run in known], marker, color=colour, ms=4.5,
            mew=0, ls="", zorder=3,
        )  # fmt: skip
        texts = [f"{form.name}, seed {run.row.get(KEY.seed)}: {run.accuracy:.2f} %, {name} {value:,.4g}"
                 for value, run in known]  # fmt: skip
        sheet.mark_points(dots, [Mark(link(row_anchor("deployment", number)), text) for text in texts])
    style = mean_style(colour, marker)
    parts = axes.plot([mean or 1.0], [max(accuracy, floor)], **style, zorder=2)
    if is_below(form, floor):
        parts += axes.plot(
            [mean or 1.0],
            [floor],
            marker=CARETDOWNBASE,
            color=colour,
            ms=6,
            ls="",
            zorder=2,
            transform=axes.transData + ScaledTranslation(0, -0.09, axes.figure.dpi_scale_trans),
        )
    text = f"{form.name}, {count(len(form.runs))}: {accuracy:.2f} %, {name} {mean:,.4g}"
    sheet.mark(row_anchor("deployment", number), text, parts)


def mean_style(colour: str, marker: str) -> dict[str, Any]:
    """Return the style of the mark of a mean: light inside, so that what lies behind is seen."""
    return {"marker": marker, "ls": "", "ms": 9, "mec": colour, "mew": 1.4, "mfc": to_rgba(colour, 0.3)}


def set_limits(axes: Axes, shown: Sequence[Form], cost: Cost, forms: Sequence[Form], floor: float) -> None:
    """Set the limits of a panel: costs of its forms, logarithmic over a wide range, and accuracies of all forms."""
    values = [v for form in shown for v in (cost[id(form)][0], *cost[id(form)][1]) if v]
    low, high = min(values), max(values)
    if high > LOGARITHMIC * low:
        axes.set_xscale("log")
        room = (high / low) ** 0.06
        axes.set_xlim(low / room, high * room)
        label_cost_axis(axes)
    else:
        room = 0.08 * (high - low or high)
        axes.set_xlim(low - room, high + room)
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.6g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    best = max(max(form.accuracies) for form in forms)
    space = 0.06 * (best - floor) or 0.5
    axes.set_ylim(floor - space, best + space)


def label_cost_axis(axes: Axes) -> None:
    """Put ticks with plain numbers on a logarithmic axis of costs, also where they span less than a power of ten."""
    low, high = axes.get_xlim()
    decades = math.log10(high / low)
    if decades >= MOST_DECADES:
        label_log_axis(axes.xaxis, most=6)
        return
    steps = (1, 1.5, 2, 3, 5, 7) if decades < 1 else (1, 2, 3, 5)
    powers = 10.0 ** np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(tick) for tick in np.outer(powers, steps).ravel() if low <= tick <= high]
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:,.4g}" for tick in ticks]))
    axes.xaxis.set_minor_locator(NullLocator())


def legend_of(forms: Sequence[Form], looks: Mapping[int, tuple[str, str]], floor: float) -> dict[str, Any]:
    """Return a handle for each form, in the order of the table, and one for the front.

    Forms below the axis have their accuracy behind their name.
    """
    handles: dict[str, Any] = {}
    for form in forms:
        colour, marker = looks[id(form)]
        accuracy = f" ({np.mean(form.accuracies):.1f}%)" if is_below(form, floor) else ""
        handles[f"{form.name}{accuracy}"] = Line2D([], [], **mean_style(colour, marker))
    handles["one seed"] = Line2D([], [], marker="o", ls="", ms=4.5, color=INK)
    handles["Pareto front"] = Line2D([], [], color=GREY, lw=1.2)
    return handles
