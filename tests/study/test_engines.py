"""Studies on engines: groups go to a launcher, and on SLURM to jobs that start when those before them have ended."""

import argparse
import contextlib
import pickle
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from kdbench.errors import ConfigError, RunError
from kdbench.rundir.summary import Status
from kdbench.rundir.unfinished import Failure, read_failure, write_failure
from kdbench.study import slurm, slurm_job
from kdbench.study.command import study as study_command
from kdbench.study.execute import StudyExecution
from kdbench.study.launcher import launcher_of
from kdbench.study.overview import overview
from kdbench.study.progress import is_done
from kdbench.study.read import read_study
from kdbench.study.slurm_job import PlanJob, StageGroup, StageJob, StudyCommand, divide
from kdbench.sweep import slurm as sweep_slurm
from kdbench.sweep.launcher import GroupLauncher
from kdbench.sweep.plan import JobResult, PlannedRun
from kdbench.sweep.slurm_commands import JobState, SlurmError
from kdbench.sweep.slurm_job import ArrayTask
from kdbench.sweep.worker import unpack_group
from kdbench.system import signals
from kdbench.system.signals import INTERRUPTED, NOT_FINISHED
from tests.conftest import rest_wide
from tests.slurm import slurm_options
from tests.study.conftest import Tiny, Trainer, better_at_4


class Engine(GroupLauncher):
    """Completes groups at once, the last one first."""

    def __init__(self, trainer: Trainer) -> None:
        super().__init__(max_learners=2)
        self.trainer = trainer
        self.calls: list[list[int]] = []
        """Sizes of the groups of each call."""

    def launch_groups(
        self, groups: Sequence[Sequence[PlannedRun]]
    ) -> Generator[tuple[int, Sequence[JobResult | None]], None, None]:
        self.calls.append([len(group) for group in groups])
        for position in reversed(range(len(groups))):
            yield position, self.trainer(groups[position], 0)


def on_engine(tiny: Tiny, engine: Engine, *arguments: str) -> StudyExecution:
    """Return the small study on an engine."""
    return StudyExecution(tiny(*arguments, max_learners=2).plan, launcher=engine)


