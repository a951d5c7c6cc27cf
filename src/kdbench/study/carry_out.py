"""Carrying a study out: stage after stage, sweep after sweep, again and again until nothing is left."""

import logging
import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kdbench import lockstep
from kdbench import sweep as sweeps
from kdbench.config import RunConfig
from kdbench.errors import BusyError, ConfigError, KdbenchError, refuse
from kdbench.runs import check_writable
from kdbench.runtime import device_name, resolve
from kdbench.stopping import NOT_FINISHED, Interrupted, leave_if_asked, listening
from kdbench.study.plan import UNDISTILLED, StageConfig, Study, Sweep, key_of, shown
from kdbench.study.progress import DONE, REFUSED, RESUMABLE, Job, Speed, duration, located, summaries_under
from kdbench.study.winners import Candidate, choose, write_selected

log = logging.getLogger(__name__)


class StudyRun:
    """A study on its way: its jobs, the winners so far, and what failed.

    Args:
        study: What to do.
        launch: Carries out jobs together.
        max_learners: Of those that train in lockstep; 1: one run after the other.
    """

    def __init__(
        self, study: Study, launch: sweeps.Launch = lockstep.launch_jobs, max_learners: int = lockstep.MAX_LEARNERS
    ) -> None:
        self.study = study
        self.launch = launch
        self.max_learners = max_learners
        example = study.compose(*study.overrides, "method=logit")
        self.output_root = Path(example.output_root).expanduser()
        check_writable(self.output_root)
        self.device = device_name(resolve(example.runtime).device)
        self.folder = Path(example.output_root).expanduser() / "studies" / study.label
        self.winners: dict[str, list[dict[str, Any]]] = {}
        self.jobs: dict[str, list[tuple[Sweep, list[Job]]]] = {}
        self.parsed: dict[tuple[str, ...], RunConfig] = {}
        """Of each job, nothing of it decided yet."""
        self.composed: dict[tuple[str, ...], Job] = {}
        self.failed: dict[str, str] = {}
        """Titles of jobs that were tried twice, with what was said."""
        self.left: set[str] = set()
        """Titles of jobs that other processes have (on_busy=skip)."""
        self.started = time.monotonic()
        self.look()

    def look(self) -> None:
        """Where everything stands: every stage's jobs as far as they are known, winners where selection is complete."""
        for title in self.study.stages:
            self.plan(title)

    def plan(self, title: str) -> None:
        """The sweeps and jobs of a stage; of one that chooses, its winners if all its runs are complete."""
        stage = self.study.config.stages[title]
        winners: Sequence[Mapping[str, Any]] = []
        if stage.winners_of is not None:
            if stage.winners_of not in self.winners and stage.winners_of not in self.study.stages:
                self.plan(stage.winners_of)  # a selection that was carried out before, as far as it came
                self.select(stage.winners_of)
            winners = self.winners.get(stage.winners_of, [])
        self.jobs[title] = [(s, [self.job(o) for o in s.jobs]) for s in self.study.sweeps(stage, winners)]
        if stage.choose and all(job.state == DONE for _, jobs in self.jobs[title] for job in jobs):
            self.select(title)

    def job(self, overrides: tuple[str, ...]) -> Job:
        if overrides not in self.composed:
            try:
                self.parsed[overrides] = self.study.compose(*overrides)
                self.composed[overrides] = located(overrides, self.parsed[overrides])
            except ConfigError as error:
                self.composed[overrides] = Job(overrides, None, None, str(error))
        return self.composed[overrides]

    def select(self, title: str) -> None:
        """Choose a stage's winners among its complete runs."""
        stage = self.study.config.stages[title]
        assert stage.choose is not None
        candidates: dict[tuple[Any, ...], Candidate] = {}
        for _, jobs in self.jobs[title]:
            for job in (job for job in jobs if job.config):
                assert job.config is not None
                pair = next((o.partition("=")[2] for o in job.overrides if key_of(o) == "pair"), None)
                subject = (pair, job.config.student.name, job.config.method.name, varied(job, stage))
                candidate = candidates.setdefault(subject, Candidate(pair, varied(job, stage), []))
                candidate.summaries.extend(filter(None, [job.summary()]))
        self.winners[title] = choose(list(candidates.values()), stage.choose)

    def write_selected(self, title: str) -> None:
        """selected.yaml: the winners, from what they were chosen, and the seeds that chose and that report."""
        stages = self.study.config.stages
        reporting = {seed for stage in stages.values() if stage.winners_of == title for seed in stage.seeds}
        seeds = {"selection_seeds": stages[title].seeds, "final_seeds": sorted(reporting)}
        write_selected(self.selected, self.study.name, title, str(stages[title].choose), seeds, self.winners[title])

    @property
    def selected(self) -> Path:
        return self.folder / "selected.yaml"

    def all_jobs(self) -> list[Job]:
        """Of the stages to carry out, each run once."""
        known = {job.title: job for title in self.study.stages for _, jobs in self.jobs[title] for job in jobs}
        by_key = {job.directory.key if job.directory else job.title: job for job in known.values()}
        return list(by_key.values())

    def carry_out(self, minutes: float | None) -> int:
        """Everything that is left, for so many minutes at most.

        Returns:
            0: all is done; 1: done without the runs that failed twice; 3: time is up; 75: other processes have the
            rest, or a signal asked to stop; 130: Ctrl-C did.
        """
        with limited(minutes), sweeps.heading(self.line):
            try:
                for title in self.study.stages:
                    self.stage(title)
            except Interrupted as interruption:
                return interruption.exit_code
            except BusyError as error:
                log.info("%s", error)
                return NOT_FINISHED
        done = {job.title for job in self.all_jobs() if job.state == DONE}
        self.failed = {title: error for title, error in self.failed.items() if title not in done}
        self.left -= done
        if self.failed:
            return 1
        return NOT_FINISHED if self.left else 0

    def stage(self, title: str) -> None:
        """Carry out the sweeps of a stage, and choose if it chooses."""
        stage = self.study.config.stages[title]
        self.plan(title)
        log.info("\nstage %s", title)
        if stage.winners_of:
            self.write_selected(stage.winners_of)  # which seeds report may have changed since
        for subject, method in self.lacking(stage):
            self.failed[f"{title}: {subject} by {method}"] = f"{stage.winners_of} has no winner for it"
        for one, jobs in self.jobs[title]:
            done = "done already: " * all(job.state == DONE for job in jobs)
            log.info("%s%s", done, shown(self.study.arguments(one)))
        self.carry_out_jobs(self.jobs_of(title))
        if stage.choose:
            if left := self.left.intersection(job.title for _, jobs in self.jobs[title] for job in jobs):
                raise BusyError(f"stage {title} chooses when all its runs are done; {len(left)} are other processes'")
            self.select(title)
            self.write_selected(title)
            self.say_winners(title)

    def lacking(self, stage: StageConfig) -> list[tuple[str, str]]:
        """Pairs (students, for undistilled ones) and methods that wait for a winner where none could be chosen."""
        if stage.winners_of is None:
            return []
        selection = self.study.config.stages[stage.winners_of]
        methods = stage.winning_methods or list(selection.methods)
        wanted = [(pair, method) for pair in stage.pairs for method in methods]
        if self.study.selects_undistilled(selection):
            wanted += [(student, UNDISTILLED) for student in stage.students]
        known = {(w["pair"] or w["student"], w["method"]) for w in self.winners.get(stage.winners_of, [])}
        return [subject for subject in wanted if subject not in known]

    def jobs_of(self, title: str) -> list[Job]:
        """Of a stage, each once, in its order."""
        found: dict[str, Job] = {}
        for job in (job for _, jobs in self.jobs[title] for job in jobs):
            found.setdefault(job.directory.key if job.directory else job.title, job)
        return list(found.values())

    def carry_out_jobs(self, jobs: Sequence[Job]) -> None:
        """Carry out what is not done, and what failed of it once more.

        Raises:
            Interrupted: a signal asked to stop.
        """
        left = [job for job in jobs if job.state != DONE]
        said: dict[tuple[str, ...], sweeps.Job] = {}
        for attempt in ("", "once more: "):
            if not left:
                return
            wanted = [job.overrides for job in left]
            sweep = sweeps.Sweep(wanted, self.study_config, self.output_root)
            log.info("%s%s", attempt, self.packed(left))
            try:
                sweep.carry_out(self.launch, self.split, lockstep=True)
            except KdbenchError as error:
                refuse(error, program="kdbench-study")
            leave_if_asked()
            said = dict(zip(wanted, sweep.jobs, strict=True))
            for job in left:
                job.refresh()
            left = [job for job in left if job.state != DONE]
        for job in left:
            if said[job.overrides].status == "left":
                self.left.add(job.title)
            else:
                self.failed[job.title] = job.error or said[job.overrides].error or "said above"

    def study_config(self, overrides: tuple[str, ...]) -> RunConfig:
        """Of a job, as `kdbench OVERRIDES` would parse it.

        Raises:
            ConfigError: it cannot run.
        """
        return self.parsed[overrides] if overrides in self.parsed else self.study.compose(*overrides)

    def split(self, jobs: Sequence[sweeps.Job]) -> list[list[sweeps.Job]]:
        return lockstep.split(jobs, self.max_learners)

    def groups(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """Those not done, as they train together."""
        left = [job for job in jobs if job.config and job.state != DONE]
        configs = [job.config for job in left if job.config]
        return [[left[n] for n in group] for group in lockstep.groups(configs, self.max_learners)]

    def packed(self, jobs: Sequence[Job]) -> str:
        """How jobs that are not done train together, in words."""
        sizes = [len(group) for group in self.groups(jobs)]
        shared = [size for size in sizes if size > 1]
        runs = f"{len(jobs)} runs" if len(jobs) > 1 else "1 run"
        if not shared:
            return f"{runs}, one after the other" if len(jobs) > 1 else runs
        alone = f", {len(sizes) - len(shared)} alone" * (len(sizes) > len(shared))
        return f"{runs}: {sum(shared)} in lockstep, in groups of {', '.join(map(str, shared))}{alone}"

    def line(self) -> str:
        """How far the study is, for the line above each run."""
        jobs = self.all_jobs()
        for job in jobs:
            job.refresh()
        done = sum(job.state == DONE for job in jobs)
        failed = f", {len(self.failed)} failed" if self.failed else ""
        return (
            f"study {self.study.label}: {done} of {len(jobs) + self.unknown()} runs done{failed}, "
            f"{duration(time.monotonic() - self.started)} so far, {self.time_left(jobs)}"
        )

    def unknown(self) -> int:
        """Runs that wait for winners which are not yet chosen."""
        stages = (self.study.config.stages[title] for title in self.study.stages)
        return sum(
            self.study.unknown_winners(stage)
            for stage in stages
            if stage.winners_of and not self.winners.get(stage.winners_of)
        )

    def time_left(self, jobs: Sequence[Job]) -> str:
        """At the speed of the runs finished under the same output_root on such a device, in words."""
        speed = Speed(summaries_under(self.output_root), self.device)
        left = [job for job in jobs if job.state != DONE and job.config]
        seconds = [speed.seconds(job) for job in left]
        known = [s for s in seconds if s is not None]
        if len(known) < len(seconds) or (not known and self.unknown()):
            return "time left unknown: no finished run to measure it by"
        unknown = self.unknown() * self.time_of_final(speed)
        saved = speed.saved(self.groups(left))
        less = f", up to {duration(saved)} less in lockstep" if saved else ""
        return f"about {duration(sum(known) + unknown)} left{less}"

    def time_of_final(self, speed: Speed) -> float:
        """Seconds of a run whose setting is not yet chosen: the candidates' mean, at the epochs of the finals."""
        per_epoch = [
            (speed.seconds(job) or 0) / job.epochs_left
            for title in self.study.stages
            if self.study.config.stages[title].choose
            for _, jobs in self.jobs[title]
            for job in jobs
            if job.config and job.epochs_left
        ]
        epochs = self.study.compose(*self.study.overrides, "method=logit").recipe.epochs
        return epochs * sum(per_epoch) / len(per_epoch) if per_epoch else 0.0

    def dry_run(self) -> str:
        """Every sweep and run with its state, and the time left."""
        lines = [self.study.config.question.strip()]
        for title in self.study.stages:
            stage = self.study.config.stages[title]
            waiting = (
                self.study.unknown_winners(stage) if stage.winners_of and not self.winners.get(stage.winners_of) else 0
            )
            lines.append(
                f"\nstage {title}" + (f": {waiting} runs wait for the winners of {stage.winners_of}" * bool(waiting))
            )
            for one, jobs in self.jobs[title]:
                lines.append(f"  {shown(self.study.arguments(one))}")
                common = (
                    set(jobs[0].overrides).intersection(*(job.overrides for job in jobs)) if len(jobs) > 1 else set()
                )
                for job in jobs:
                    own = " ".join(o for o in job.overrides if o not in common)
                    lines.append(f"    {self.described(job):<28}{own}" + (f": {job.error}" if job.error else ""))
            groups = [group for group in self.groups(self.jobs_of(title)) if len(group) > 1]
            for number, group in enumerate(groups, 1):
                lines.append(f"  in lockstep, group {number}: {self.members(group)}")
            if waiting and self.max_learners > 1:
                lines.append("  those that wait join the groups where they can share")
        jobs = self.all_jobs()
        counts = {state: sum(job.state == state for job in jobs) for state in (DONE, RESUMABLE, "missing", REFUSED)}
        counts["waiting for winners"] = self.unknown()
        total = ", ".join(f"{n} {state}" for state, n in counts.items() if n or state in (DONE, "missing"))
        lines.append(f"\n{len(jobs) + self.unknown()} runs: {total}; {self.time_left(jobs)}")
        return "\n".join(lines)

    def members(self, group: Sequence[Job]) -> str:
        """Who trains together, and what is saved by asking their teacher once, in words."""
        configs = [job.config for job in group if job.config]
        teacher = next((config.teacher.model.name for config in configs if config.teacher), None)
        names = Counter(f"{config.student.name} {config.method.name}" for config in configs)
        listed = ", ".join(f"{number} x {name}" if number > 1 else name for name, number in names.items())
        less = f", {lockstep.saving(configs):.0%} less arithmetic" if teacher else ""
        return f"{listed}, seed {configs[0].seed}" + (f", from {teacher}{less}" if teacher else "")

    def described(self, job: Job) -> str:
        if job.state == RESUMABLE and job.config:
            return (
                f"{job.state} ({job.config.recipe.epochs - int(job.epochs_left)} of {job.config.recipe.epochs} epochs)"
            )
        return job.state

    def say_winners(self, title: str) -> None:
        for w in self.winners[title]:
            margin = f"{w['margin']:.2f} points ahead, noise {w['noise']:.2f}" if w["runner_up"] else "without a rival"
            if w["tie"]:
                margin = f"a tie, the first of the grid; noise {w['noise']:.2f}"
            log.info("chosen: %s %s: %s (%s)", w["pair"] or w["student"], w["method"], " ".join(w["overrides"]), margin)
        log.info("written to %s", self.selected)

    def result_runs(self) -> list[Path]:
        """Complete runs of the stages that do not choose: what a report is made of."""
        stages = [title for title in self.study.stages if not self.study.config.stages[title].choose]
        jobs = [job for title in stages for _, jobs in self.jobs[title] for job in jobs]
        return list(dict.fromkeys(job.directory.path for job in jobs if job.directory and job.state == DONE))


def varied(job: Job, stage: StageConfig) -> tuple[str, ...]:
    """The overrides by which the candidates of a pair and method differ."""
    grids = [*stage.methods.values(), stage.undistilled]
    keys = {key for grid in grids for key in grid or {}}
    return tuple(override for override in job.overrides if key_of(override) in keys)


@contextmanager
def limited(minutes: float | None) -> Iterator[None]:
    """Ask what is done inside to stop, as Ctrl-C would, after so many minutes."""
    with listening():
        signal.setitimer(signal.ITIMER_REAL, 60 * (minutes or 0))  # 0: never
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
