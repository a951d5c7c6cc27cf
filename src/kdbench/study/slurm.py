"""A study on SLURM: each stage as an array job that starts when the one before has ended, and the report at the end.

The jobs are submitted at once. A stage whose settings depend on winners that are not selected yet has a job before it
that selects them and divides the runs into groups; the number of its tasks is foreseen with the first setting of each
grid in the place of the winners.
"""

import argparse
import copy
import json
import logging
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.config.derived import COMPRESS
from kdbench.errors import ConfigError
from kdbench.rundir.files import write_json
from kdbench.rundir.lock import Lock
from kdbench.study.execute import StudyExecution
from kdbench.study.plan import StudyPlan
from kdbench.study.progress import is_done
from kdbench.study.read import is_of_launcher
from kdbench.study.slurm_job import FinishJob, PlanJob, StageJob, StudyCommand, command_of, divide
from kdbench.sweep.lockstep import group_planned
from kdbench.sweep.plan import PlannedRun
from kdbench.sweep.slurm import new_folder, submit_arrays
from kdbench.sweep.slurm_commands import ENDED, JobState, SlurmError, jobs_of_user, unreachable
from kdbench.sweep.slurm_options import SlurmOptions
from kdbench.system import signals
from kdbench.system.signals import NOT_FINISHED

log = logging.getLogger(__name__)

JOBS_FILE = "slurm.json"
"""File in the folder of a study with the jobs of its last submission."""
POLL_SECONDS = 5.0
GROUPS_FILE = "groups.pkl"
UNKNOWN_SECONDS = 60.0
"""Time for which a job may be unknown to squeue, such as after a restart of SLURM, before it counts as ended."""


@dataclass(frozen=True)
class SubmittedJob:
    """A job of a study."""

    job: str
    """Id of the job, without the number of a task."""
    purpose: str
    tasks: int
    folder: str
    """Folder of its files, the logs among them."""


def submit_study(
    execution: StudyExecution, options: SlurmOptions, arguments: Sequence[str], given: argparse.Namespace
) -> int:
    """Submit what is left of a study, or find it submitted already; return the exit code.

    Args:
        execution: of the study.
        options: of the launcher, accepted by SLURM.
        arguments: arguments of the command line.
        given: the same, parsed.

    Raises:
        ConfigError: SLURM refuses the jobs, or the command line does not fit.
    """
    plan = execution.plan
    if given.minutes is not None:
        raise ConfigError(
            "--minutes does not limit the jobs of hydra/launcher=slurm; their limit is hydra.launcher.time, after "
            "which they come back and continue",
            code="usage",
            key="--minutes",
        )
    plan.check_selections()
    command = command_of(
        [text for text in given.overrides if not is_of_launcher(text)], given.config_dir, plan.max_learners
    )
    own = tuple(text for text in arguments if not is_of_launcher(text) and text != "--wait")
    lock = Lock(plan.folder / "slurm.lock", f"the submission of study {plan.study.label}")
    with lock.held():  # a second command waits, and then finds the jobs of the first one
        jobs = queued_jobs(plan)
        is_new = not jobs
        if jobs:
            names = ",".join(dict.fromkeys(job.job for job in jobs))
            log.info(
                "study %s is submitted already, as the jobs %s; scancel %s cancels them, and the same command then "
                "submits what is left",
                plan.study.label, names, names.replace(",", " "),
            )  # fmt: skip
            jobs = read_jobs(plan)
        else:
            execution.write_study()
            last = FinishJob(command, own, given, options.max_stops)
            jobs = Submission(execution, options, command, last).submit()
            show(jobs, plan)
    signals.raise_if_requested()
    if given.wait:
        return wait(jobs, execution)
    return 0 if is_new else NOT_FINISHED


def show(jobs: Sequence[SubmittedJob], plan: StudyPlan) -> None:
    """Print the jobs of a study, and how to watch and to cancel them."""
    print()
    for job in jobs:
        print(f"SLURM job {job.job}: {job.purpose}, {job.tasks} task{'s' * (job.tasks != 1)}; logs: {job.folder}")
    names = [job.job for job in jobs]
    print(f"\nwatch: squeue --jobs {','.join(names)}, and the same command with --dry-run")
    print(f"cancel: scancel {' '.join(names)}")
    print(f"report: {plan.folder / 'report'}, when the last job has ended", flush=True)


