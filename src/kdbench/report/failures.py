"""Runs that ended in an error: which they are, and what they would change."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from kdbench.config.derived import TRAIN
from kdbench.rundir.load import row_of
from kdbench.rundir.summary import KEY
from kdbench.rundir.unfinished import Failure, read_arm, read_failure

OF_THE_MACHINE = ("out_of_memory", "no_space", "not_writable", "not_found", "io_error", "lock_lost")
"""Codes of errors of memory, disk or another process: they say nothing about a method, and the run may be repeated."""
MOST_NAMES = 3
"""Largest number of unfinished runs that a remark names."""


@dataclass(frozen=True)
class FailedRun:
    """Run that ended in an error and has no result."""

    student: str
    teacher: str | None
    method: str
    seed: int | None
    reason: str
    path: str
    code: str = ""
    """Kind of error, such as `not_finite`."""
    failure: Failure | None = field(default=None, repr=False, compare=False)
    """Content of its failure.json."""

    @property
    def arm(self) -> str:
        """Title without the seed."""
        return f"{self.student} {self.method}" + (f" from {self.teacher}" if self.teacher else "")

    @property
    def name(self) -> str:
        """Title of the run."""
        return f"{self.arm}, seed {self.seed}"

    @property
    def is_trained(self) -> bool:
        """False for a run that failed to compress or to measure a network: it is no result of a training."""
        return self.failure is None or self.failure.run.get(KEY.kind) in (None, TRAIN)


def read_failed(folder: Path, shown: str) -> FailedRun | None:
    """Return a run that failed; None for one that did not, such as an interrupted one.

    Args:
        folder: run directory without a result.
        shown: path of it for a reader.
    """
    failure = read_failure(folder)
    if failure is None:
        return None
    run = failure.summary(0.0)
    arm = read_arm(folder)  # what the run's own config says counts where both are there
    student, teacher, method, seed = (
        (arm.student, arm.teacher, arm.method, arm.seed) if arm else (run.student, run.teacher, run.method, run.seed)
    )
    return FailedRun(student, teacher, method, seed, failure.message, shown, failure.code, failure)


def with_failures(runs: pd.DataFrame, failed: Sequence[FailedRun]) -> pd.DataFrame | None:
    """Return a table of runs with the failed ones added, each at chance accuracy: 1 / number of classes.

    Runs that ended for want of memory, disk space or a lock are not added, nor those that did not train. A failed run
    that is complete elsewhere counts as complete.

    Args:
        runs: table of `read_runs`, before a selection is applied.
        failed: runs that failed.

    Returns:
        The table; None if there is no run to add.
    """
    known = set(runs.run_key)
    rows: dict[str, dict[str, Any]] = {}
    for run in failed:
        if (
            run.failure is None
            or not run.is_trained
            or run.code in OF_THE_MACHINE
            or run.failure.run[KEY.run_key] in known
        ):
            continue
        classes, _ = run.failure.summary(0.0).classes_and_shape
        summary = run.failure.summary(1 / classes)
        row = row_of(summary) | {"device": summary.device, "seeds": summary.seeds, "path": Path(run.path)}
        if row[KEY.validation]:
            row[KEY.best_val_acc] = 1 / classes
        rows[summary.run_key] = row
    if not rows:
        return None
    added = pd.DataFrame(list(rows.values()), dtype=object)
    columns = [*runs.columns, *(column for column in added.columns if column not in runs.columns)]
    whole = pd.concat([runs, added], ignore_index=True).reindex(columns=columns).astype(object)
    return whole.where(whole.notna(), None)


def remark_failed(failed: Sequence[FailedRun]) -> list[str]:
    """Remark which runs failed, by arm and seed, and why; a line for each, for the console: the page lists them."""
    return [f"FAILED, and without a result: {run.name} ({run.code}): {run.reason}" for run in failed]


def remark_unfinished(names: Sequence[str]) -> list[str]:
    """Remark which runs are neither complete nor failed.

    Args:
        names: title of each of these runs.
    """
    if not names:
        return []
    more = [f"and {len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
    return [
        f"{len(names)} unfinished run{'s were' if len(names) > 1 else ' was'} left out (interrupted, or still "
        f"running): {'; '.join([*names[:MOST_NAMES], *more])}"
    ]
