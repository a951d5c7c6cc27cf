"""The figure of accuracy against costs."""

import dataclasses
import re

import numpy as np
import pytest
from matplotlib.text import Text

from kdbench.report.drawing import NARROW, WIDE, style
from kdbench.report.figures.deployment import floor_of, looks_of, pareto_front
from kdbench.report.figures.save import draw_figure, draw_figures
from kdbench.report.figures.sheet import Sheet, choose_looks
from tests.report.conftest import report_of, write_group
from tests.report.deployment.writing import INT8, write_compressed, write_measured, write_study, write_trained
from tests.report.test_figures import HOSTILE, check_figure, marks_of


def drawing_of(report, width=WIDE):
    with style():
        drawing = draw_figure("deployment", Sheet(report, width, choose_looks(report)))
        drawing.figure.draw_without_rendering()
    return drawing


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    write_study(root, energy=True)
    return report_of(root)


@pytest.mark.slow
@pytest.mark.parametrize("width", [WIDE, NARROW], ids=lambda width: width.name)
def test_labels_can_be_read_and_everything_is_within_the_canvas(study, width):
    with style():
        drawing = drawing_of(study, width)
        check_figure(drawing.figure)
        low, high = zip(*(axes.get_ylim() for axes in drawing.figure.axes), strict=True)
    assert len(drawing.figure.axes) == 4
    assert len(set(low)) == len(set(high)) == 1
    assert all(axes.get_xscale() == "log" for axes in drawing.figure.axes)
    assert all(len(axes.get_xticks()) >= 3 for axes in drawing.figure.axes)


@pytest.mark.slow
@pytest.mark.parametrize("width", [WIDE, NARROW], ids=lambda width: width.name)
def test_hostile_names_and_equal_costs_can_be_read(width, tmp_path):
    for student in HOSTILE:
        run = write_trained(tmp_path, student, 0, 0.9, run_key=f"key{HOSTILE.index(student)}")
        write_measured(tmp_path, run, ms=0.5, size=99_000)
        write_measured(tmp_path, write_compressed(tmp_path, run, INT8, 0.9), ms=0.5, size=99_000)
    with style():
        check_figure(drawing_of(report_of(tmp_path), width).figure)


def test_every_form_has_a_mean_and_each_seed_in_each_panel(study):
    drawing = drawing_of(study)
    forms = study.deployment.compared
    table = study.deployment.table
    floor = floor_of(forms)
    assert 80 < floor < 86
    for column, scale, axes in zip(
        ("onnx_ms", "size_bytes", "macs", "energy_mj_per_image"), (1, 1e6, 1e6, 1), drawing.figure.axes, strict=True
    ):
        places = sorted(tuple(line.get_xydata()[0]) for line in axes.lines if line.get_markersize() == 9)
        expected = sorted(zip(table[column] / scale, np.maximum(table.form_mean, floor), strict=True))
        assert np.allclose(places, expected)
    seeds = list(drawing.points.values())
    shown = [form for form in forms if np.mean(form.accuracies) >= floor - 1e-9]
    assert len(seeds) == 4 * len(shown)
    assert all(len(marks) == 3 for marks in seeds)
    assert {mark.href for mark in marks_of(drawing)} == {f"#deployment-{n}" for n in range(1, len(forms) + 1)}
    assert "stand at the lower end" in drawing.caption


def test_each_form_has_a_look_and_a_name_of_its_own_in_the_legend(study):
    (legend,) = drawing_of(study).figure.legends
    names = [text.get_text().replace("\n", " ") for text in legend.findobj(Text)]
    assert "resnet32 teacher, structured 0.9 (29.3%)" in names
    names = [re.sub(r" \(\d\d\.\d%\)$", "", name) for name in names]
    assert {form.name for form in study.deployment.compared} | {"one seed", "Pareto front"} == set(filter(None, names))
    looks = [(line.get_marker(), line.get_markeredgecolor()) for line in legend.get_lines()[:-2]]
    assert len(set(looks)) == len(looks) == 12


def test_forms_beyond_the_number_of_colours_and_markers_have_looks_of_their_own(tmp_path):
    for number in range(12):
        run = write_trained(tmp_path, f"student{number}", 0, 0.9, run_key=f"key{number}")
        write_measured(tmp_path, run, ms=1 + number, size=1000)
        step = {"name": "structured", "ratio": 0.1 + number / 20}
        write_measured(tmp_path, write_compressed(tmp_path, run, step, 0.9), ms=1 + number, size=1000)
    looks = looks_of(report_of(tmp_path).deployment.compared)
    assert len(looks) == len(set(looks.values())) == 24


def test_no_form_is_cheaper_and_more_accurate_than_the_front(study):
    for axes in drawing_of(study).figure.axes:
        (front,) = [line for line in axes.lines if len(line.get_xdata()) > 1 and line.get_marker() in ("None", "")]
        corners = front.get_xydata()
        means = [line.get_xydata()[0] for line in axes.lines if line.get_markersize() == 9]
        for cost, accuracy in means:
            reached = [y for x, y in corners if x <= cost * (1 + 1e-9)]
            assert not reached or max(reached) >= accuracy - 1e-9 or accuracy < corners[0][1]


def test_the_front_leaves_out_what_is_beaten():
    assert pareto_front([(1, 5), (2, 4), (2, 7), (3, 7), (0.5, 1)]) == [(0.5, 1), (1, 5), (2, 7)]
    assert pareto_front([]) == []


def test_costs_that_were_not_measured_have_no_panel_and_torch_stands_in_for_onnx(tmp_path):
    entry = {"median_ms": 2.0, "low_ms": 2.0, "high_ms": 2.0, "images_per_second": 500.0}
    for seed in range(2):
        run = write_trained(tmp_path, "resnet8", seed, 0.9 + seed / 100)
        write_measured(tmp_path, run, ms=1, size=10, latency={"onnx": None, "torch": {"1": entry}})
    axes = drawing_of(report_of(tmp_path)).figure.axes
    assert [panel.get_xlabel() for panel in axes] == [
        "latency of one image (torch), ms", "size of the file, MB", "million multiply-accumulates",
    ]  # fmt: skip
    assert all(panel.get_xscale() == "linear" for panel in axes)


def test_a_report_without_such_networks_neither_has_the_figure_nor_misses_it(tmp_path):
    write_group(tmp_path, (90, 91))
    with style():
        drawings, left_out = draw_figures(report_of(tmp_path), WIDE)
    assert "deployment" not in {drawing.name for drawing in drawings}
    assert not [line for line in left_out if "device" in line]


def test_networks_that_were_not_measured_have_no_figure(tmp_path):
    write_compressed(tmp_path, write_trained(tmp_path, "resnet8", 0, 0.9), INT8, 0.8)
    report = report_of(tmp_path)
    assert drawing_is_missing(report) == "no figure “Accuracy against the cost on a device”: no network was measured"
    assert dataclasses.asdict(report)["margin"] == report.margin


def drawing_is_missing(report):
    return draw_figure("deployment", Sheet(report, WIDE, choose_looks(report)))
