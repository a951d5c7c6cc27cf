"""Verification of one run directory."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.summary import KEY, KEYS, RunSummary, names, read_unverified
from kdbench.verify.artifacts import Artifacts, Options, read_artifacts
from kdbench.verify.checks import Checks, Line
from kdbench.verify.numbers import check_data, check_model, check_predictions, check_quality, check_training
from kdbench.verify.parent import check_parent
from kdbench.verify.record import check_checksum, check_files, check_record
from kdbench.verify.teacher import check_teacher

UNCHECKABLE = names(
    peak_memory_bytes=None, skipped_steps=None, overflowed_steps=None, lockstep=None, measurement=None, environment=None
)  # fmt: skip
"""Keys whose values cannot be computed again."""
ALWAYS_KNOWN = names(validation=True)
"""Keys of which every earlier version had this value."""


def verify(path: Path, options: Options) -> list[Line]:
    """Return a line for each check of a run.

    A run without summary.json is unfinished: there is nothing to verify yet, and nothing wrong with it.

    Args:
        path: run directory.
        options: options of the command line.
    """
    checks = Checks()
    directory = RunDirectory(path, path.name.rpartition("_")[2])
    if not directory.is_complete():
        checks.not_checked("run", "it is unfinished: there is no summary.json")
        return checks.lines
    with checks.checking("summary.json"):
        summary, matches = read_unverified(path)
        checks.recorded = recorded_values(directory, summary)
        run = Artifacts(directory, summary)
        check_files(run, checks)
        check_checksum(run, checks, matches)
        read_artifacts(run, options, checks)
        check_record(run, checks)
        check_model(run, checks)
        check_data(run, checks)
        check_predictions(run, checks, options.quick)
        check_quality(run, checks)
        check_training(run, checks)
        check_teacher(run, checks)
        check_parent(run, checks, options)
        unchecked = [name for name in UNCHECKABLE if name != KEY.measurement or summary.measurement is not None]
        checks.not_checked(", ".join(unchecked), "cannot be computed again; the checksum alone protects them")
    return checks.lines


def recorded_values(directory: RunDirectory, summary: RunSummary) -> Mapping[str, Any]:
    """Return the keys that a summary.json holds, with their values.

    `RunSummary` treats an absent key as null. Here the two differ: an older version did not write it, or wrote null.
    """
    present = {*json.loads(directory.summary.read_text()), *ALWAYS_KNOWN}
    return {name: getattr(summary, name) for name in KEYS if name in present}
