"""The figures at every scale: labels that can be read, and everything within the canvas."""

import re
from itertools import combinations

import numpy as np
import pytest
from matplotlib.figure import Figure

from kdbench.report.drawing import fit, label_log_axis, log_ticks, style
from kdbench.report.figures import draw_figures
from tests.report.conftest import report_of, write_group, write_run

HOSTILE = (r"_a$x_1$\mathdefault{b}", "50% of $y^2", "_hidden", "x" * 90, "many words in a name " * 5, "<b>&amp;")


def spread(center, std, seeds=3):
    return (center + std * np.linspace(-1, 1, seeds)).tolist()


def one_group(root):
    write_group(root, spread(90, 0.2), history=[0.5, 0.7, 0.8])


def one_seed(root):
    write_run(root, history=[0.5], accuracy=0.9)
    write_run(root, history=[0.5], accuracy=0.905, teacher="resnet20", method="logit")


def hostile_names(root):
    for place, student in enumerate(HOSTILE):
        write_group(root, spread(90 + place, 0.2), student=student, num_params=1000 * 2**place, history=[0.5, 0.8])
        for teacher in HOSTILE[:3]:
            write_group(
                root, spread(91 + place, 0.3), student=student, teacher=teacher, method=student, history=[0.6, 0.8],
                num_params=1000 * 2**place,
            )  # fmt: skip


def forty_settings(root):
    write_group(root, spread(90, 0.2), history=[0.5, 0.7, 0.8])
    for number in range(40):
        write_group(
            root, spread(90 + number / 20, 0.2), teacher=f"resnet{20 + number % 3}", method=f"method{number % 9}",
            method_params={"temperature": number, "alpha": 0.5}, history=[0.5, 0.7, 0.8 + number / 400],
        )  # fmt: skip


def forty_students(root):
    for number in range(40):
        size = {
            "num_params": 100_000 + 1000 * number,
            "macs": int(10 ** (5 + number / 8)),
            "student": f"student{number}",
        }
        write_group(root, spread(90 + number / 10, 0.1, 2), **size)
        write_group(root, spread(90.5 + number / 10, 0.1, 2), teacher="resnet20", method="logit", **size)


def a_method_that_predicts(root):
    write_group(root, spread(90, 0.2), num_params=1000, macs=2000)
    sizes = {"num_params": 1000, "macs": 2000, "inference_params": 1500, "inference_macs": 2500}
    write_group(root, spread(91, 0.2), teacher="resnet20", method="simkd", **sizes)
    for number in range(30):
        write_group(root, spread(90.5, 0.2), teacher="resnet20", method=f"m{number}", num_params=1000, macs=2000)


def equal_sizes(root):
    for student in ("one", "other", "third"):
        write_group(root, spread(90, 0.1), student=student, num_params=1000, macs=2000)
        write_group(root, spread(90, 0.1), student=student, num_params=1000, macs=2000, teacher="t", method="logit")


def nearly_equal_values(root):
    write_group(root, spread(90, 1e-4), history=[0.9, 0.90001])
    write_group(root, spread(90.00001, 1e-4), teacher="resnet20", method="logit", history=[0.9, 0.90002])


def identical_values(root):
    write_group(root, (90.0,) * 3)
    write_group(root, (90.0,) * 3, teacher="resnet20", method="logit")


def wide_values(root):
    write_group(root, spread(50, 40), history=np.linspace(0.1, 0.9, 200).tolist())
    write_group(root, spread(45, 40), teacher="resnet20", method="logit", history=np.linspace(0, 1, 200).tolist())


def controls(root):
    write_group(root, spread(90, 0.2), history=[0.5, 0.8])
    write_group(root, spread(90.2, 0.2), method="label_smoothing", role="control", history=[0.5, 0.8])
    write_group(root, spread(90.4, 0.2), method="logit", teacher="resnet20", history=[0.5, 0.8])
    write_run(root, method="checkpoint", seed=None, init_seed=None, data_seed=None)


EVERY_DAY = (identical_values,)
SLOW = (
    nearly_equal_values,
    one_seed,
    one_group,
    hostile_names,
    forty_settings,
    forty_students,
    equal_sizes,
    a_method_that_predicts,
    wide_values,
    controls,
)
SCALES = [*EVERY_DAY, *(pytest.param(write, marks=pytest.mark.slow) for write in SLOW)]


