"""A sweep: many jobs of one command, checked first, then launched, with one record and one table at the end."""

import dataclasses
import datetime
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench import run, tables
from kdbench.config import RunConfig
from kdbench.errors import BusyError, ConfigError, KdbenchError, RunError, printable, refuse
from kdbench.report.table import runs_table
from kdbench.runs import check_writable, write_json

log = logging.getLogger(__name__)

headings: list[Callable[[], str]] = []
"""What is said above each job of this process's sweeps: the progress of whatever they are part of."""


@dataclass
class Job:
    """One combination of a sweep, and what became of it."""

    overrides: tuple[str, ...]
    status: str = "not started"
    """not started, refused, complete, failed, left (to another process that has it) or interrupted."""
    run: str | None = None
    error: str | None = None
    config: RunConfig | None = None
    """Parsed, unless it was refused."""

    @property
    def title(self) -> str:
        return printable(" ".join(self.overrides))

    def record(self) -> dict[str, Any]:
        return {"overrides": self.overrides, "status": self.status, "run": self.run, "error": self.error}


Launch = Callable[[Sequence[Job], int], Sequence[Mapping[str, Any] | None]]
"""Carries out jobs, the first of which has this number, counted from 0; gives each one's status, run and error, or None
for a job whose process died."""
Split = Callable[[Sequence[Job]], list[list[Job]]]
"""What is launched at once."""


def singly(jobs: Sequence[Job]) -> list[list[Job]]:
    return [[job] for job in jobs]


class Sweep:
    """Jobs with what became of each.

    Args:
        jobs: Overrides of each.
        compose: A job's config; raises ConfigError.
        output_root: Where the record goes.
        report: A folder for a report at the end, if one is wanted.
    """

    def __init__(
        self,
        jobs: Sequence[tuple[str, ...]],
        compose: Callable[[tuple[str, ...]], RunConfig],
        output_root: Path,
        report: str | None = None,
    ) -> None:
        self.jobs = [Job(overrides) for overrides in jobs]
        self.compose = compose
        self.report = report
        self.started = datetime.datetime.now().astimezone()
        name = f"{self.started:%Y-%m-%d_%H-%M-%S}_{os.getpid()}.json"
        self.record = output_root.expanduser() / "sweeps" / name

    def carry_out(self, launch: Launch, split: Split = singly, lockstep: bool = False) -> None:
        """Refuse what cannot run, launch the rest, and say how it ended.

        Args:
            launch: How.
            split: Together with which others.
            lockstep: Whether jobs that are launched together ask their teacher together.

        Raises:
            RunError: at the end, if any job was refused or failed.
            BusyError: at the end, if any was left to another process.
        """
        check_writable(self.record.parent)
        readers: dict[Path, list[Job]] = {}
        for job in self.jobs:
            if table := self.check(job):
                readers.setdefault(table, []).append(job)
        batches = split([job for job in self.jobs if job.status != "refused"])
        for jobs in readers.values():
            share_table(jobs, batches if lockstep else singly(jobs))
        log.info("jobs: %d", sum(map(len, batches)))
        started = 0
        for batch in batches:
            try:
                for job, result in zip(batch, launch(batch, started), strict=True):
                    note(job, result)
            except BaseException:
                for job in batch:
                    mark_interrupted(job)
                raise
            finally:
                self.write_record()
            started += len(batch)
        self.say_how_it_ended()

    def check(self, job: Job) -> Path | None:
        """Compose and check one job's config; a failing one prints its line and is not launched.

        Returns:
            The table that the job would read if there were one.
        """
        try:
            job.config = self.compose(job.overrides)
            return run.check(job.config)
        except ConfigError as error:
            job.status, job.error = "refused", str(error)
            refuse(error, where=f"{job.title}: ")
            return None

    def write_record(self) -> None:
        """Of every job so far.

        Raises:
            RunError: it cannot be written.
        """
        record = {
            "command": sys.argv[1:],
            "started": self.started.isoformat(timespec="seconds"),
            "written": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "jobs": [job.record() for job in self.jobs],
        }
        try:
            self.record.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.record, record)
        except OSError as error:
            raise RunError(f"the sweep's record {self.record} cannot be written: {error}") from error

    def say_how_it_ended(self) -> None:
        runs = [Path(job.run) for job in self.jobs if job.run]
        if runs:
            print(f"\n{runs_table(runs)}\n\nrecord of this sweep: {self.record}")
        if runs and self.report:
            from kdbench.report.command import report  # late: most sweeps end without one

            try:
                report([*map(str, dict.fromkeys(runs)), "--out", self.report])
            except ConfigError as error:  # the runs are there all the same
                print(f"no report: {error}")
        statuses = [job.status for job in self.jobs]
        left = statuses.count("left")
        failed = len(statuses) - left - statuses.count("complete")
        if failed:
            raise RunError(f"{failed} of {len(self.jobs)} jobs failed (each said why above)")
        if left:
            raise BusyError(f"{left} of {len(self.jobs)} jobs were left to the processes that have them")


