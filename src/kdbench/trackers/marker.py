"""Markers of records that have everything of a complete run: OUTPUT_ROOT/.trackers/RUN_KEY/TRACKER.

A complete run is skipped by later commands. Its marker says whether its record is complete too; where it is missing or
of another server or folder, the command sends the run again.
"""

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdbench.errors import printable
from kdbench.rundir.files import hash_of, write_text
from kdbench.trackers.base import TrackedRun


def marker_file(run: TrackedRun, tracker: Mapping[str, Any]) -> Path:
    """Return the file of a run's marker."""
    return run.output_root / ".trackers" / run.key / str(tracker["name"])


def content_of(run: TrackedRun, tracker: Mapping[str, Any]) -> str:
    """Return the content of a marker: a hash of the tracker's keys, but for the group, and of the run's summary."""
    params = {name: value for name, value in tracker["params"].items() if name != "group"}
    record = {"target": tracker["target"], "params": params, "summary": run.summary_content().get("checksum")}
    return hash_of(record) + "\n"


def has_marker(run: TrackedRun, tracker: Mapping[str, Any]) -> bool:
    """Return whether the record of a complete run has everything."""
    file = marker_file(run, tracker)
    return file.is_file() and file.read_text() == content_of(run, tracker)


def write_marker(run: TrackedRun, tracker: Mapping[str, Any]) -> None:
    """Mark the record of a complete run."""
    file = marker_file(run, tracker)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, content_of(run, tracker))


def error_file(output_root: Path, name: str) -> Path:
    """Return the file with the last error of a tracker, which is there as long as no record was brought up to date."""
    return output_root / ".trackers" / f"{name}.error"


def write_error(output_root: Path, name: str, text: str | None) -> None:
    """Keep the last error of a tracker for later commands, or remove it: None."""
    file = error_file(output_root, name)
    with contextlib.suppress(OSError):  # a tracker can fail no run, and the run reports a full disk itself
        if text is None:
            file.unlink(missing_ok=True)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_text(file, text + "\n")


def read_error(output_root: Path, name: str) -> str:
    """Return the last error of a tracker, in one line; empty where there is none."""
    try:
        return printable(error_file(output_root, name).read_text(errors="replace").strip())
    except OSError:
        return ""
