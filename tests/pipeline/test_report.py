"""kdbench-report over runs of every kind: it counts each once and writes its pages."""

from pathlib import Path

import pandas as pd
import pytest

from kdbench.pipeline.measure import measure
from kdbench.report.command import report
from kdbench.runner import measuring
from tests.derived import ON_CPU, Copies, summary_of, texts


@pytest.mark.slow
def test_a_report_takes_trained_compressed_and_measured_runs(
    copies: Copies, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "peak_memory", lambda *_: 12345)
    runs = copies("magnitude", "int8", "tuned")
    assert measure([*texts(runs.values()), "rounds=3", "batches=[1]", *ON_CPU]) == 0
    folder = tmp_path / "out" / "runs"
    assert len(list(folder.iterdir())) == 2 * len(runs)
    assert report([str(folder), "--out", str(tmp_path / "report")]) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    for path in runs.values():
        assert summary_of(path).student in page
    tables = {file.stem: pd.read_csv(file) for file in (tmp_path / "report").glob("*.csv")}
    assert any("latency" in " ".join(table.columns) or "size" in " ".join(table.columns) for table in tables.values())
