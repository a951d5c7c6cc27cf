"""The small form of finished runs."""

import runpy
import sys
from pathlib import Path

import pytest

from kdbench.report.command import report
from kdbench.report.runs import read_runs
from tests.report.conftest import write_failed_run, write_group

SCRIPT = Path(__file__).parents[2] / "scripts" / "keep_results.py"


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--without-logits",)])
def test_a_report_of_small_results_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    write_group(tmp_path / "runs", (90.0, 90.2, 90.1))
    write_group(tmp_path / "runs", (90.5, 90.4, 90.6), teacher="resnet20", method="logit")
    write_failed_run(tmp_path / "runs", seed=7)
    arguments = [str(tmp_path / "runs"), "--out", str(tmp_path / "small"), *options]
    monkeypatch.setattr(sys, "argv", ["keep_results.py", *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert report([str(tmp_path / "small"), "--out", str(tmp_path / "b"), "--no-figures"]) == 0
    assert report([str(tmp_path / "runs"), "--out", str(tmp_path / "a"), "--no-figures"]) == 0
    assert [run.seed for run in read_runs([tmp_path / "small"]).failed] == [7]
    for name in ("gains", "groups", "interactions"):
        assert (tmp_path / "a" / f"{name}.csv").read_text() == (tmp_path / "b" / f"{name}.csv").read_text()
    assert list((tmp_path / "small").glob("*/logits.safetensors") if options else ()) == []
