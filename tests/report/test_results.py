"""results.json: strict JSON that says what the page and the csv files say, and what of it an earlier report lacks."""

import json
import math

import pandas as pd
import pytest

from kdbench import __version__
from kdbench.errors import ConfigError
from kdbench.report.results import Making, plain_value, read_results, results_of
from tests.report.conftest import report_of, write_group, write_selected

BASELINE, DISTILLED = (90.0, 90.2, 89.9), (90.5, 90.4, 90.6)
BY_LOGIT = {"teacher": "resnet20", "method": "logit"}


@pytest.fixture
def runs(tmp_path):
    """Write two students, each with a baseline and a distilled group of three runs; one has a group of one run."""
    for student, more in (("resnet8", 0.0), ("resnet14", 1.0)):
        write_group(tmp_path / "runs", [value + more for value in BASELINE], student=student)
        write_group(tmp_path / "runs", [value + more for value in DISTILLED], student=student, **BY_LOGIT)
    write_group(tmp_path / "runs", (91.0,), teacher="resnet20", method="feature")
    return tmp_path / "runs"


def results(result):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(result.text("results.json"), parse_constant=refuse)


def is_same(in_json, in_csv):
    if in_json is None:
        return pd.isna(in_csv)
    if isinstance(in_json, bool | str):
        return str(in_json) == str(in_csv) or (in_json == "" and pd.isna(in_csv))
    return float(in_json) == float(in_csv)


def test_tables_are_those_of_the_csv_files_unrounded(runs, kdbench_report):
    result = kdbench_report(runs)
    tables = results(result)["tables"]
    compared = 0
    for name in ("runs", "groups", "gains", "interactions"):
        table = result.table(name)
        assert len(tables[name]) == len(table) > 0
        for record, (_, row) in zip(tables[name], table.iterrows(), strict=True):
            assert list(record) == list(table.columns)
            assert [key for key in record if not is_same(record[key], row[key])] == []
            compared += len(record)
    assert compared > 300


@pytest.mark.slow
def test_everything_that_the_page_says_is_in_it(tmp_path, runs, kdbench_report):
    selected = write_selected(tmp_path / "selected.yaml", [{}], [9], [0, 1, 2])
    result = kdbench_report(runs, "--title", "A <b>title</b>", "--margin", "0.25", "--select", selected, figures=True)
    content, page = results(result), result.text("report.md").replace("\\", "")
    assert (content["schema"], content["version"], content["title"]) == (1, __version__, "A <b>title</b>")
    assert content["verdict"]
    assert all(sentence in page for sentence in (*content["verdict"], *content["remarks"]))
    assert content["command"].startswith("kdbench-report ")
    assert content["command"] in page
    options = content["options"]
    assert (options["margin"], options["analysis"]) == (0.25, "auto")
    assert (options["select"]["selection_seeds"], options["select"]["winners"][0]["method"]) == ([9], "logit")
    assert content["run_keys"] == result.table("runs").run_key.tolist()
    assert content["environment"]["torch"] == ["2.9.0"]
    assert len(content["figures"]) >= 3
    for figure in content["figures"]:
        assert figure["title"] in page
        assert figure["caption"] in page
        assert all((result.folder / file).is_file() for file in figure["files"])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, pd.NA, None, pd.NaT])
def test_a_number_that_is_missing_or_infinite_is_null(value):
    assert plain_value({"x": [value]}) == {"x": [None]}


def test_numbers_of_numpy_become_those_of_json():
    table = pd.DataFrame({"whole": pd.array([1], dtype="Int64"), "real": [0.1], "switch": pd.array([True], "boolean")})
    (record,) = plain_value(table.to_dict("records"))
    assert json.dumps(record) == '{"whole": 1, "real": 0.1, "switch": true}'


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (None, "not_found"),
        ("", "damaged"),
        ("[1]", "damaged"),
        ("{", "damaged"),
        ("[" * 100_000, "damaged"),
        ('{"schema": 1}', "damaged"),
        ('{"schema": 1, "version": "1", "options": {"margin": 1, "analysis": "auto", "select": null}, "tables": '
         '{"gains": [], "interactions": [], "runs": [{}]}}', "damaged"),
        ('{"schema": 99}', "mismatch"),
    ],
)  # fmt: skip
def test_an_earlier_report_that_cannot_be_read_is_refused_in_one_line(tmp_path, runs, kdbench_report, content, code):
    (tmp_path / "old").mkdir()
    if content is not None:
        (tmp_path / "old" / "results.json").write_text(content)
    result = kdbench_report(runs, "--against", tmp_path / "old")
    assert (result.code, result.error.code, result.error.key) == (2, code, "--against")
    assert "\n" not in str(result.error)
    assert not result.folder.exists()


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """Return the text of results.json of a report with gains of two students."""
    folder = tmp_path_factory.mktemp("runs")
    for student in ("resnet8", "resnet14"):
        write_group(folder, BASELINE, student=student)
        write_group(folder, DISTILLED, student=student, **BY_LOGIT)
    return json.dumps(results_of(report_of(folder), Making("title", "command", folder)))


@pytest.mark.parametrize(
    ("table", "change"),
    [
        ("gains", lambda row: row.pop("student")),
        ("gains", lambda row: row.pop("teacher_seed")),
        ("gains", lambda row: row.pop("delta")),
        ("gains", lambda row: row.update(delta="much")),
        ("gains", lambda row: row.update(method=["logit"])),
        ("gains", lambda row: row.update(p_adjusted="small")),
        ("gains", lambda row: row.update(analysis="by eye")),
        ("interactions", lambda row: row.pop("student_b")),
        ("interactions", lambda row: row.update(difference={})),
        ("runs", lambda row: row.pop("run_key")),
        ("runs", lambda row: row.update(nll="low")),
    ],
)
def test_an_earlier_report_with_a_damaged_row_is_refused_in_one_line(tmp_path, earlier, table, change):
    check_damage(tmp_path, earlier, lambda content: change(content["tables"][table][0]))


@pytest.mark.parametrize(
    "select",
    [
        {},
        {"study": "lab", "selection_seeds": [9]},
        {"study": "lab", "selection_seeds": [9], "winners": [{"student": "resnet8", "method": "logit"}]},
    ],
)
def test_an_earlier_report_with_a_damaged_selection_is_refused_in_one_line(tmp_path, earlier, select):
    check_damage(tmp_path, earlier, lambda content: content["options"].update(select=select))


def check_damage(folder, results, change):
    """Check that results are read, and refused after a change."""
    content, file = json.loads(results), folder / "results.json"
    file.write_text(results)
    assert read_results(folder) == content
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(ConfigError) as error:
        read_results(file)
    assert (error.value.code, error.value.key) == ("damaged", "--against")
    assert "\n" not in str(error.value)
