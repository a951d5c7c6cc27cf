"""The small form of finished runs."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from kdbench.report.command import report
from kdbench.report.predictions import read_predictions
from kdbench.report.runs import read_runs
from tests.report.conftest import write_failed_run, write_group, write_run

SCRIPT = Path(__file__).parents[2] / "scripts" / "keep_results.py"


def keep(monkeypatch: pytest.MonkeyPatch, folder: Path, *options: str) -> None:
    """Copy the runs in `runs` to `small`."""
    arguments = [str(folder / "runs"), "--out", str(folder / "small"), *options]
    monkeypatch.setattr(sys, "argv", ["keep_results.py", *arguments])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def test_rounded_logits_keep_every_predicted_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 5, 2000)
    close = 8 + random.normal(0, 1e-3, (2000, 5)).astype(np.float32)  # half precision has steps of 2**-7 here
    close[:500] *= -1
    write_run(tmp_path / "runs", logits=(close, labels))
    keep(monkeypatch, tmp_path)
    (folder,) = (tmp_path / "small").iterdir()
    small = load_file(folder / "logits.safetensors")["test_logits"]
    assert small.dtype == np.float16
    assert (small.argmax(axis=1) == close.argmax(axis=1)).all()
    assert not read_predictions(folder).tied.any()
    assert np.abs(small - close).max() <= 2**-8 + 2**-7


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--without-logits",)])
def test_a_report_of_small_results_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    write_group(tmp_path / "runs", (90.0, 90.2, 90.1))
    write_group(tmp_path / "runs", (90.5, 90.4, 90.6), teacher="resnet20", method="logit")
    write_failed_run(tmp_path / "runs", seed=7)
    keep(monkeypatch, tmp_path, *options)
    assert report([str(tmp_path / "small"), "--out", str(tmp_path / "b"), "--no-figures"]) == 0
    assert report([str(tmp_path / "runs"), "--out", str(tmp_path / "a"), "--no-figures"]) == 0
    assert [run.seed for run in read_runs([tmp_path / "small"]).failed] == [7]
    for name in ("gains", "groups", "interactions"):
        assert (tmp_path / "a" / f"{name}.csv").read_text() == (tmp_path / "b" / f"{name}.csv").read_text()
    assert list((tmp_path / "small").glob("*/logits.safetensors") if options else ()) == []