def mark_interrupted(job: Job) -> None:
    """Of jobs that were launched together some may be complete."""
    assert job.config is not None
    directory = run.located(job.config)[1]
    job.status = "complete" if directory.is_complete() else "interrupted"
    job.run = str(directory.path) if directory.is_complete() else None


@contextmanager
def heading(say: Callable[[], str]) -> Iterator[None]:
    """Have a line said above each job meanwhile."""
    headings.append(say)
    try:
        yield
    finally:
        headings.remove(say)


def say_heading(*lines: str) -> None:
    """Above a job, or jobs that are launched together."""
    print("", *(say() for say in headings), *lines, sep="\n", flush=True)


def result_of(ended: Path | Exception, title: str, name: str = "") -> dict[str, Any]:
    """What became of a job, said where it is no success.

    Args:
        ended: The directory of its run, or why there is none.
        title: What to call it in an error.
        name: Before what is no error, where several jobs speak.
    """
    if isinstance(ended, Path):
        return {"status": "complete", "run": str(ended)}
    if isinstance(ended, BusyError):
        print(f"{name}left: {ended}", flush=True)
        return {"status": "left", "error": str(ended)}
    if isinstance(ended, KdbenchError):
        refuse(ended, where=f"{title}: ")
        return {"status": "failed", "error": str(ended)}
    traceback.print_exception(ended)  # a bug: said in full, and the other jobs still run
    return {"status": "failed", "error": repr(ended)}


def share_table(jobs: Sequence[Job], batches: Sequence[Sequence[Job]]) -> None:
    """Have jobs that ask one teacher build and read its table, if so much asking repays it: in lockstep they ask once.

    Args:
        jobs: Those that ask it.
        batches: Jobs that are launched at once.
    """
    askers = [asking for batch in batches if (asking := [job for job in batch if job in jobs])]
    configs = [job.config for job in jobs if job.config]
    epochs = sum(asking[0].config.recipe.epochs for asking in askers if asking[0].config)
    if tables.repaid(epochs, configs[0]):
        teacher = configs[0].teacher
        assert teacher is not None
        log.info("teacher %s: one table for %d jobs, %d epochs in all", teacher.model.name, len(jobs), epochs)
        for job in jobs:
            assert job.config is not None
            assert job.config.teacher is not None
            job.overrides += ("teacher.table=on",)
            job.config = dataclasses.replace(job.config, teacher=dataclasses.replace(job.config.teacher, table="on"))


def note(job: Job, result: Mapping[str, Any] | None) -> None:
    """Keep what became of a launched job; launchers may also hand back one whose process died."""
    if result is None:
        job.status, job.error = "failed", "the job's process did not return"
    else:
        job.status, job.run, job.error = result["status"], result.get("run"), result.get("error")
