"""The page of checks that need a GPU: it shows the results under benchmarks/, and every check."""

import ast
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from kdbench.bench.cases import SETS
from kdbench.config import compose

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("gpu_checks", ROOT / "scripts" / "gpu_checks.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_checks", module)
    spec.loader.exec_module(module)
    return module


def test_committed_page_shows_the_committed_results(script):
    assert script.PAGE.read_text() == script.page()


def test_every_gpu_test_has_a_line_and_every_line_a_test(script):
    nodes = [node for file in (ROOT / "tests" / "gpu").glob("*.py") for node in ast.parse(file.read_text()).body]
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}
    assert {test for check in script.CHECKS for test in check.tests} == functions


def test_every_case_of_the_gpu_set_has_a_line(script):
    configs = [compose(case.overrides) for case in SETS["gpu"]]
    assert {check.case for check in script.CHECKS if check.case} == {(c.student.name, c.method.name) for c in configs}


def test_latest_result_is_shown_with_machine_and_date(script, tmp_path):
    spread = {"median": 6.0, "lowest": 5.5, "highest": 6.5, "n": 3}
    arm = {"arm": "kdbench", "ratio": spread, "images_per_second": spread | {"median": 40000.0}, "share_of_peak": 0.14}
    arm |= {"flops_per_second": 1.382e14, "memory_bytes": 2_340_000_000}
    for date, passed in (("2026-01-01", 1), ("2026-02-01", 3)):
        result = {
            "device": "NVIDIA H200",
            "date": date,
            "torch": "2.14.1",
            "tests": {"test_runs_of_the_repro_profile_repeat_bit_for_bit": {"passed": passed}},
            "bench": {"cases": [{"student": "resnet18", "method": "ce", "arms": [arm]}]},
        }
        (tmp_path / f"gpu-{date}.json").write_text(json.dumps(result))
    page = script.page(tmp_path)
    assert "| 3 passed; NVIDIA H200, torch 2.14.1, 2026-02-01 |" in page
    assert (
        "| 6.0 times the reference (5.5 to 6.5, n=3), 40,000 images/s, 138 TFLOP/s, 14.0% of the peak, 2.3 GB; NVIDIA H"
        in page
    )
    assert page.count("not yet measured") == len(script.CHECKS) - 2


def test_outcomes_are_counted_per_function(script, tmp_path):
    (tmp_path / "tests.xml").write_text(
        '<testsuites><testsuite><testcase name="test_a[fp32]"/><testcase name="test_a[bf16]"><failure/></testcase>'
        '<testcase name="test_b"><skipped/></testcase></testsuite></testsuites>'
    )
    assert script.outcomes(tmp_path / "tests.xml") == {"test_a": {"passed": 1, "failure": 1}, "test_b": {"skipped": 1}}
    assert script.outcomes(tmp_path / "none.xml") == {}