class Submission:
    """The submission of what is left of a study.

    Args:
        execution: of the study.
        options: keys of the launcher, which SLURM accepts.
        command: command line for the jobs that plan.
        last: the last job.
    """

    def __init__(
        self, execution: StudyExecution, options: SlurmOptions, command: StudyCommand, last: FinishJob
    ) -> None:
        self.execution = execution
        self.plan = execution.plan
        self.options = options
        self.command = command
        self.last = last
        self.jobs: list[SubmittedJob] = []
        self.before: list[str] = []
        """Jobs of the stage before."""
        self.deferred: set[str] = set()
        """Stages whose runs are not known yet."""

    def submit(self) -> list[SubmittedJob]:
        """Submit the jobs, and record each in the folder of the study. Errors: see `submit_study`."""
        foreseen = foresee(self.plan)
        try:
            for title in self.plan.study.stages:
                self.submit_stage(title, foreseen)
            self.array([self.last], "report", self.after(job.job for job in self.jobs))
        except BaseException:
            if self.jobs:
                names = " ".join(job.job for job in self.jobs)
                log.info("the study was not submitted completely; scancel %s cancels what was", names)
            raise
        return self.jobs

    def is_deferred(self, title: str) -> bool:
        """Return whether the runs of a stage depend on runs that are not complete, beyond their order."""
        stage, plan = self.plan.stage(title), self.plan
        earlier = {*stage.measures, *(name for chain in stage.chains.values() for name in chain.of)}
        waits = stage.winners_of is not None and stage.winners_of not in plan.winners
        unmeasured = any(not is_done(run) for run in plan.networks_of(stage.measures))
        return waits or unmeasured or bool(earlier & self.deferred)

    def submit_stage(self, title: str, foreseen: StudyPlan) -> None:
        """Submit the array of each level of a stage, after a job that plans it where its runs are not known yet."""
        if self.is_deferred(title):
            self.deferred.add(title)
        elif self.plan.stage(title).winners_of:
            self.execution.select_for(title)
        for number, runs in enumerate(foreseen.levels_of(title)):
            if title in self.deferred or not all(map(can_be_checked, runs)):
                self.submit_deferred(title, number, runs)
            elif groups := divide(runs, self.plan, title):
                calls = [StageJob([group], **self.stops()) for group in groups]
                self.before = self.array(calls, title, self.after(self.before))

    def submit_deferred(self, title: str, level: int, foreseen: Sequence[PlannedRun]) -> None:
        """Submit the job that plans a level of a stage, and the array that completes its runs.

        Args:
            title: of the stage.
            level: place of the level, counted from 0.
            foreseen: as many runs as it will have.
        """
        file = new_folder(self.plan.output_root) / GROUPS_FILE
        (planned,) = self.array(
            [PlanJob(self.command, title, level, file, self.options.max_stops)],
            f"{title}-plan",
            self.after(self.before),
        )
        count = max(1, len(group_planned([run for run in foreseen if not run.error], self.plan.max_learners)))
        calls = [StageJob(file, number, count, **self.stops()) for number in range(count)]
        self.before = self.array(calls, title, f"afterok:{planned}")

    def stops(self) -> dict[str, Any]:
        """Return the options by which jobs are requeued."""
        return {"max_stops": self.options.max_stops, "requeue": self.options.requeue}

    def after(self, jobs: Any) -> str | None:
        """Return the condition that some jobs have ended, however they did: failed runs do not keep others waiting."""
        names = list(jobs)
        return f"afterany:{':'.join(names)}" if names else None

    def array(self, calls: Sequence[Callable[[], None]], purpose: str, dependency: str | None) -> list[str]:
        """Submit calls as an array job, or several where SLURM limits the size of one; return their ids.

        Args:
            calls: one for each task.
            purpose: name of the jobs, for people.
            dependency: value of `sbatch --dependency`.
        """
        submitted = []
        name = f"{purpose}.{self.plan.study.label}"  # squeue shows eight letters
        for tasks in submit_arrays(self.options, calls, self.plan.output_root, name, dependency):
            job = SubmittedJob(tasks[0].array, purpose, len(tasks), str(tasks[0].folder))
            submitted.append(job.job)
            self.jobs.append(job)
            write_json(self.plan.folder / JOBS_FILE, {"jobs": [vars(job) for job in self.jobs]})
        return submitted


def can_be_checked(run: PlannedRun) -> bool:
    """Return whether everything that can be wrong with a run shows before it starts: its parent's network is there."""
    if run.error or run.config.parent is None or run.config.kind == COMPRESS:
        return True
    return any(run.directory.path.parent.glob(f"*_{run.config.parent.run}/summary.json"))


