"""The first command of a new user."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kdbench.rundir.load import load_runs
from tests.conftest import processor_time, times_slower


@pytest.mark.slow
@pytest.mark.alone
def test_quickstart_ends_in_a_table_and_a_report_within_three_minutes_and_repeats_at_once(tmp_path: Path) -> None:
    def quickstart() -> tuple[str, float]:
        command = [sys.executable, "-m", "kdbench", "experiment=quickstart"]
        with processor_time() as seconds:
            result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout, *seconds

    first, seconds = quickstart()
    assert seconds < 180 * times_slower()
    again, seconds_again = quickstart()
    assert seconds_again < 30 * times_slower()
    tables = [re.findall(r"^resnet8 [^:\n]+$", output, re.MULTILINE) for output in (first, again)]
    assert tables[0] == tables[1]
    rows = [line.split() for line in tables[0]]
    assert [row[2] for row in rows] == ["ce", "logit", "feature"]
    assert all(30 < float(row[4]) < 95 for row in rows)  # chance is 10 %
    runs = load_runs(tmp_path / "outputs" / "runs")
    assert sorted(runs.role) == ["baseline", "baseline", "distilled", "distilled"]  # the teacher is a run too
    assert "report: outputs/reports/quickstart/report.html" in again.splitlines()
    page = (tmp_path / "outputs" / "reports" / "quickstart" / "report.html").read_text()
    assert "of 2 computed" in page  # of one seed, so that none can be tested
    assert "baseline agreement" in page  # the teacher was found beside the students
