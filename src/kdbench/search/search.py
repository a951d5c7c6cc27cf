"""The loop of a search: draw trials, launch their runs, record their results."""

import contextlib
import dataclasses
import logging
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

from kdbench.config import RunConfig
from kdbench.config.sections import TrialConfig
from kdbench.errors import BusyError, ConfigError, RunError, without_passwords
from kdbench.report.failures import OF_THE_MACHINE
from kdbench.report.search.read import DIVERGED
from kdbench.rundir.summary import Status
from kdbench.rundir.unfinished import read_failure
from kdbench.runner.trials import cause_of
from kdbench.search.settings import SearchKeys
from kdbench.search.trials import COUNTS, LOST, Arm, HeldTrial, Members
from kdbench.sweep.execute import check_runs, result_of_complete, share_cache
from kdbench.sweep.overrides import override
from kdbench.sweep.plan import JobResult, PlannedRun, plan_run
from kdbench.sweep.tracking import set_group

log = logging.getLogger(__name__)

LaunchRuns = Callable[[Sequence[PlannedRun]], Generator[tuple[PlannedRun, JobResult | None], None, None]]
"""Executes runs, and yields each with its result as they end; None: its process died."""
ComposeNumbered = Callable[[int, tuple[str, ...]], RunConfig]
NOT_FINITE = "not_finite"
OUT_OF_MEMORY = "out_of_memory"
MOST_LOST = 3
"""Number of times that a trial may lack memory, or lose its process, before it counts as failed."""
WAITING = 1.0
"""Seconds between two looks at the trials of other processes."""


