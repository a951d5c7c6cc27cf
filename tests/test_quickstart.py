"""The newcomer's first command."""

import subprocess
import sys
import time

import pytest

from tests.conftest import times_slower


@pytest.mark.slow
@pytest.mark.alone
def test_quickstart_ends_in_a_table_and_a_report_within_three_minutes_and_repeats_at_once(tmp_path):
    def quickstart():
        started = time.monotonic()
        command = [sys.executable, "-m", "kdbench", "experiment=quickstart"]
        result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout, time.monotonic() - started

    first, seconds = quickstart()
    assert seconds < 180 * times_slower()
    again, seconds_again = quickstart()
    assert seconds_again < 30 * times_slower()
    tables = [output[output.index("student  teacher") :].split("\n\n")[0] for output in (first, again)]
    assert tables[0] == tables[1]
    rows = [line.split() for line in tables[0].splitlines()[1:]]
    assert [row[2] for row in rows] == ["ce", "logit", "feature"]
    assert all(30 < float(row[4]) < 95 for row in rows)  # chance is 10 %
    assert again.rstrip().endswith("report: outputs/reports/quickstart/report.html")
    page = (tmp_path / "outputs" / "reports" / "quickstart" / "report.html").read_text()
    assert "No gain can be tested: of 2 computed" in page
    assert "undistilled agreement" in page  # the teacher was found beside the students
