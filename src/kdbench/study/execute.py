"""The execution of a study: stage after stage, as often as the same command is given, until nothing is left."""

import contextlib
import logging
import shlex
import signal
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from kdbench.errors import BusyError, KdbenchError, report_error
from kdbench.rundir.files import write_text
from kdbench.rundir.summary import Status
from kdbench.study.overview import group_sizes, progress_line
from kdbench.study.plan import StudyPlan
from kdbench.study.progress import is_done, lack_of_teacher, past_failure
from kdbench.study.winners import Winner, write_selected, yaml_of
from kdbench.sweep.execute import Group, Groups, Launch, LaunchGroup, Results, execute, in_turn, launch_here
from kdbench.sweep.launcher import GroupLauncher
from kdbench.sweep.lockstep import group_planned
from kdbench.sweep.plan import PlannedRun
from kdbench.sweep.tracking import set_group
from kdbench.system.signals import NOT_FINISHED, Interrupted, handled, raise_if_requested

log = logging.getLogger(__name__)


class StudyExecution:
    """Execution of the plan of a study.

    Args:
        plan: of the study.
        launch: function that executes runs that train together in this process.
        show: function that shows the directories of a stage's complete runs.
        launcher: launcher that executes groups of runs elsewhere; None for this process.
        only_new: leave out the runs that have failed before, and those of a teacher that is not complete.
    """

    def __init__(
        self,
        plan: StudyPlan,
        launch: LaunchGroup | None = None,
        show: Callable[[Sequence[Path]], None] = lambda paths: None,
        launcher: GroupLauncher | None = None,
        only_new: bool = False,
    ) -> None:
        self.plan = plan
        here = in_turn(launch or partial(launch_here, heading=self.progress))
        self.launch: Launch = partial(self.launch_elsewhere, launcher) if launcher else here
        self.group: Group = launcher.group if launcher else partial(group_planned, max_learners=plan.max_learners)
        self.show = show
        self.only_new = only_new
        self.failed: dict[str, str] = {}
        """Messages by the titles of runs that failed twice or were refused."""
        self.skipped: set[str] = set()
        """Titles of runs that other processes hold (on_busy=skip)."""
        self.started = time.monotonic()

    def progress(self) -> str:
        """Return how far the study is, in one line."""
        return progress_line(self.plan, len(self.failed), time.monotonic() - self.started)

    def launch_elsewhere(self, launcher: GroupLauncher, groups: Groups) -> Generator[tuple[int, Results], None, None]:
        """Execute groups with a launcher, and print the progress of the study as they end."""
        print(f"\n{self.progress()}", flush=True)
        with contextlib.closing(launcher.launch_groups(groups)) as ended:
            for position, results in ended:
                yield position, results  # is on its run directories by now
                print(self.progress(), flush=True)

    def execute(self, minutes: float | None = None) -> int:
        """Execute everything that is left.

        Args:
            minutes: time limit; None for no limit.

        Returns:
            0: all is done; 1: done but for the runs in `failed`; 3: time is up; 75: other processes hold the rest, or a
            signal requested a stop; 130: Ctrl-C did.

        Raises:
            ConfigError: a stage needs winners that are not chosen yet.
        """
        self.plan.check_selections()
        with limit_time(minutes):
            try:
                self.write_study()
                for title in self.plan.study.stages:
                    self.execute_stage(title)
            except Interrupted as interruption:
                return interruption.exit_code
            except BusyError as error:
                log.info("%s", error)
                return NOT_FINISHED
        done = {run.title for run in self.plan.all_runs() if is_done(run)}
        self.failed = {title: message for title, message in self.failed.items() if title not in done}
        self.skipped -= done
        if self.failed:
            return 1
        return NOT_FINISHED if self.skipped else 0

    def execute_stage(self, title: str) -> None:
        """Execute the sweeps of a stage, and choose its winners if it chooses.

        Raises:
            BusyError: it chooses, and other processes hold runs of it.
            Interrupted: a stop was requested.
        """
        plan, stage = self.plan, self.plan.stage(title)
        self.select_for(title)
        for subject in plan.without_winner(title):
            self.failed[f"{title}: {subject}"] = f"{stage.winners_of} has no winner for it"
        for sweep in plan.sweeps[title]:
            done = "done already: " if all(map(is_done, sweep.runs)) else ""
            log.info("%s%s", done, shlex.join(sweep.command))
        runs = plan.runs_of(title)
        set_group(runs, f"{plan.study.label}/{title}")
        for level in plan.levels_of(title):
            self.execute_runs(level, whole=bool(stage.measures))
        if stage.choose:
            if held := self.skipped.intersection(run.title for run in runs):
                raise BusyError(
                    f"stage {title} chooses when all its runs are done; other processes hold {len(held)} of them",
                    code="busy",
                    key="on_busy",
                )
            plan.choose_winners(title)
            self.write_selected(title)
            for winner in plan.winners[title]:
                log.info("chosen: %s", winner_text(winner))
            log.info("written to %s", plan.selected)

    def select_for(self, title: str) -> None:
        """Plan a stage once those before it were executed, and write the winners that it trains."""
        plan, selection = self.plan, self.plan.stage(title).winners_of
        if selection in plan.study.stages and selection not in plan.winners:
            plan.choose_winners(selection)  # by other processes, and runs may have failed
        plan.plan_stage(title, executing=True)
        log.info("\nstage %s", title)
        if selection:
            if left := sum(not is_done(run) for run in plan.runs_of(selection)):
                log.info("%s: chosen without %d runs that are not complete", selection, left)
            self.write_selected(selection)  # the seeds that report may have changed since

    def execute_runs(self, runs: Sequence[PlannedRun], whole: bool = False) -> None:
        """Execute the runs that are not complete, and those that fail once more.

        Args:
            runs: the runs.
            whole: execute all of them again if one is missing, such as networks that are measured in turn.

        Raises:
            Interrupted: a stop was requested.
        """
        left = [run for run in runs if not is_done(run)]
        if self.only_new:
            trained = {run.key for run in self.plan.all_runs()}
            reasons = {run.title: past_failure(run) or lack_of_teacher(run, trained) for run in left if not run.error}
            reasons = {title: reason for title, reason in reasons.items() if reason}
            self.failed |= reasons
            left = [run for run in left if run.title not in reasons]
        for attempt in ("", "once more: "):
            if not left:
                return
            log.info("%s%s", attempt, group_sizes(self.plan, left))
            try:
                execute(
                    runs if whole else left,
                    self.plan.output_root,
                    self.launch,
                    self.group,
                    lockstep=True,
                    show=self.show,
                )
            except KdbenchError as error:
                report_error(error, program="kdbench-study")
            raise_if_requested()
            left = [run for run in left if not is_done(run)]
            if stopped := sum(run.status == Status.INTERRUPTED for run in left):
                raise BusyError(f"{stopped} runs were stopped by signals to their processes", code="interrupted")
        for run in left:
            if run.status == Status.SKIPPED:
                self.skipped.add(run.title)
            else:
                self.failed[run.title] = run.problem or "see the messages above"

    def write_study(self) -> None:
        """Write study.yaml: what the folder stands for, since its name has only a hash of it."""
        study = self.plan.study
        content = {"study": study.name, "question": study.config.question.strip(), **study.changes}
        header = "# The study of this folder, and what its command line changed of it.\n"
        self.plan.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.plan.folder / "study.yaml", header + yaml_of(content))

    def write_selected(self, title: str) -> None:
        """Write selected.yaml: the winners of a stage, their candidates, and the seeds that chose and that report."""
        stage = self.plan.stage(title)
        seeds = {"selection_seeds": stage.seeds, "final_seeds": self.plan.reporting_seeds(title)}
        winners = self.plan.winners[title]
        write_selected(self.plan.selected, self.plan.study.name, title, str(stage.choose), seeds, winners)


def winner_text(winner: Winner) -> str:
    """Return a winner and its margin in words."""
    if winner.runner_up is None:
        margin = "without a rival"
    elif winner.tie:
        margin = f"a tie, the first of the grid; noise {winner.noise:.2f}"
    else:
        margin = f"{winner.margin:.2f} points ahead, noise {winner.noise:.2f}"
    return f"{winner.pair or winner.student} {winner.method}: {' '.join(winner.overrides)} ({margin})"


@contextmanager
def limit_time(minutes: float | None) -> Iterator[None]:
    """Request a stop after some minutes, as Ctrl-C does; None never."""
    with handled():
        signal.setitimer(signal.ITIMER_REAL, 60 * (minutes or 0))  # 0: never
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