def visible_labels(axis):
    """Return the labels of ticks within the limits: matplotlib keeps others, and does not draw them."""
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()) if low <= tick.get_loc() <= high]
    return [tick.label1 for tick in ticks if tick.label1.get_visible() and tick.label1.get_text()]


def is_inside(box, canvas):
    return canvas.x0 <= box.x0 and box.x1 <= canvas.x1 and canvas.y0 <= box.y0 and box.y1 <= canvas.y1


def texts_of(axes):
    return [text for text in (axes.title, axes.xaxis.label, axes.yaxis.label) if text.get_text()]


def check_axis(axis):
    labels = visible_labels(axis)
    texts = [label.get_text() for label in labels]
    boxes = [label.get_window_extent() for label in labels]
    assert labels
    # A number that matplotlib formats holds neither; names of students and methods may, and are shown as they are.
    assert not [text for text in texts if re.search(r"[\\$]", text) and not re.search(r"x_1|y\^2", text)]
    assert not [texts for a, b in combinations(boxes, 2) if a.overlaps(b)]
    assert not axis.get_offset_text().get_text()
    return boxes


@pytest.mark.parametrize("write", SCALES)
def test_labels_can_be_read_and_everything_is_within_the_canvas(write, tmp_path):
    write(tmp_path)
    with style():
        drawings, _ = draw_figures(report_of(tmp_path))
        for drawing in drawings:
            figure = drawing.figure
            figure.draw_without_rendering()
            panels = [axes for axes in figure.axes if axes.axison]
            legends = [legend for legend in (*figure.legends, *(a.get_legend() for a in panels)) if legend]
            boxes = [box for axes in panels for axis in (axes.xaxis, axes.yaxis) for box in check_axis(axis)]
            boxes += [text.get_window_extent() for a in panels for text in texts_of(a)]
            boxes += [legend.get_window_extent() for legend in legends]
            assert all(is_inside(box, figure.bbox.padded(1)) for box in boxes), drawing.name
            covered = [axes for axes in panels for legend in legends if legend.get_window_extent().overlaps(axes.bbox)]
            assert not covered, drawing.name
            assert all(axes.bbox.height > 1.2 * figure.dpi for axes in panels), drawing.name
            ends = [(axes.dataLim.intervalx, axes.get_xlim()) for axes in panels if axes.has_data()]
            assert all(low <= first and last <= high for (first, last), (low, high) in ends), drawing.name


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_shown_as_it_is_or_cut(name):
    with style():
        shown = fit(name, inches=2, lines=2)
        text = Figure().text(0, 0, shown)
        widest = text.get_window_extent().width / text.figure.dpi
    assert "".join(name.split()).startswith("".join(shown.removesuffix("…").split()))
    assert len(shown.split("\n")) <= 2
    assert widest <= 2.05
    assert not shown.startswith("_")


@pytest.mark.parametrize("decades", [0.05, 0.3, 0.7, 1, 1.5, 2, 2.9, 3, 5, 12])
@pytest.mark.parametrize("low", [0.0123, 1, 777])
def test_a_logarithmic_axis_has_a_few_round_ticks(low, decades):
    ticks = log_ticks(low, low * 10**decades)
    assert 3 <= len(ticks) <= 7
    assert all(low <= tick <= low * 10**decades for tick in ticks)
    assert all(len(f"{tick:.5g}".replace(".", "").strip("0").split("e")[0]) <= 4 for tick in ticks)


@pytest.mark.parametrize(("low", "high"), [(0.2, 7), (90, 94), (2, 900_000), (1e-5, 1e-4)])
def test_labels_of_a_logarithmic_axis_are_plain_numbers_that_do_not_overlap(low, high):
    with style():
        figure = Figure(figsize=(5, 3), layout="constrained")
        axes = figure.subplots()
        axes.plot([low, high], [low, high])
        axes.set(xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            label_log_axis(axis)
        figure.draw_without_rendering()
        for axis in (axes.xaxis, axes.yaxis):
            check_axis(axis)
