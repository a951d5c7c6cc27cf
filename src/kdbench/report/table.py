"""Table of some runs for the console, from their summaries alone."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from kdbench.report.baselines import find_baselines, runs_by_seeds
from kdbench.report.columns import column_of, format_value, row
from kdbench.report.groups import COMPARED, group_runs, percent, remark_without_validation
from kdbench.report.runs import display_path, read_runs, rows_of, trained
from kdbench.report.select import with_selection


def runs_table(paths: Sequence[Path]) -> str:
    """Return student, method, accuracy, gain, agreement, seconds and directory of complete runs as text, a line each.

    Accuracies and agreement are in per cent of the test images, the gain in points over the baseline run of the same
    seeds, if it is among these runs.

    Args:
        paths: run directories.

    Raises:
        ConfigError: none of them holds a complete run.
    """
    found = read_runs(paths)
    runs = with_selection(found.runs)
    groups = group_runs(trained(runs))
    gains: dict[str, float] = {}
    for group in groups:
        if group.shared.role in COMPARED and (baselines := find_baselines(group, groups)):
            pairs = runs_by_seeds(baselines[0])
            for run in group.rows:
                if pair := pairs.get(run.seeds):
                    gains[run.run_key] = 100 * (run.test_acc_best - pair.test_acc_best)
    rows = [
        row(
            student=run.student, teacher=run.teacher, method=run.method, seed=run.seed,
            test_acc_best=percent(run.test_acc_best), delta=gains.get(run.run_key), agreement=percent(run.agreement),
            train_seconds=run.train_seconds, path=display_path(run.path),
        )
        for run in rows_of(runs)
    ]  # fmt: skip
    cells = [{column_of(c).heading: format_value(v, column_of(c).form) or "-" for c, v in r.items()} for r in rows]
    lines = [*remark_without_validation(trained(runs)), *found.damaged]
    return "\n".join([pd.DataFrame(cells).to_string(index=False), *lines])
