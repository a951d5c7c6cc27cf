"""One table of some runs, from their summaries alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from kdbench.runs import read_summary


def runs_table(paths: Sequence[Path]) -> str:
    """Student, method, accuracy, gain over `ce`, agreement, seconds and place of complete runs, a line each.

    Accuracies and agreement are in per cent of the test images, the gain in points against the undistilled student of
    the same seed among these runs.
    """
    summaries = [read_summary(path) for path in dict.fromkeys(paths)]
    baselines = {s["baseline_key"]: s["test_acc_best"] for s in summaries if s.get("method") == "ce"}
    rows = [row(s, path, baselines) for s, path in zip(summaries, dict.fromkeys(paths), strict=True)]
    return pd.DataFrame(rows).to_string(index=False)


def row(summary: dict[str, Any], path: Path, baselines: dict[str, float]) -> dict[str, str]:
    accuracy, agreement = summary["test_acc_best"], summary.get("agreement")
    baseline = baselines.get(summary["baseline_key"])
    is_gain = summary["method"] != "ce" and baseline is not None
    return {
        "student": summary["student"],
        "teacher": summary.get("teacher") or "-",
        "method": summary["method"],
        "seed": str(summary["seed"]),
        "accuracy %": f"{100 * accuracy:.2f}",
        "gain over ce": f"{100 * (accuracy - baseline):+.2f}" if is_gain and baseline is not None else "-",
        "agreement %": "-" if agreement is None else f"{100 * agreement:.2f}",
        "seconds": f"{summary['train_seconds']:.0f}",
        "run": str(path),
    }
