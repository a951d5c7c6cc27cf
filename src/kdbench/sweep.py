"""A sweep: many jobs of one command, checked first, then launched, with one record and one table at the end."""

import datetime
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from kdbench import run, tables
from kdbench.compose import explained
from kdbench.config import RunConfig, parse
from kdbench.errors import BusyError, ConfigError, RunError, printable
from kdbench.report.table import runs_table
from kdbench.runs import check_writable, write_json

log = logging.getLogger(__name__)

carried_out: list["Sweep"] = []
"""This process's sweeps, the last one last."""
headings: list[Callable[[], str]] = []
"""What is said above each job of this process's sweeps: the progress of whatever they are part of."""


@dataclass
class Job:
    """One combination of a sweep, as its record keeps it."""

    overrides: tuple[str, ...]
    status: str = "not started"
    """not started, refused, complete, failed, left (to another process that has it) or interrupted."""
    run: str | None = None
    error: str | None = None

    @property
    def title(self) -> str:
        return printable(" ".join(self.overrides))


class Sweep:
    """Jobs with what became of each.

    Args:
        config: Hydra's config of the sweep itself.
        jobs: Overrides of each job.
        loader: Composes a job's config.
    """

    def __init__(self, config: DictConfig, jobs: Sequence[tuple[str, ...]], loader: ConfigLoader) -> None:
        self.config = config
        self.loader = loader
        self.jobs = [Job(overrides) for overrides in jobs]
        self.started = datetime.datetime.now().astimezone()
        name = f"{self.started:%Y-%m-%d_%H-%M-%S}_{os.getpid()}.json"
        self.record = Path(str(config.output_root)).expanduser() / "sweeps" / name

    def carry_out(self, launcher: Launcher, batch_size: int | None = None) -> list[JobReturn]:
        """Refuse what cannot run, launch the rest `batch_size` at a time, and say how it ended.

        Raises:
            RunError: at the end, if any job was refused or failed.
            BusyError: at the end, if any was left to another process.
        """
        carried_out.append(self)
        check_writable(self.record.parent)
        readers: dict[Path, list[tuple[Job, RunConfig]]] = {}
        for job in self.jobs:
            config, table = self.check(job)
            if config and table:
                readers.setdefault(table, []).append((job, config))
        for jobs in readers.values():
            share_table(jobs)
        runnable = [job for job in self.jobs if job.status != "refused"]
        log.info("jobs: %d", len(runnable))
        returns: list[JobReturn] = []
        size = batch_size or max(1, len(runnable))
        for start in range(0, len(runnable), size):
            batch = runnable[start : start + size]
            try:
                results = launcher.launch([list(job.overrides) for job in batch], initial_job_idx=start)
                for job, result in zip(batch, results, strict=True):
                    note(job, result)
            except BaseException:
                for job in batch:
                    job.status = "interrupted"
                raise
            finally:
                self.write_record()
            returns.extend(results)
        self.say_how_it_ended()
        return returns

    def check(self, job: Job) -> tuple[RunConfig | None, Path | None]:
        """Compose and check one job's config; a failing one prints its line and is not launched.

        Returns:
            The config, and the table that the job would read if there were one.
        """
        try:
            config = self.loader.load_sweep_config(self.config, list(job.overrides))
        except Exception as error:  # Hydra's own and what it trips over
            refuse(job, explained(error, job.overrides))
            return None, None
        try:
            parsed = parse(without_hydra(config), config.hydra.runtime.choices)
            return parsed, run.check(parsed)
        except ConfigError as error:
            refuse(job, error)
            return None, None

    def write_record(self) -> None:
        """Of every job so far.

        Raises:
            RunError: it cannot be written.
        """
        record = {
            "command": sys.argv[1:],
            "started": self.started.isoformat(timespec="seconds"),
            "written": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "jobs": [asdict(job) for job in self.jobs],
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
        if runs and self.config.report:
            from kdbench.report.command import report  # late: most sweeps end without one

            try:
                report([*map(str, dict.fromkeys(runs)), "--out", str(self.config.report)])
            except ConfigError as error:  # the runs are there all the same
                print(f"no report: {error}")
        statuses = [job.status for job in self.jobs]
        left = statuses.count("left")
        failed = len(statuses) - left - statuses.count("complete")
        if failed:
            raise RunError(f"{failed} of {len(self.jobs)} jobs failed (each said why above)")
        if left:
            raise BusyError(f"{left} of {len(self.jobs)} jobs were left to the processes that have them")


@contextmanager
def heading(say: Callable[[], str]) -> Iterator[None]:
    """Have a line said above each job meanwhile."""
    headings.append(say)
    try:
        yield
    finally:
        headings.remove(say)


def without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])


def share_table(jobs: Sequence[tuple[Job, RunConfig]]) -> None:
    """Have jobs that ask one teacher build and read its table, if all their epochs together repay it."""
    epochs = sum(config.recipe.epochs for _, config in jobs)
    if tables.repaid(epochs, jobs[0][1]):
        teacher = jobs[0][1].teacher
        assert teacher is not None
        log.info("teacher %s: one table for %d jobs, %d epochs in all", teacher.model.name, len(jobs), epochs)
        for job, _ in jobs:
            job.overrides += ("teacher.table=on",)


def refuse(job: Job, error: ConfigError) -> None:
    job.status, job.error = "refused", str(error)
    print(f"kdbench: error: {job.title}: {error}", file=sys.stderr)


def note(job: Job, result: JobReturn) -> None:
    """Keep what a launched job returned; launchers may also hand back one whose process died."""
    if result.status == JobStatus.COMPLETED and isinstance(result.return_value, dict):
        job.status = result.return_value["status"]
        job.run, job.error = result.return_value.get("run"), result.return_value.get("error")
    else:
        job.status, job.error = "failed", "the job's process did not return"