@dataclasses.dataclass
class Search:
    """A search that this process works on.

    Args:
        name: name of the search.
        url: URL of its storage.
        keys: keys of the sweeper.
        objectives: names of what is optimised.
        arms: its studies.
        members: its processes.
        compose: composes a run; the first argument is its number within this command.
        launch: executes runs.
        waits: whether to wait for trials of other processes at the end, else to leave them to those.
    """

    name: str
    url: str
    keys: SearchKeys
    objectives: Sequence[str]
    arms: Sequence[Arm]
    members: Members
    compose: ComposeNumbered
    launch: LaunchRuns
    waits: bool
    launched: int = 0
    problems: int = 0
    """Trials of this command that could not run."""

    def work(self) -> None:
        """Work on the search until its trials are finished.

        Raises:
            RunError: too many trials could not run, or the storage is gone.
            BusyError: other processes hold the remaining trials, and `on_busy` is skip.
            Interrupted: a stop was requested.
        """
        try:
            while self.problems < self.keys.max_failures:
                trials = self.next_trials()
                if trials:
                    self.execute(trials)
                elif not self.others_work():
                    break
        except Exception as error:
            if not is_of_storage(error):
                raise
            raise RunError(
                f"hydra.sweeper.storage is {without_passwords(self.url)}, which failed: {cause_of(error)}; the same "
                "command continues",
                code="storage",
                key="hydra.sweeper.storage",
            ) from None
        if self.problems >= self.keys.max_failures:
            raise RunError(
                f"{self.problems} trials could not run, as many as hydra.sweeper.max_failures allows; the error of "
                "each is above, and the same command continues",
                code="failed_runs",
                key="hydra.sweeper.max_failures",
            )

    def next_trials(self) -> list[HeldTrial]:
        """Return the trials to launch now: those of dead processes first, then new ones, arm by arm in turn."""
        self.members.renew()
        owners = {t.user_attrs.get("owner", "") for arm in self.arms for t in arm.running()}
        dead = [owner for owner in owners if owner and not self.members.is_alive(owner)]
        with self.members.alone():
            found = [trial for arm in self.arms for trial in arm.take_over(dead, self.members.own)]
            if found:
                log.info("trials of processes that ended: %d are repeated with their values", len(found))
            open_arms = list(self.arms)
            while open_arms and len(found) < self.keys.n_jobs:
                open_arms.sort(key=lambda arm: len(arm.finished()) + len(arm.running()))
                arm = open_arms[0]
                trial = arm.draw(self.members.own) if arm.room() > 0 else None
                if trial is None:
                    open_arms.remove(arm)
                else:
                    found.append(trial)
        return found

    def others_work(self) -> bool:
        """Wait for trials of other processes, and return whether there were any.

        Raises:
            BusyError: there are, and `on_busy` is skip.
        """
        held = [t for arm in self.arms for t in arm.running() if t.number not in arm.left_alone]
        if not held:
            return False
        if not self.waits:
            raise BusyError(
                f"trials of search {self.name} that other processes hold: {len(held)} (on_busy=skip)",
                code="busy",
                key="on_busy",
            )
        time.sleep(WAITING)
        return True

    def execute(self, trials: Sequence[HeldTrial]) -> None:
        """Plan the runs of trials, launch them, and record the result of each."""
        planned: dict[int, HeldTrial] = {}
        runs = []
        for trial in trials:
            run = self.plan(trial)
            planned[id(run)] = trial
            runs.append(run)
            self.launched += 1
        set_group(runs, self.name)
        readers = check_runs(runs)
        for sharing in readers.values():
            share_cache(sharing, sharing[0].config.recipe.epochs * self.keys.n_trials)  # later trials read it too
        for run in runs:
            if run.status == Status.REFUSED:
                self.tell_refused(planned[id(run)], run)
            elif self.keys.prunes:
                self.connect(planned[id(run)], run)
        able = [run for run in runs if run.status != Status.REFUSED]
        if not able:
            return
        with contextlib.closing(self.launch(able)) as results:
            for run, result in results:
                self.tell(planned[id(run)], run, result)

    def plan(self, trial: HeldTrial) -> PlannedRun:
        """Return the run of a trial."""
        number = self.launched
        run = plan_run(trial.arm.options.overrides(trial.params), lambda own: self.compose(number, own), number)
        if run.composed:
            config = run.config
            trial.arm.set_attrs(
                trial.number,
                {
                    "run_key": run.key,
                    "student": config.student.name,
                    "teacher": config.teacher.model.name if config.teacher else None,
                    "method": config.method.name,
                    "role": config.method.target.role,
                },
            )
        return run

    def connect(self, trial: HeldTrial, run: PlannedRun) -> None:
        """Have a run report its epochs to its trial."""
        own = TrialConfig(self.url, trial.arm.study.study_name, trial.number, dict(self.keys.pruner))
        run.overrides += (f"++{override('trial', dataclasses.asdict(own))}",)
        run.composed = dataclasses.replace(run.config, trial=own)

    def tell_refused(self, trial: HeldTrial, run: PlannedRun) -> None:
        """Record a trial whose run cannot start: such a setting does not count, and is not tried again."""
        self.problems += 1
        with self.members.alone():
            if trial.arm.is_held(trial.number, self.members.own):
                self.fail(trial, Status.REFUSED, run.problem)

    def fail(self, trial: HeldTrial, status: str, error: str | None, counts: bool = False) -> None:
        from optuna.trial import TrialState

        trial.arm.set_attrs(trial.number, {"status": status, "error": error, COUNTS: counts})
        trial.arm.study.tell(trial.number, state=TrialState.FAIL)

    def tell(self, trial: HeldTrial, run: PlannedRun, result: JobResult | None) -> None:
        """Record the result of a trial, unless another process has taken the trial over in the meantime."""
        with self.members.alone():
            if trial.arm.is_held(trial.number, self.members.own):
                self.record(trial, run, result)
            else:
                print(
                    f"{trial.name}: left to another process, which took it over as this one was suspended", flush=True
                )

    def record(self, trial: HeldTrial, run: PlannedRun, result: JobResult | None) -> None:
        """Record the result of a trial in the storage, or leave the trial to be repeated."""
        from optuna.trial import TrialState

        arm, number = trial.arm, trial.number
        if result is None or result.lost:
            result = result_of_complete(run) or result
        if result is not None and result.status == Status.COMPLETE:
            try:
                values = [result.score(name) for name in self.objectives]
            except ValueError as error:  # an objective that the run does not have
                raise ConfigError(str(error), code="no_objective", key="objectives") from None
            arm.set_attrs(
                number,
                {"status": str(result.status), "run": Path(result.run or "").name, "scores": dict(result.scores)},
            )
            arm.study.tell(number, values)
            print(f"{trial.name}: {objectives_text(self.objectives, values)}; {self.position(arm)}", flush=True)
        elif result is not None and result.status == Status.PRUNED:
            arm.set_attrs(number, {"status": str(result.status), "error": result.error})
            arm.study.tell(number, state=TrialState.PRUNED)
            print(f"{trial.name}: pruned; {self.position(arm)}", flush=True)
        elif result is None or result.lost:
            self.tell_lost(trial, (result and result.error) or "its process ended without a result")
        elif result.status == Status.FAILED:
            self.tell_failed(trial, run, result)
        else:  # skipped or interrupted
            arm.release(number, {"error": result.error})

    def tell_failed(self, trial: HeldTrial, run: PlannedRun, result: JobResult) -> None:
        """Record a failure: a loss that is not finite is a result at chance accuracy; others do not count."""
        failure = read_failure(run.directory.path)
        code = failure.code if failure else ""
        if code == NOT_FINITE and failure:
            classes, _ = failure.summary(0.0).classes_and_shape
            trial.arm.set_attrs(trial.number, {"scores": {"val_acc": 1 / classes}})
            if list(self.objectives) == ["val_acc"]:
                trial.arm.set_attrs(trial.number, {"status": DIVERGED, "error": result.error})
                trial.arm.study.tell(trial.number, [1 / classes])
            else:  # the other objectives have no value that means failure
                self.fail(trial, DIVERGED, result.error, counts=True)
            print(f"{trial.name}: diverged, counted at chance; {self.position(trial.arm)}", flush=True)
        elif code == OUT_OF_MEMORY:
            self.tell_lost(trial, result.error)
        elif code in OF_THE_MACHINE:
            self.problems += 1
            trial.arm.release(trial.number, {"error": result.error})
        else:
            self.problems += 1
            self.fail(trial, Status.FAILED, result.error)

    def tell_lost(self, trial: HeldTrial, error: str | None) -> None:
        """Record that a trial ended by a lack of memory or the death of its process, for which its setting may be the
        reason: it is repeated, but not without end."""
        self.problems += 1
        lost = trial.arm.attributes(trial.number).get(LOST, 0) + 1
        if lost >= MOST_LOST:
            self.fail(trial, Status.FAILED, error)
        else:
            trial.arm.release(trial.number, {LOST: lost, "error": error})

    def position(self, arm: Arm) -> str:
        """Return how far an arm is, with the best value of its complete trials so far."""
        done = arm.finished()
        text = f"{len(done)} of {self.keys.n_trials} finished"
        complete = [t for t in done if t.user_attrs.get("status") == Status.COMPLETE]
        values = [t.value for t in complete if t.value is not None] if len(self.objectives) == 1 else []
        if not values:
            return text
        best = max(values) if arm.study.direction.name == "MAXIMIZE" else min(values)
        return f"{text}, best {objectives_text(self.objectives, [best])}"


def objectives_text(objectives: Sequence[str], values: Sequence[float]) -> str:
    """Return values of objectives for people."""
    return ", ".join(
        f"validation accuracy {100 * value:.2f}%" if name == "val_acc" else f"{name} {value:,.6g}"
        for name, value in zip(objectives, values, strict=True)
    )


def is_of_storage(error: Exception) -> bool:
    """Return True for an error of the storage: of Optuna, the database, or the disk below it."""
    return type(error).__module__.partition(".")[0] in ("optuna", "sqlalchemy", "sqlite3")


def left_over(arms: Sequence[Arm]) -> int:
    """Return how many trials this process could not finish, and no other one has finished since."""
    return sum(trial.number in arm.left_alone for arm in arms for trial in arm.running())


def folder_of(output_root: str | Path, name: str) -> Path:
    """Return the folder of a search's results."""
    return Path(output_root).expanduser() / "searches" / name
