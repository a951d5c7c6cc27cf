"""The plan of a sweep: every run with its config, or the error that refuses it, before any of them starts."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kdbench.config import RunConfig
from kdbench.config.sections import OBJECTIVES
from kdbench.errors import ConfigError, printable, without_passwords
from kdbench.rundir.access import denied_error, is_denied
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.summary import RunSummary, Status
from kdbench.runner.run import resolve_run
from kdbench.sweep.overrides import OPEN_SECTIONS

Compose = Callable[[tuple[str, ...]], RunConfig]
"""Returns the config of a run from its overrides; raises ConfigError."""


@dataclass(frozen=True)
class JobResult(float):
    """Result of a launched run: a number for sweepers that optimise one, and plain data between processes.

    The number is the first of the run's objectives, by default its validation accuracy, and an iteration yields all of
    them. A run without a result is NaN, and `float` and iteration raise ValueError: Hydra's Optuna sweeper counts that
    as a failed trial, and ends the sweep at a NaN that it is told.
    """

    status: Status
    """Complete, failed, pruned, skipped or interrupted."""
    run: str | None = None
    """Run directory of a complete run."""
    error: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict, hash=False)
    """Number of the run for each possible objective (`kdbench.config.sections.OBJECTIVES`)."""
    objectives: tuple[str, ...] = OBJECTIVES[:1]
    lost: bool = False
    """True if the run's process ended without a result, so that the run may be complete all the same."""

    def __new__(
        cls,
        status: Status,
        run: str | None = None,
        error: str | None = None,
        scores: Mapping[str, float] | None = None,
        objectives: tuple[str, ...] = OBJECTIVES[:1],
        lost: bool = False,
    ) -> "JobResult":
        return super().__new__(cls, (scores or {}).get(objectives[0], math.nan))

    def __getnewargs__(self) -> Any:  # float's own gives the number alone
        return self.status, self.run, self.error, dict(self.scores), self.objectives, self.lost

    def __float__(self) -> float:
        return next(iter(self))

    def __iter__(self) -> Iterator[float]:
        return iter([self.score(name) for name in self.objectives])

    def __bool__(self) -> bool:
        return True  # of an object, as before it was a number

    def score(self, name: str) -> float:
        """Return an objective of the run.

        Raises:
            ValueError: the run has none.
        """
        if name not in self.scores:
            raise ValueError(f"the run has no {name}: it is {self.status}" + (f" ({self.error})" if self.error else ""))
        return self.scores[name]


def longest_grace(runs: "Iterable[PlannedRun]") -> float:
    """Return the longest time in seconds that one of some runs may take to write its checkpoint and leave."""
    return max((run.config.checkpoint.grace_seconds for run in runs), default=0.0)


def scores_of(summary: RunSummary) -> dict[str, float]:
    """Return the objectives that the summary of a complete run has."""
    values = (summary.best_val_acc, summary.train_seconds, summary.num_params, summary.macs)
    return {name: float(value) for name, value in zip(OBJECTIVES, values, strict=True) if value is not None}


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
    launched: bool = False
    """True once a launcher has started it."""

    @property
    def config(self) -> RunConfig:
        """The parsed config of a run that was not refused."""
        assert self.composed is not None
        return self.composed

    @property
    def directory(self) -> RunDirectory:
        """Directory of the run, there or not. Looked up anew: another process may have made the folder meanwhile."""
        return RunDirectory.of(self.config, self.key)

    def refuse(self, error: ConfigError) -> None:
        """Record that the run cannot start."""
        self.status, self.problem = Status.REFUSED, str(error)

    def finish(self, result: JobResult | None) -> None:
        """Record the result of a launched run; None means that its process died."""
        result = result or JobResult(Status.FAILED, error="the process of the run ended without a result")
        self.status, self.path, self.problem = result.status, result.run, result.error

    @property
    def result(self) -> JobResult:
        """The result of a launched run that has finished."""
        return JobResult(self.status, self.path, self.problem)

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
    run = PlannedRun(overrides, without_passwords(printable(" ".join(overrides))), number=number)
    try:
        config = compose(overrides)
        run.key = resolve_run(config)[1].key
        run.composed = config
    except ConfigError as error:
        run.error = with_remedy(error)
        run.refuse(run.error)
    except OSError as error:
        if not is_denied(error):
            raise
        run.error = denied_error(error)  # files of another user, who keeps them to themselves
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


def check_devices(runs: Sequence[PlannedRun]) -> None:
    """Check that the runs of a sweep name one device: they are the same runs on another one.

    Raises:
        ConfigError: they name several.
    """
    values = list(dict.fromkeys(value for run in runs if (value := device_of(run))))
    if len(values) < 2:
        return
    remedy = "leave it at auto, or give one value"
    gpus = [value for value in values if value.startswith("cuda:")]
    if gpus:
        remedy = f"to distribute a sweep over devices: hydra/launcher=joblib hydra.launcher.devices=[{','.join(gpus)}]"
    raise ConfigError(
        f"runtime.device has several values, {' and '.join(values)}, in one sweep; a run is the same run on every "
        f"device, with one run directory; {remedy}",
        code="several_options",
        key="runtime.device",
    )


def check_trackers(runs: Sequence[PlannedRun]) -> None:
    """Check that no run is planned twice with different trackers, which change nothing of it.

    Raises:
        ConfigError: one is.
    """
    first: dict[str, PlannedRun] = {}
    for run in runs:
        if run.composed and run.config.trackers != first.setdefault(run.key, run).config.trackers:
            names = [tracker.name for one in (first[run.key], run) for tracker in one.config.trackers]
            raise ConfigError(
                "tracker has several values in one sweep, and the same run would be planned for each; a run has a "
                f"list of trackers, with one value of each key: tracker=[{','.join(dict.fromkeys(names))}]",
                code="several_options",
                key="tracker",
            )


def device_of(run: PlannedRun) -> str | None:
    """Return the device that a run names, or None where it is refused and its overrides name none."""
    if run.composed:
        return run.config.runtime.device
    named = [override.partition("=") for override in run.overrides]
    return next((value.replace("\\", "") for key, _, value in named if key.lstrip("+") == "runtime.device"), None)


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