def foresee(plan: StudyPlan) -> StudyPlan:
    """Return a plan in which the first setting of each grid is in the place of winners that are not selected yet."""
    foreseen = copy.copy(plan)
    foreseen.winners, foreseen.sweeps = dict(plan.winners), dict(plan.sweeps)
    for title in plan.study.stages:
        selection = plan.stage(title).winners_of
        if selection is not None and selection not in foreseen.winners:
            foreseen.choose_first(selection)
        foreseen.plan_stage(title)
    return foreseen


def read_jobs(plan: StudyPlan) -> list[SubmittedJob]:
    """Return the jobs of the last submission of a study; none if it was not submitted."""
    try:
        content = json.loads((plan.folder / JOBS_FILE).read_text())
        return [SubmittedJob(**job) for job in content["jobs"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(
            f"{plan.folder / JOBS_FILE} cannot be read ({error}); if squeue shows no job of the study, delete it",
            code="damaged",
            key="hydra/launcher",
        ) from None


def queued_jobs(plan: StudyPlan) -> list[SubmittedJob]:
    """Return the jobs of a study that SLURM still has.

    Raises:
        ConfigError: SLURM does not answer.
    """
    jobs = read_jobs(plan)
    if not jobs:
        return []
    try:
        active = active_jobs()
    except SlurmError as error:
        raise unreachable(f"its controller does not answer: {error}") from None
    return [job for job in jobs if job.job in active]


def active_jobs() -> set[str]:
    """Return the ids of this user's jobs that have not ended, without the numbers of tasks."""
    return ids_of(jobs_of_user(), ended=False)


def ids_of(jobs: Mapping[str, JobState], ended: bool) -> set[str]:
    """Return the ids of jobs that have ended, or of those that have not, without the numbers of tasks."""
    return {name.partition("_")[0] for name, job in jobs.items() if (job.state in ENDED) == ended}


class StudyWatch:
    """The jobs of a study that have not ended. One that squeue does not list counts as ended after a while.

    Args:
        jobs: ids of all its jobs.
    """

    def __init__(self, jobs: Collection[str]) -> None:
        self.jobs = jobs
        self.unknown: dict[str, float] = {}
        """Time at which each job was first not listed."""
        self.is_away = False

    def left(self) -> set[str]:
        """Return the ids of the jobs that have not ended; all where SLURM does not answer, which is reported once."""
        try:
            listed = jobs_of_user()
        except SlurmError as error:
            if not self.is_away:
                log.info("SLURM does not answer (%s); its jobs are waited for all the same", error)
            self.is_away = True
            return set(self.jobs)
        self.is_away = False
        now, active, ended = time.monotonic(), ids_of(listed, ended=False), ids_of(listed, ended=True)
        for job in active | ended:
            self.unknown.pop(job, None)
        absent = {job for job in self.jobs if job not in active | ended}
        return {
            job
            for job in self.jobs
            if job in active or (job in absent and now - self.unknown.setdefault(job, now) < UNKNOWN_SECONDS)
        }


def wait(jobs: Sequence[SubmittedJob], execution: StudyExecution) -> int:
    """Wait until the jobs of a study have ended, print its progress, and return the exit code of its end.

    Args:
        jobs: the jobs; they continue where this process is stopped.
        execution: of the study.
    """
    plan, shown, watch = execution.plan, "", StudyWatch({job.job for job in jobs})
    while True:
        left = watch.left()
        line = f"{sum(map(is_done, plan.all_runs()))} runs done, {len(left)} jobs left"
        if line != shown:
            print(line, flush=True)
            shown = line
        if not left:
            break
        time.sleep(POLL_SECONDS)
    return outcome(jobs, execution)


def outcome(jobs: Sequence[SubmittedJob], execution: StudyExecution) -> int:
    """Print how a study has ended on SLURM, and return its exit code."""
    plan = StudyPlan(execution.plan.study, execution.plan.max_learners)
    left = [run.title for run in plan.all_runs() if not is_done(run)]
    left += [f"{title}: {name}" for title in plan.study.stages for name in plan.without_winner(title)]
    print(f"\nstudy {plan.study.label}: {sum(map(is_done, plan.all_runs()))} of {len(plan.all_runs())} runs done")
    for title in left:
        print(f"kdbench-study: error: not done: {title}: see the logs of its job", file=sys.stderr)
    print(f"log of the last job: {jobs[-1].folder}")
    return 1 if left else 0
