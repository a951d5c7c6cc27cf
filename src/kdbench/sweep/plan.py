"""The plan of a sweep: every run with its config, or the error that refuses it, before any of them starts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.config import RunConfig
from kdbench.errors import ConfigError, printable
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.summary import Status
from kdbench.runner.run import resolve_run
from kdbench.sweep.overrides import OPEN_SECTIONS

Compose = Callable[[tuple[str, ...]], RunConfig]
"""Returns the config of a run from its overrides; raises ConfigError."""


@dataclass(frozen=True)
class JobResult:
    """Result of a launched run. Plain data, so that launchers can hand it from process to process."""

    status: Status
    """Complete, failed or skipped."""
    run: str | None = None
    """Run directory of a complete run."""
    error: str | None = None


@dataclass(eq=False)
class PlannedRun:
    """One run of a sweep or study: what it is, and how far it is.

    Args:
        overrides: of this run, each with one value.
        title: the overrides in one printable line.
        composed: the parsed config; None if it was refused.
        key: run key.
        error: the error that refuses it at this point; executing the plan checks more.
        number: place within its sweep, counted from 0.
    """

    overrides: tuple[str, ...]
    title: str
    composed: RunConfig | None = None
    key: str = ""
    error: ConfigError | None = None
    number: int = 0
    status: Status = Status.NOT_STARTED
    path: str | None = None
    """Run directory, once the run is complete."""
    problem: str | None = None
    """Message of the error that refused or ended it."""

    @property
    def config(self) -> RunConfig:
        """The parsed config of a run that was not refused."""
        assert self.composed is not None
        return self.composed

    @property
    def directory(self) -> RunDirectory:
        """Where the run is, or will be. Looked up anew: another process may have made the folder meanwhile."""
        return RunDirectory.of(self.config, self.key)

    def refuse(self, error: ConfigError) -> None:
        """Record that the run cannot start."""
        self.status, self.problem = Status.REFUSED, str(error)

    def finish(self, result: JobResult | None) -> None:
        """Record the result of a launched run; None means that its process died."""
        result = result or JobResult(Status.FAILED, error="the process of the run ended without a result")
        self.status, self.path, self.problem = result.status, result.run, result.error

    def record(self) -> dict[str, Any]:
        """Return the entry of the run in the record of its sweep."""
        return {"overrides": self.overrides, "status": self.status, "run": self.path, "error": self.problem}


def plan(jobs: Sequence[tuple[str, ...]], compose: Compose) -> list[PlannedRun]:
    """Return the runs of a sweep, composed and located. Starts and writes nothing.

    Args:
        jobs: overrides of each run, as `kdbench.sweep.overrides.expand` returns them.
        compose: function that composes one.
    """
    return [plan_run(overrides, compose) for overrides in jobs]


def plan_run(overrides: tuple[str, ...], compose: Compose, number: int = 0) -> PlannedRun:
    """Return one run with its config and key, or with the error that refuses it.

    Args:
        overrides: of the run.
        compose: function that composes it.
        number: place of the run within its sweep, counted from 0.
    """
    run = PlannedRun(overrides, printable(" ".join(overrides)), number=number)
    try:
        config = compose(overrides)
        run.key = resolve_run(config)[1].key
        run.composed = config
    except ConfigError as error:
        run.error = with_remedy(error)
        run.refuse(run.error)
    return run


def check_keys(runs: Sequence[PlannedRun]) -> None:
    """Check that no key is unknown to every run, for one error in place of one for each.

    Raises:
        ConfigError: the options of no run have the key.
    """
    errors = [run.error for run in runs if run.error and run.error.code == "unknown_key"]
    if errors and len(errors) == len(runs) and len({error.key for error in errors}) == 1:
        raise errors[0]


def with_remedy(error: ConfigError) -> ConfigError:
    """Return the error of a run of several, with what to do where only its option has no such key."""
    if error.code != "unknown_key" or not error.key.startswith(OPEN_SECTIONS):
        return error
    section = error.key.partition(".")[0]
    return ConfigError(
        f"{error}; where other options of {section} have this key, give them a command of their own",
        code=error.code,
        key=error.key,
    )
