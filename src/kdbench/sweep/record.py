"""The record of a sweep: which runs it has, and what became of each."""

import datetime
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from kdbench.errors import ConfigError, RunError, data_without_passwords
from kdbench.rundir.files import write_json
from kdbench.sweep.plan import PlannedRun


class Record:
    """OUTPUT_ROOT/sweeps/TIME.json, rewritten after each group of runs."""

    def __init__(self, output_root: Path, runs: Sequence[PlannedRun]) -> None:
        self.runs = runs
        self.started = datetime.datetime.now().astimezone()
        self.file = output_root.expanduser() / "sweeps" / f"{self.started:%Y-%m-%d_%H-%M-%S-%f}_{os.getpid()}.json"

    def make_folder(self) -> None:
        """Make the folder of the record: where that is not possible, no run could have its own, in any worker.

        Raises:
            ConfigError: it cannot be made.
        """
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"output_root cannot be written to ({error}); give another folder",
                code="not_writable",
                key="output_root",
            ) from None

    def write(self) -> None:
        """Write the state of every run so far.

        Raises:
            RunError: the file cannot be written.
        """
        content = {
            "command": sys.argv[1:],
            "started": self.started.isoformat(timespec="seconds"),
            "written": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "jobs": [run.record() for run in self.runs],
        }
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.file, data_without_passwords(content))
        except OSError as error:
            raise RunError(
                f"the record of the sweep, {self.file}, cannot be written: {error}",
                code="not_writable",
                key="output_root",
            ) from error
