"""The examples of docs/methods.md: files as written, and the table beside conf/ and the package."""

import csv
import re
import sys
from pathlib import Path

import pytest
import torch

import kdbench.methods
from tests.conftest import complete
from tests.docs.examples import commands_of, config_of
from tests.docs.test_docs import CHECKOUT, blocks, write_files
from tests.every_method import METHODS
from tests.methods.conformance import LossTests

PAGE = CHECKOUT / "docs" / "methods.md"
TABLE = [line.split("|") for line in PAGE.read_text().splitlines() if re.match(r"\| `\w+`.*\|.*\|.*\|.*\|.*\|", line)]
ROWS = [row for row in TABLE if len(row) == 9]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page shows."""
    write_files(PAGE, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_methods", raising=False)
    return tmp_path


def test_methods_of_the_table_exist_and_stand_in_it_once():
    named = [name for row in ROWS for name in re.findall(r"`(\w+)`", row[1])]
    assert len(named) >= 30
    assert len(set(named)) == len(named)
    assert set(named) <= set(METHODS)


def test_costs_of_the_table_are_those_of_the_measurement():
    with (CHECKOUT / "results" / "methods" / "cost.csv").open() as file:
        measured = {row["method"]: f"{float(row['ratio_to_ce']):.1f}" for row in csv.DictReader(file)}
    for row in ROWS:
        assert row[7].strip() == ", ".join(measured[name] for name in re.findall(r"`(\w+)`", row[1]))


def test_functions_of_the_table_are_those_of_the_package():
    functions = [name for row in ROWS for name in re.findall(r"`(\w+)`", row[4])]
    assert len(functions) > 25
    for name in functions:
        assert callable(getattr(kdbench.methods, name))


def test_a_method_of_ones_own_is_under_fifty_lines_and_trains(files: Path) -> None:
    shown = [(files / name).read_text() for name in ("my_methods.py", "my_configs/method/regression.yaml")]
    assert sum(len(text.splitlines()) for text in shown) < 50
    (own,) = [command for command in commands_of(PAGE) if "--config-dir" in command]
    run = complete(config_of(own, ["recipe=smoke", "data=shapes"], files))  # found beside the folder of configs
    assert run.read_summary().method == "regression"
    assert run.read_summary().role == "distilled"


def test_its_test_passes_as_written(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(files)
    (code,) = [block for block in blocks(PAGE, "python") if "LossTests" in block]
    namespace: dict[str, object] = {}
    exec(code, namespace)  # the page's own code
    cls = namespace["TestLogitRegression"]
    assert isinstance(cls, type)
    assert issubclass(cls, LossTests)
    tests = cls()
    for setting in tests.settings:
        tests.test_it_equals_the_float64_reference(setting)
        tests.test_its_gradient_is_that_of_finite_differences(setting)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            tests.test_narrow_inputs_are_accumulated_in_float32(setting, dtype)
        tests.test_the_gradient_reaches_the_student_and_never_the_teacher(setting)
        for invariant in tests.method.invariants:
            tests.test_declared_invariant(setting, invariant)