@pytest.mark.slow
def test_the_groups_of_a_stage_are_launched_at_once_and_winners_follow(
    tiny: Tiny, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.accuracy = better_at_4
    engine = Engine(trainer)
    study = on_engine(tiny, engine)
    assert study.execute() == 0
    assert engine.calls == [[1], [2], [2, 2]]
    assert all("method.temperature=4" in title for title in trainer.trained[3:] if "method=logit" in title)
    assert "3 of 7 runs done" in capsys.readouterr().out
    assert on_engine(tiny, engine).execute() == 0
    assert len(engine.calls) == 3  # complete runs are not launched


@pytest.mark.slow
def test_runs_whose_processes_were_stopped_are_not_failed_and_not_tried_again(tiny: Tiny, trainer: Trainer) -> None:
    engine = Engine(trainer)
    stopped = JobResult(Status.INTERRUPTED, error="stopped by SIGTERM")
    complete, trainer.run = trainer.run, lambda run: stopped  # type: ignore[method-assign]
    study = on_engine(tiny, engine)
    assert study.execute() == NOT_FINISHED
    assert (study.failed, engine.calls) == ({}, [[1]])
    trainer.run = complete  # type: ignore[method-assign]
    assert on_engine(tiny, engine).execute() == 0


@pytest.mark.slow
def test_ctrl_c_while_an_engine_works_ends_the_study_and_closes_the_engine(tiny: Tiny, trainer: Trainer) -> None:
    closed = []

    class Closed(Engine):
        def launch_groups(self, groups: Sequence[Sequence[PlannedRun]]) -> Any:
            try:
                yield from super().launch_groups(groups)
            finally:
                closed.append(len(groups))

    trainer.interrupt_after = 1
    assert on_engine(tiny, Closed(trainer)).execute() == INTERRUPTED
    assert closed == [1, 1]
    trainer.interrupt_after = None
    assert on_engine(tiny, Engine(trainer)).execute() == 0


@pytest.mark.parametrize(
    ("given", "code", "key"),
    rest_wide([
        (["hydra/launcher=basic"], "unknown_option", "hydra/launcher"),
        (["hydra.launcher.max_learners=2"], "missing_value", "hydra/launcher"),
        (["hydra/launcher=lockstep", "hydra.launcher.max_lerners=2"], "unknown_key", "hydra.launcher.max_lerners"),
    ]),
)  # fmt: skip
def test_a_launcher_that_cannot_execute_a_study_is_an_error(
    studies: Path, given: list[str], code: str, key: str
) -> None:
    with pytest.raises(ConfigError) as error:
        launcher_of(read_study(["study=tiny", *given], studies))
    assert (error.value.code, error.value.key) == (code, key)
    assert "\n" not in str(error.value)


def test_the_launcher_is_no_part_of_a_study(studies: Path) -> None:
    plain = read_study(["study=tiny"], studies)
    chosen = read_study(["study=tiny", "hydra/launcher=slurm", "hydra.launcher.time=10"], studies)
    assert (chosen.label, chosen.overrides, chosen.changes) == (plain.label, plain.overrides, plain.changes)
    assert chosen.launcher == ("hydra/launcher=slurm", "hydra.launcher.time=10")


@pytest.mark.slow
def test_networks_that_are_measured_together_are_no_lockstep_group(tiny: Tiny, studies: Path) -> None:
    file = studies / "study" / "tiny.yaml"
    file.write_text(
        file.read_text() + "  two: {students: [resnet8, resnet20], seeds: [0]}\n  measured: {measures: [two]}\n"
    )
    text = overview(tiny("stages=[two,measured]").plan)
    assert "measured in turn, group 1: " in text
    assert text.count("in lockstep, group") == 1


# SLURM


class Submitted:
    """Takes the place of submitit's executor: records what is submitted, in one list for all of them."""

    calls: list[tuple[str, str | None, list[Any]]]

    def __init__(self, name: str, dependency: str | None) -> None:
        self.part: list[Any] = []
        self.calls.append((name, dependency, self.part))
        self.number = 10 * len(self.calls)

    @contextlib.contextmanager
    def batch(self) -> Iterator[None]:
        yield

    def submit(self, call: Any) -> SimpleNamespace:
        self.part.append(pickle.loads(pickle.dumps(call)))
        return SimpleNamespace(job_id=f"{self.number}_{len(self.part) - 1}")


@pytest.fixture
def submitted(monkeypatch: pytest.MonkeyPatch, trainer: Trainer) -> list[tuple[str, str | None, list[Any]]]:
    """Submit jobs to nowhere; return name, condition and calls of each array. Groups are completed by `trainer`."""
    Submitted.calls = []
    monkeypatch.setattr(sweep_slurm, "executor", lambda options, folder, name, dependency: Submitted(name, dependency))
    monkeypatch.setattr(sweep_slurm, "max_array_size", lambda: 1000)
    monkeypatch.setattr(slurm, "jobs_of_user", dict)
    monkeypatch.setattr(slurm_job, "log_to_console", lambda: None)

    class Group:
        def __init__(self, task: Any, max_stops: int, requeue: bool) -> None:
            self.runs = unpack_group(task)

        def __call__(self) -> None:
            trainer(self.runs, 0)

    monkeypatch.setattr(slurm_job, "GroupJob", Group)

    class Task(ArrayTask):
        """A task in which no run has a result of its own."""

        def read_results(self) -> list[JobResult]:
            return []

    monkeypatch.setattr(slurm_job, "own_task", lambda: Task("9", Path.cwd()))
    return Submitted.calls


@pytest.fixture
def submit(tiny: Tiny, studies: Path, monkeypatch: pytest.MonkeyPatch, submitted: Any) -> Callable[..., int]:
    """Submit the small study as its command does."""
    monkeypatch.setattr(
        StudyCommand, "plan", lambda self: tiny(*self.overrides[2:], max_learners=self.max_learners).plan
    )
    options = slurm_options()

    def make(*arguments: str, max_learners: int = 8, wait: bool = False) -> int:
        words = ["study=tiny", "output_root=out", *arguments]
        given = argparse.Namespace(
            overrides=words, config_dir=studies, minutes=None, wait=wait, analysis=None, margin=None
        )
        execution = tiny(*arguments, max_learners=max_learners)
        return slurm.submit_study(execution, options, [*words, "--wait"], given)

    return make


Submit = Callable[..., int]
Arrays = list[tuple[str, str | None, list[Any]]]


def code_of(call: Callable[[], None]) -> int:
    """Execute what a task does, and return its exit code."""
    try:
        call()
    except SystemExit as leaving:
        return int(leaving.code or 0)
    return 0


@pytest.mark.slow
def test_each_stage_is_an_array_after_the_one_before_and_the_jobs_complete_the_study(
    submit: Submit, submitted: Arrays, trainer: Trainer, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer.accuracy = better_at_4
    assert submit() == 0
    assert [(name, after, len(calls)) for name, after, calls in submitted] == [
        ("teachers.tiny", None, 1),
        ("selection.tiny", "afterany:10", 1),
        ("finals-plan.tiny", "afterany:20", 1),
        ("finals.tiny", "afterok:30", 2),
        ("report.tiny", "afterany:10:20:30:40", 1),
    ]
    assert not trainer.trained
    reported = []
    monkeypatch.setattr("kdbench.study.finish.write_report", lambda execution, given: reported.append(given) or 0)
    assert [code_of(call) for _, _, calls in submitted for call in calls] == [0] * 6
    assert len(trainer.trained) == len(set(trainer.trained)) == 7
    assert all("method.temperature=4" in title for title in trainer.trained[3:] if "method=logit" in title)
    plan = tiny().plan
    assert all(map(is_done, plan.all_runs()))
    selected: Any = OmegaConf.load(plan.selected)
    assert [winner.overrides for winner in selected.winners] == [["method.temperature=4"]]
    assert len(reported) == 1


@pytest.mark.slow
def test_a_study_that_is_queued_is_not_submitted_again_and_afterwards_only_what_is_left(
    submit: Submit, submitted: Arrays, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    submit()
    state = JobState("20_0", "PENDING", "Dependency", Path("x"))
    monkeypatch.setattr(slurm, "jobs_of_user", lambda: {"20_0": state})
    with caplog.at_level("INFO", "kdbench"):
        assert submit() == NOT_FINISHED
    assert "submitted already, as the jobs 20; scancel 20 cancels them" in caplog.text
    assert len(submitted) == 5
    monkeypatch.setattr(slurm, "jobs_of_user", lambda: {"20_0": JobState("20_0", "CANCELLED", "None", Path("x"))})
    (teachers,) = submitted[0][2]
    teachers()
    assert submit() == 0
    assert [name for name, _, _ in submitted[5:]] == [
        "selection.tiny", "finals-plan.tiny", "finals.tiny", "report.tiny"
    ]  # fmt: skip
    assert submitted[5][1] is None


def test_of_two_commands_at_once_one_submits_the_study_and_the_other_finds_its_jobs(
    submit: Submit, submitted: Arrays, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = {"20_0": JobState("20_0", "PENDING", "Dependency", Path("x"))}
    first = slurm.Lock(tiny().plan.folder / "slurm.lock", "the submission of a study")

    def wait(self: Any) -> None:  # until the first command has submitted everything
        first.release()
        submit_as_the_other()
        monkeypatch.setattr(slurm, "jobs_of_user", lambda: state)
        self.lease.acquire()

    def submit_as_the_other() -> None:
        with monkeypatch.context() as patched:
            patched.setattr(slurm.Lock, "wait", lambda self: self.lease.acquire())
            assert submit() == 0

    monkeypatch.setattr(slurm.Lock, "wait", wait)
    with first.held(), caplog.at_level("INFO", "kdbench"):
        assert submit() == NOT_FINISHED
    assert "waiting: the submission of study" in caplog.text
    assert "submitted already, as the jobs 20" in caplog.text
    assert len(submitted) == 5


@pytest.mark.slow
def test_winners_that_are_known_need_no_job_that_selects_them(
    submit: Submit, submitted: Arrays, trainer: Trainer, tiny: Tiny
) -> None:
    trainer.accuracy = better_at_4
    execution = tiny("stages=[teachers,selection]")
    execution.execute()
    assert submit() == 0
    assert [(name, len(calls)) for name, _, calls in submitted] == [("finals.tiny", 2), ("report.tiny", 1)]
    assert tiny().plan.selected.is_file()


@pytest.mark.slow
def test_students_of_a_teacher_that_failed_are_refused_in_one_line_and_the_last_job_reports_it(
    submit: Submit, submitted: Arrays, trainer: Trainer, tiny: Tiny, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("kdbench.study.finish.write_report", lambda execution, given: 0)
    monkeypatch.setattr("kdbench.study.execute.launch_here", lambda runs, first, heading: trainer(runs, first))
    trainer.fails = lambda title: "student=resnet20" in title
    submit()
    (teachers,), (selection,) = submitted[0][2], submitted[1][2]
    assert code_of(teachers) == 1
    assert len(trainer.launched) == 2  # once more
    (teacher,) = tiny().plan.runs_of("teachers")
    teacher.directory.path.mkdir(parents=True)
    write_failure(teacher.directory.path, Failure("not_finite", "the loss is nan", 1, {}))
    assert code_of(selection) == 1
    assert len(trainer.launched) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("its teacher is not complete: out/runs/" in line for line in lines)
    last = submitted[-1][2][0]
    assert code_of(last) == 1
    said = capsys.readouterr().err
    assert "seed=0: it failed" in said
    assert "its teacher is not complete" in said


@pytest.mark.slow
def test_what_a_lost_job_has_left_is_completed_by_the_last_one(
    submit: Submit, submitted: Arrays, trainer: Trainer, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdbench.study.finish.write_report", lambda execution, given: 0)
    monkeypatch.setattr("kdbench.study.execute.launch_here", lambda runs, first, heading: trainer(runs, first))
    submit()
    lost = {"finals.tiny"}
    codes = [code_of(call) for name, _, calls in submitted if name not in lost for call in calls]
    assert codes == [0] * 4
    assert all(map(is_done, tiny().plan.all_runs()))


@pytest.fixture
def last(submit: Submit, submitted: Arrays, trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Submit the study; return a function that executes its last job alone and returns the exit code."""
    monkeypatch.setattr("kdbench.study.execute.launch_here", lambda runs, first, heading: trainer(runs, first))
    submit()
    return lambda: code_of(submitted[-1][2][0])


@pytest.mark.slow
def test_a_last_job_that_is_stopped_without_progress_gives_its_runs_up_and_reports(
    last: Callable[[], int], trainer: Trainer, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    reported = []
    monkeypatch.setattr("kdbench.study.finish.write_report", lambda execution, given: reported.append(given) or 0)

    def stopped(run: PlannedRun) -> JobResult:
        signals.receive(10)  # SIGUSR1
        raise AssertionError

    trainer.run = stopped  # type: ignore[method-assign]
    for done in (0, 1):  # a run more is complete: progress, and stops are counted anew
        for number in range(3):
            if done and not number:
                trainer.complete(tiny().plan.runs_of("teachers")[0])
            assert last() == NOT_FINISHED
            with ArrayTask("9", tmp_path).stops.open("a") as stops:
                stops.write("75\n")
    assert not reported
    assert last() == 1
    assert not trainer.trained
    assert len(reported) == 1
    (candidate, *_) = tiny().plan.runs_of("selection")
    failure = read_failure(candidate.directory.path)
    assert failure is not None
    assert failure.message.startswith("stopped 3 times by SLURM without a new checkpoint (hydra.launcher.max_stops)")
    assert failure.message in capsys.readouterr().err


@pytest.fixture
def uncounted() -> Iterator[list[int]]:
    """Signals that reach a handler from before kdbench's, as submitit has one that requeues the job uncounted."""
    received: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: received.append(number))
    yield received
    signal.signal(signal.SIGUSR2, before)


def attempts(job: Callable[[], int], file: Path) -> int:
    """Execute a job as often as its batch script would requeue it, which counts, and return how often that was."""
    for number in range(20):
        if (code := job()) != NOT_FINISHED:
            assert code == 1
            file.unlink()
            return number
        with file.open("a") as stops:
            stops.write("75\n")
    raise AssertionError("requeued without end")


def test_stops_of_the_job_that_plans_a_stage_are_counted(
    submitted: Arrays, uncounted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(StudyCommand, "plan", lambda self: signal.raise_signal(signal.SIGUSR2))
    planning = PlanJob(StudyCommand((), None, 8, ".", ()), "finals", 0, tmp_path / "groups.pkl", max_stops=2)
    assert attempts(lambda: code_of(planning), ArrayTask("9", tmp_path).stops) == 2
    assert capsys.readouterr().err == (
        "kdbench: error: stopped 2 times by SLURM before the job was done (hydra.launcher.max_stops); give it more "
        "time: hydra.launcher.time\n"
    )
    assert not uncounted


@pytest.mark.slow
def test_a_last_job_that_is_stopped_while_it_plans_or_reports_ends_after_some_stops(
    last: Callable[[], int], uncounted: list[int], trainer: Trainer, tiny: Tiny, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("kdbench.study.finish.write_report", lambda *_: signal.raise_signal(signal.SIGUSR2))
    assert attempts(last, ArrayTask("9", tmp_path).stops) == 7  # the first one completes the runs
    assert all(map(is_done, tiny().plan.all_runs()))
    ArrayTask("9", tmp_path).progress.unlink()
    monkeypatch.setattr(StudyCommand, "plan", lambda self: signal.raise_signal(signal.SIGUSR2))
    assert attempts(last, ArrayTask("9", tmp_path).stops) == 6
    assert not uncounted


@pytest.mark.slow
def test_a_last_job_whose_runs_are_held_reports_and_does_not_come_back(
    last: Callable[[], int], trainer: Trainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reported = []
    monkeypatch.setattr("kdbench.study.finish.write_report", lambda execution, given: reported.append(given) or 0)
    trainer.skips = lambda title: "method=logit" in title
    assert last() == 1
    assert len(reported) == 1
    assert "other processes hold the remaining runs; to continue" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_has_failed_twice_is_not_tried_again_when_its_task_is_requeued(
    submitted: Arrays, trainer: Trainer, tiny: Tiny
) -> None:
    plan = tiny("stages=[teachers]", max_learners=1).plan
    (group,) = divide(plan.all_runs(), plan, "teachers")
    trainer.fails = lambda title: True
    for _ in range(3):
        assert code_of(StageJob([group])) == 1
    assert len(trainer.launched) == 2


@pytest.mark.parametrize("foreseen", rest_wide([2, 1, 5]))
def test_more_or_fewer_groups_than_foreseen_are_completed_once_each(
    submitted: Arrays, trainer: Trainer, tiny: Tiny, tmp_path: Path, foreseen: int
) -> None:
    plan = tiny("stages=[teachers,selection]", max_learners=1).plan
    groups = divide(plan.all_runs(), plan, "teachers")
    groups = [StageGroup(group.task, frozenset()) for group in groups]
    file = tmp_path / "groups.pkl"
    file.write_bytes(pickle.dumps(groups))
    for number in range(foreseen):
        StageJob(file, number, foreseen)()
    assert len(trainer.trained) == len(set(trainer.trained)) == len(groups) == 3


def test_a_stage_whose_groups_were_not_written_says_so(submitted: Arrays, tmp_path: Path) -> None:
    with pytest.raises(RunError) as error:
        StageJob(tmp_path / "groups.pkl").own_groups()
    assert error.value.code == "not_found"


def test_jobs_count_as_ended_once_slurm_has_not_listed_them_for_a_while(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = {name: JobState(name, text, "None", Path("x")) for name, text in (("7_0", "RUNNING"), ("8", "COMPLETED"))}
    now = [0.0]
    monkeypatch.setattr(slurm.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(slurm, "jobs_of_user", lambda: state)
    watch = slurm.StudyWatch({"7", "8", "9"})
    assert watch.left() == {"7", "9"}
    now[0] = slurm.UNKNOWN_SECONDS - 1
    assert watch.left() == {"7", "9"}
    now[0] += 1
    assert watch.left() == {"7"}

    def away() -> None:
        raise SlurmError("connect failure")

    monkeypatch.setattr(slurm, "jobs_of_user", away)
    with caplog.at_level("INFO", "kdbench"):
        assert watch.left() == watch.left() == {"7", "8", "9"}
    assert caplog.text.count("SLURM does not answer (connect failure)") == 1


def test_minutes_and_jobs_of_slurm_do_not_go_together(tiny: Tiny, studies: Path) -> None:
    given = argparse.Namespace(minutes=3.0)
    with pytest.raises(ConfigError) as error:
        slurm.submit_study(tiny(), slurm_options(), [], given)
    assert (error.value.code, error.value.key) == ("usage", "--minutes")


def test_the_size_of_groups_is_given_once(studies: Path) -> None:
    with pytest.raises(ConfigError) as error:
        study_command(["study=tiny", "--config-dir", str(studies), "hydra/launcher=lockstep", "--max-learners", "2"])
    assert (error.value.code, error.value.key) == ("usage", "--max-learners")
