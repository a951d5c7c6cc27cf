"""Parts of the spread: balanced analysis of variance, against REML and against simulated truth."""

import itertools
import warnings

import numpy as np
import pandas as pd
import pytest
from statsmodels.regression.mixed_linear_model import MixedLM

from kdbench.report.components import variance_components
from tests.report.conftest import report_of, write_group, write_run

FACTORS = ("first weights", "order of images", "teacher")


def simulate(rng, shape, stds, rest):
    """Return values [levels of each factor] with an effect of each factor and a rest."""
    values = rng.normal(scale=rest, size=shape)
    for axis, std in enumerate(stds):
        effect = rng.normal(scale=std, size=shape[axis])
        values = values + effect.reshape([-1 if n == axis else 1 for n in range(len(shape))])
    return values


def write_crossing(root, values, **others):
    """Write a run for each cell of an array [init, data] or [teacher, init, data] of accuracies in per cent."""
    for place in itertools.product(*map(range, values.shape)):
        *teacher, init, data = place
        teachers = {"teacher_seed": teacher[0], "teacher": "resnet20", "method": "logit"} if teacher else {}
        seeds = {"init_seed": init, "data_seed": data}
        write_run(root, accuracy=values[place] / 100, **seeds, **teachers, **others)


def test_a_table_computed_by_hand():
    # Rows differ by 2 throughout, columns do not: MS of rows 2 * 3 * 1 = 6 (df 1), all others 0.
    rows, columns, rest = variance_components(np.array([[1.0, 1.0, 1.0], [3.0, 3.0, 3.0]]), FACTORS[:2])
    assert (rows.mean_square, rows.df, rows.variance) == (pytest.approx(6.0), 1, pytest.approx(2.0))
    assert (columns.variance, rest.variance) == (0, 0)
    assert (rest.factors, rest.df) == ((), 2)


def test_estimates_equal_those_of_restricted_maximum_likelihood():
    values = simulate(np.random.default_rng(3), (6, 5), (1.0, 0.6), 0.5)
    found = [component.variance for component in variance_components(values, FACTORS[:2])]
    assert min(found) > 0  # where one is truncated the two differ
    a, b = np.meshgrid(range(6), range(5), indexing="ij")
    data = pd.DataFrame({"y": values.ravel(), "a": a.ravel(), "b": b.ravel(), "all": 1})
    parts = {"a": "0 + C(a)", "b": "0 + C(b)"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = MixedLM.from_formula("y ~ 1", groups="all", re_formula="0", vc_formula=parts, data=data).fit(reml=True)
    assert found == pytest.approx([*fit.vcomp, fit.scale], rel=0.01)


def test_estimates_are_unbiased_where_nothing_is_truncated_and_combinations_matter():
    rng, found = np.random.default_rng(0), []
    for _ in range(600):
        values = simulate(rng, (3, 4, 3), (3.0, 3.0, 3.0), 1.0)
        values = values + rng.normal(scale=1.0, size=(3, 4, 1))  # first weights x order
        found.append([component.variance for component in variance_components(values, FACTORS)])
    init, data, teacher, init_data, *_, rest = np.mean(found, axis=0)
    assert (init, data, teacher) == pytest.approx((9, 9, 9), rel=0.15)
    assert init_data == pytest.approx(1, rel=0.15)
    assert rest == pytest.approx(1, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("stds", [(1.0, 0.5), (0.3, 0.0), (0.0, 0.0)])
@pytest.mark.parametrize("levels", [3, 6])
def test_intervals_hold_the_true_part_at_least_as_often_as_they_say(stds, levels):
    rng, held = np.random.default_rng(1), np.zeros(3)
    for _ in range(1000):
        found = variance_components(simulate(rng, (levels, levels), stds, 0.5), FACTORS[:2])
        held += [c.low <= std**2 <= c.high for c, std in zip(found, (*stds, 0.5), strict=True)]
    assert (held / 1000 > 0.93).all()
    assert held[2] / 1000 < 0.97


def test_runs_of_every_first_weights_with_every_order_have_components(tmp_path):
    values = 60 + simulate(np.random.default_rng(0), (3, 3), (1.0, 0.2), 0.3)
    write_crossing(tmp_path, values)
    report = report_of(tmp_path)
    table = report.components
    assert table.factor.tolist() == ["first weights", "order of images", "rest"]
    assert (table.n == 9).all()
    assert table.levels.tolist() == [3, 3, 9]
    assert table["share"].sum() == pytest.approx(100)
    assert table.component.tolist() == pytest.approx(
        [component.variance**0.5 for component in variance_components(values, FACTORS[:2])]
    )
    assert ((table.component_low <= table.component) & (table.component <= table.component_high)).all()
    assert any("no replicates" in remark for remark in report.remarks)


def test_teachers_that_differ_in_their_seed_alone_are_a_factor(tmp_path):
    write_crossing(tmp_path, 60 + simulate(np.random.default_rng(0), (3, 3, 3), (2.0, 1.0, 0.2), 0.3))
    table = report_of(tmp_path).components
    assert table.factor.tolist()[:3] == ["first weights", "order of images", "teacher"]
    assert table.factor.tolist()[3:] == [
        "first weights x order of images", "first weights x teacher", "order of images x teacher", "rest",
    ]  # fmt: skip
    assert (table.n == 27).all()
    assert set(table.setting) == {"3 teachers"}


def test_several_teachers_with_the_same_seeds_of_students_are_crossed_with_them(tmp_path):
    for teacher in range(2):
        write_group(tmp_path, (60.0, 61.0, 62.5), teacher="resnet20", method="logit", teacher_seed=teacher)
    assert report_of(tmp_path).components.factor.tolist() == ["seed", "teacher", "rest"]


def test_an_incomplete_crossing_has_a_remark_and_no_components(tmp_path):
    write_crossing(tmp_path, np.full((3, 3), 60.0))
    next(tmp_path.glob("*/summary.json")).unlink()
    report = report_of(tmp_path)
    assert len(report.components) == 0
    assert any("resnet8 ce: 8 runs share first weights" in remark for remark in report.remarks)


def test_ordinary_runs_have_neither_components_nor_a_remark(tmp_path):
    write_group(tmp_path, (60.0, 61.0, 62.5))
    write_group(tmp_path, (61.0, 62.0, 62.6), teacher="resnet20", method="logit")
    report = report_of(tmp_path)
    assert len(report.components) == 0
    assert not any("parts of the spread" in remark for remark in report.remarks)


def test_teachers_of_one_seed_with_other_weights_are_no_factor(tmp_path):
    for key in ("one", "other"):
        for teacher_seed in (None, 0):
            others = {"teacher": "resnet20", "method": "logit", "teacher_seed": teacher_seed}
            write_group(tmp_path, (60.0, 61.0), teacher_key=f"{key}{teacher_seed}", **others)
    report = report_of(tmp_path)
    assert len(report.components) == 0
    assert not any("parts of the spread" in remark for remark in report.remarks)
