"""hydra/launcher=slurm without a SLURM: its batch script, its results, and when it gives up."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kdbench.config import RunConfig
from kdbench.errors import ConfigError, RunError
from kdbench.rundir.summary import RunSummary, Status
from kdbench.rundir.unfinished import read_failure
from kdbench.sweep import slurm, slurm_commands, slurm_wait
from kdbench.sweep.execute import execute, in_turn
from kdbench.sweep.plan import JobResult, PlannedRun, plan_run
from kdbench.sweep.slurm import TASKS_FILE, check_slurm, outside_of_a_job, requeue_script
from kdbench.sweep.slurm_commands import JobState, SlurmError, own_words
from kdbench.sweep.slurm_job import ArrayTask, GroupJob, progress_of, teachers_of
from kdbench.sweep.slurm_options import SlurmOptions, seconds_of
from kdbench.sweep.worker import GroupTask, pack_group
from kdbench.system import signals
from kdbench.system.signals import NOT_FINISHED
from tests.slurm import slurm_options

OPTIONS = slurm_options()
TASK = GroupTask(b"", ("seed=0", "seed=1"), 0, None, ".", ())


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        (90, 5400), ("90", 5400), ("1:30", 90), ("1:30:00", 5400), ("2-12", 216000), ("2-12:30", 217800),
        ("2-12:30:10", 217810),
    ],
)  # fmt: skip
def test_time_limits_have_the_forms_of_sbatch(limit: Any, seconds: int) -> None:
    assert seconds_of(limit) == seconds


@pytest.mark.parametrize("limit", [0, -5, "0:00", "1:2:3:4", "1h", "UNLIMITED", "", None, True, 1.5, "1-"])
def test_other_time_limits_are_refused(limit: Any) -> None:
    with pytest.raises(ConfigError) as error:
        seconds_of(limit)
    assert (error.value.code, error.value.key) == ("out_of_range", "hydra.launcher.time")


def test_options_of_sbatch_are_passed_on_and_those_that_are_off_are_left_out() -> None:
    options = slurm_options(
        time="4:00:00", mem="8G", sbatch={"nice": 5, "exclusive": True, "hold": False, "wckey": None}
    )
    assert options.parameters == {
        "time": "4:00:00", "signal": "USR2@120", "requeue": True, "nice": 5, "exclusive": True, "mem": "8G",
    }  # fmt: skip
    assert slurm_options(requeue=False).parameters["no-requeue"] is True


@pytest.mark.parametrize(
    "name",
    ["dependency", "d", "nodes", "N", "ntasks", "n", "ntasks_per_node", "ntasks-per-node", "job-name", "J",
     "kill-on-invalid-dep", "--dependency", "depend", "t", "cpus-per-task", "cpus_per_task", "c", "partition", "part",
     "mem"],
)  # fmt: skip
def test_options_that_kdbench_sets_are_refused_in_every_form(name: str) -> None:
    with pytest.raises(ConfigError) as error:
        slurm_options(sbatch={name: 1})
    assert (error.value.code, error.value.key) == ("usage", f"hydra.launcher.sbatch.{name}")


@pytest.mark.parametrize(
    ("given", "code", "key"),
    [
        ({"foo": 1}, "unknown_key", "foo"), ({"sbatch": 5}, "wrong_type", "sbatch"),
        ({"sbatch": {"nice": [1]}}, "out_of_range", "sbatch"), ({"setup": ["a\nb"]}, "out_of_range", "setup"),
        ({"requeue": 1}, "wrong_type", "requeue"), ({"max_stops": 1.5}, "wrong_type", "max_stops"),
    ],
)  # fmt: skip
def test_keys_that_the_launcher_does_not_know_or_cannot_use_are_refused(given: Any, code: str, key: str) -> None:
    with pytest.raises(ConfigError) as error:
        slurm_options(**given)
    assert (error.value.code, error.value.key) == (code, f"hydra.launcher.{key}")
    assert "\n" not in str(error.value)


def test_an_option_of_sbatch_may_be_written_as_a_number() -> None:
    assert slurm_options(sbatch={1: 2}).parameters["1"] == 2


def test_variables_of_the_shell_stay_in_commands_before_a_task() -> None:
    assert slurm_options(setup=["echo ${HOME} $HOME"]).setup == ["echo ${HOME} $HOME"]


def end_of_script(
    folder: Path, code: int, state: str = "echo RUNNING", scontrol: str = 'echo "$@"', **variables: str
) -> str:
    """Return what the batch script calls scontrol with, after a command with an exit code.

    Args:
        folder: folder for the files of the job.
        code: exit code.
        state: what squeue does.
        scontrol: what scontrol does.
        variables: of the job.
    """
    for name, text in (("scontrol", scontrol), ("squeue", state), ("sleep", "")):
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    script = "\n".join([f"(exit {code})", *requeue_script(folder)])
    environment = {"PATH": f"{folder}:/bin", "SLURM_JOB_ID": "9", **variables}
    done = subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("code", "requeued"), [(0, False), (1, False), (75, True), (137, False), (138, True), (140, True), (143, False)]
)
def test_the_batch_script_requeues_its_task_where_the_runs_were_stopped(
    tmp_path: Path, code: int, requeued: bool
) -> None:
    called = end_of_script(tmp_path, code, SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="2")
    assert called == ("requeue 7_2\n" if requeued else "")
    assert ArrayTask("7_2", tmp_path).count_stops() == int(requeued)


def test_a_job_that_is_no_array_requeues_itself_by_its_own_id(tmp_path: Path) -> None:
    assert end_of_script(tmp_path, 75) == "requeue 9\n"


def test_a_job_that_slurm_ends_or_requeues_is_left_alone(tmp_path: Path) -> None:
    assert end_of_script(tmp_path, 75, "echo COMPLETING") == ""
    assert ArrayTask("9", tmp_path).count_stops() == 0


@pytest.mark.parametrize("answer", ["exit 1", "exit 0"])
def test_a_job_whose_state_cannot_be_read_at_first_is_requeued_later(tmp_path: Path, answer: str) -> None:
    once = f"if [ -e called ]; then echo RUNNING; else touch called; {answer}; fi"
    assert end_of_script(tmp_path, 75, once) == "requeue 9\n"
    assert ArrayTask("9", tmp_path).count_stops() == 1
    assert end_of_script(tmp_path, 75, answer) == ""


def test_a_requeue_that_slurm_refuses_at_first_is_one_stop(tmp_path: Path) -> None:
    twice = 'echo "$@"; [ -e called2 ] || { [ ! -e called1 ] || touch called2; touch called1; exit 1; }'
    assert end_of_script(tmp_path, 75, scontrol=twice) == "requeue 9\n" * 3
    assert ArrayTask("9", tmp_path).count_stops() == 1


def test_results_come_back_as_they_were_written(tmp_path: Path) -> None:
    task = ArrayTask("7_2", tmp_path, ("a", "b"))
    results = [
        JobResult(
            Status.COMPLETE, "runs/a", scores={"val_acc": 0.5, "seconds": 3.0}, objectives=("seconds", "val_acc")
        ),
        JobResult(Status.FAILED, error="why"),
    ]
    task.write_results(results)
    assert task.read_results() == results
    assert float(task.read_results()[0]) == 3.0


class Job(GroupJob):
    """A group whose progress the test gives."""

    done = 0

    def progress(self) -> list[list[Any]]:
        return [["run", False, self.done, None, 0]]


def stop(task: ArrayTask) -> None:
    """Count a stop as the batch script does."""
    with task.stops.open("a") as stops:
        stops.write("75\n")


def test_stops_without_progress_are_counted_and_progress_forgets_them(tmp_path: Path) -> None:
    task, job = ArrayTask("7_2", tmp_path), Job(TASK, max_stops=2, requeue=True)
    assert not job.is_stuck(task)
    for _ in range(10):  # stopped again and again, each time further
        job.done += 1
        assert not job.is_stuck(task, stopping=1)
        stop(task)
        assert not job.is_stuck(task)
    assert not job.is_stuck(task, stopping=1)  # the first without progress
    stop(task)
    assert not job.is_stuck(task)
    assert job.is_stuck(task, stopping=1)
    stop(task)
    assert job.is_stuck(task)  # also where the process was ended before it could count
    assert [result.status for result in job.given_up()] == ["failed", "failed"]


def test_each_group_of_a_task_has_its_own_count_of_stops(tmp_path: Path) -> None:
    task = ArrayTask("7_2", tmp_path)
    one, other = (Job(replace(TASK, keys=(key,)), max_stops=2, requeue=True) for key in "ab")
    for _ in range(2):
        assert not one.is_stuck(task)
        assert not other.is_stuck(task, stopping=1)
        stop(task)
        other.done += 1  # no progress of the first
    assert one.is_stuck(task)
    assert not other.is_stuck(task)


def test_a_run_that_is_given_up_has_a_record_of_its_failure(small: Callable[..., RunConfig], tmp_path: Path) -> None:
    run = plan_run((), lambda job: small("method=ce", "teacher=none"))
    failed = GroupJob(pack_group([run]), max_stops=2, requeue=True).given_up()
    failure = read_failure(run.directory.path)
    assert failure is not None
    assert failure.message == failed[0].error
    assert failure.run["run_key"] == run.key
    assert failure.run["seed"] == run.config.seed


def complete(run: PlannedRun) -> str:
    """Write the summary of a run, and return its directory."""
    directory = run.directory
    directory.path.mkdir(parents=True)
    directory.write_summary(
        RunSummary(
            run_key=run.key, status="complete", student="resnet8", method="ce", best_val_acc=0.5, test_acc_best=0.5
        )
    )
    return str(directory.path)


def test_a_complete_run_of_a_job_that_is_given_up_or_ends_without_results_stays_complete(
    small: Callable[..., RunConfig], tmp_path: Path
) -> None:
    runs = [plan_run((f"seed={n}",), lambda job: small("method=ce", "teacher=none", *job)) for n in (0, 1)]
    path = complete(runs[0])
    given_up = GroupJob(pack_group(runs), max_stops=2, requeue=True).given_up()
    assert [(result.status, result.run) for result in given_up] == [("complete", path), ("failed", None)]
    assert float(given_up[0]) == 0.5
    for lost in (None, JobResult(Status.FAILED, error="its process died", lost=True)):
        with pytest.raises(RunError):
            execute(runs, tmp_path / "out", in_turn(partial(results_of_each, lost)))
        assert [(run.status, run.path) for run in runs] == [("complete", path), ("failed", None)]


def results_of_each(result: JobResult | None, runs: Sequence[PlannedRun], first: int) -> list[JobResult | None]:
    """Return one result for every run."""
    return [result for _ in runs]


def test_a_complete_run_whose_files_were_changed_is_no_complete_one(
    small: Callable[..., RunConfig], tmp_path: Path
) -> None:
    """It fails in its process, which has ended with a result."""
    run = plan_run(("seed=0",), lambda job: small("method=ce", "teacher=none", *job))
    complete(run)
    changed = JobResult(Status.FAILED, error="metrics.csv was changed since the run was finished")
    with pytest.raises(RunError):
        execute([run], tmp_path / "out", in_turn(partial(results_of_each, changed)))
    assert (run.status, run.problem) == ("failed", changed.error)


def test_options_are_checked_where_the_number_of_runs_is_not_known_yet(
    sbatch: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A search checks its launcher before it draws trials."""
    monkeypatch.chdir(tmp_path)
    sbatch("cat > script")
    monkeypatch.setattr(slurm, "check_reachable", lambda: None)
    check_slurm(slurm_options(), 0)
    assert "#SBATCH --array=0-0" in Path("script").read_text()


def test_submitits_own_handler_leaves_the_requeue_to_the_batch_script() -> None:
    with pytest.raises(SystemExit) as leaving:
        GroupJob(TASK, max_stops=1, requeue=True).checkpoint()
    assert leaving.value.code == NOT_FINISHED


def test_a_requeue_by_slurm_is_no_stop(tmp_path: Path) -> None:
    task, job = ArrayTask("7_2", tmp_path), Job(TASK, max_stops=1, requeue=True)
    assert not any(job.is_stuck(task) for _ in range(5))


def test_progress_is_that_of_runs_and_teachers(small: Callable[..., RunConfig]) -> None:
    (teacher,) = teachers_of(small("method=logit"))
    before = progress_of([teacher])
    teacher.path.mkdir(parents=True)
    (teacher.path / ".logits-cpu.1.partial").write_bytes(b"block")
    assert progress_of([teacher]) != before
    assert list(teachers_of(small("method=ce", "teacher=none"))) == []


@pytest.fixture
def squeue(monkeypatch: pytest.MonkeyPatch) -> dict[str, JobState]:
    """Jobs that squeue lists; no time passes between its calls."""
    jobs: dict[str, JobState] = {}
    monkeypatch.setattr(slurm_wait, "jobs_of_user", lambda: jobs)
    for name in ("SQUEUE_SECONDS", "RESULT_SECONDS", "POLL_SECONDS"):
        monkeypatch.setattr(slurm_wait, name, 0)
    return jobs


def test_a_task_that_ended_without_results_has_failed(squeue: dict[str, JobState], tmp_path: Path) -> None:
    squeue["7_0"] = JobState("7_0", "TIMEOUT", "TimeLimit", tmp_path / "script")
    tasks = {0: ArrayTask("7_0", tmp_path, ("a", "b")), 3: ArrayTask("7_1", tmp_path, ("c",))}
    ended = dict(slurm_wait.wait(tasks))
    assert [result.status for result in ended[0]] == ["failed", "failed"]
    assert "SLURM job 7_0 ended without a result: TIMEOUT" in str(ended[0][0].error)
    assert "7_1 ended without a result: not known to squeue any more" in str(ended[3][0].error)
    assert not tasks


def test_results_are_waited_for_while_slurm_is_away(
    monkeypatch: pytest.MonkeyPatch, squeue: dict[str, JobState], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task, calls = ArrayTask("7_0", tmp_path, ("a",)), []

    def away() -> dict[str, JobState]:
        calls.append(1)
        if len(calls) == 3:
            task.write_results([JobResult(Status.COMPLETE, "runs/a")])
        raise SlurmError("connect failure")

    monkeypatch.setattr(slurm_wait, "jobs_of_user", away)
    caplog.set_level("INFO")
    assert [results[0].run for _, results in slurm_wait.wait({0: task})] == ["runs/a"]
    assert caplog.text.count("SLURM does not answer (connect failure)") == 1


def test_runs_of_tasks_that_slurm_still_has_are_not_submitted_again(
    squeue: dict[str, JobState], tmp_path: Path, small: Callable[..., RunConfig]
) -> None:
    runs = [plan_run((f"seed={seed}",), lambda job: small("method=ce", *job)) for seed in range(5)]
    folder = Path(runs[0].config.output_root) / "slurm" / "one"
    folder.mkdir(parents=True)
    keys = [[run.key for run in runs[:2]], [runs[2].key], [runs[3].key]]
    (folder / TASKS_FILE).write_text(json.dumps({"keys": keys}))
    for number, state in enumerate(("PENDING", "CANCELLED", "RUNNING")):
        squeue[f"7_{number}"] = JobState(f"7_{number}", state, "None", folder / "script.sh")
    squeue["8"] = JobState("8", "RUNNING", "None", tmp_path / "of_another_program.sh")
    tasks, groups, others = slurm_wait.divide_running(runs)
    assert [task.job for task in tasks] == ["7_0", "7_2"]
    assert groups == [runs[:2], [runs[3]]]
    assert others == [runs[2], runs[4]]
    ArrayTask("7_2", folder).write_results([JobResult(Status.FAILED, error="why")])
    assert [task.job for task in slurm_wait.divide_running(runs)[0]] == ["7_0"]


def test_a_repeated_run_is_submitted_although_a_task_has_it(
    squeue: dict[str, JobState], small: Callable[..., RunConfig]
) -> None:
    run = plan_run((), lambda job: small("method=ce", "overwrite=true"))
    folder = Path(run.config.output_root) / "slurm" / "one"
    folder.mkdir(parents=True)
    (folder / TASKS_FILE).write_text(json.dumps({"keys": [[run.key]]}))
    squeue["7"] = JobState("7", "RUNNING", "None", folder / "script.sh")
    assert slurm_wait.divide_running([run]) == ([], [], [run])


def test_runs_of_earlier_tasks_are_skipped_where_busy_runs_are(
    squeue: dict[str, JobState], small: Callable[..., RunConfig], tmp_path: Path
) -> None:
    runs: list[PlannedRun] = [plan_run((), lambda job: small("method=ce", "on_busy=skip"))]
    task = ArrayTask("7_2", tmp_path, (runs[0].key,))
    ((position, (result,)),) = slurm_wait.results_of_tasks(OPTIONS, [runs], [task])
    assert (position, result.status) == (0, "skipped")
    assert result.error == "skipped: SLURM job 7_2 completes the run (on_busy=skip)"


def test_jobs_have_the_numbers_of_their_runs_within_the_sweep(
    squeue: dict[str, JobState], small: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    runs = [plan_run((f"seed={n}",), lambda job: small("method=ce", "teacher=none", *job)) for n in range(4)]
    path, firsts = complete(runs[2]), []

    def submit(options: SlurmOptions, groups: Any, given: list[int], output_root: Path) -> list[ArrayTask]:
        firsts.extend(given)
        tasks = [ArrayTask(f"8_{n}", tmp_path, (runs[0].key,)) for n in range(len(groups))]
        for task in tasks:
            task.write_results([JobResult(Status.COMPLETE, path)])
        return tasks

    monkeypatch.setattr(slurm_wait, "submit", submit)
    ArrayTask("7", tmp_path).write_results([JobResult(Status.COMPLETE, path)])
    groups = [[run] for run in runs]
    for run in runs:
        run.key = runs[0].key
    assert len(list(slurm_wait.results_of_tasks(OPTIONS, groups, [ArrayTask("7", tmp_path, (runs[0].key,))]))) == 4
    assert firsts == [1, 3]
    numbers = [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("job ")]
    assert sorted(numbers) == ["job 1", "job 2", "job 3", "job 4"]


@pytest.fixture
def sbatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put commands of SLURM into PATH that do nothing; return a function that says what sbatch does."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setattr(slurm, "max_array_size", lambda: 2)

    def write(script: str, name: str = "sbatch") -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    write("", "srun")
    return write


def test_a_submission_whose_answer_cannot_be_read_is_an_error_in_one_line(
    sbatch: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sbatch("echo maintenance")
    with pytest.raises(ConfigError) as error:
        list(slurm.submit_arrays(OPTIONS, [print], tmp_path, "kdbench"))
    assert error.value.code == "slurm_refuses"
    assert 'Could not make sense of sbatch output "maintenance"' in str(error.value)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_submission_waits_until_the_tasks_have_their_files(
    sbatch: Callable[[str], None], tmp_path: Path, number: signal.Signals
) -> None:
    sbatch(f"kill -{int(number)} $PPID; echo Submitted batch job 12")
    with signals.handled(), pytest.raises(signals.Interrupted):
        list(slurm.submit_arrays(OPTIONS, [print] * 3, tmp_path, "kdbench"))
    (folder,) = (tmp_path / "slurm").iterdir()
    assert sorted(file.name for file in folder.glob("*_submitted.pkl")) == ["12_0_submitted.pkl", "12_1_submitted.pkl"]


def test_warnings_during_a_submission_are_printed(
    sbatch: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch("echo Submitted batch job 12")
    made = slurm.executor(OPTIONS, tmp_path, "kdbench")
    submit = made.submit
    monkeypatch.setattr(made, "submit", lambda call: print("a warning", file=sys.stderr) or submit(call))
    assert slurm.submit_array(OPTIONS, [print], made) == ["12"]
    assert capsys.readouterr().err == "a warning\n"


def test_a_command_that_is_stopped_says_how_its_jobs_are_found_again(
    squeue: dict[str, JobState], small: Callable[..., RunConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    runs = [plan_run((), lambda job: small("method=ce"))]
    task = ArrayTask("7_2", tmp_path, (runs[0].key,))
    squeue["7_2"] = JobState("7_2", "RUNNING", "None", tmp_path / "script")
    monkeypatch.setattr(slurm_wait, "files_in", lambda folders: signal.raise_signal(signal.SIGINT))
    caplog.set_level("INFO")
    with signals.handled(), pytest.raises(signals.Interrupted):
        list(slurm_wait.results_of_tasks(OPTIONS, [runs], [task]))
    assert "SLURM job 7_2 of an earlier command has" in caplog.text
    assert "the same command waits for them again, and scancel 7 cancels them" in caplog.text


def test_words_of_slurm_become_one_line() -> None:
    text = (
        "sbatch: error: Invalid --time specification\nsbatch: error: Invalid --time specification\nTry sbatch --help\n"
    )
    assert own_words(text) == "Invalid --time specification"


def test_a_job_does_not_pass_its_own_variables_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "3")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    seen = "import os; print(os.environ.get('SLURM_JOB_ID'), os.environ.get('SLURM_CONF'))"
    with outside_of_a_job(OPTIONS):
        assert subprocess.check_output([sys.executable, "-c", seen], text=True).split() == ["None", "/etc/slurm.conf"]
    assert os.environ["SLURM_JOB_ID"] == "3"


def test_defaults_of_the_users_shell_do_not_override_the_keys_of_the_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("TIMELIMIT", "SIGNAL", "NO_REQUEUE", "OUTPUT", "ARRAY_INX", "JOB_NAME", "WAIT", "PARTITION", "EXCLUSIVE")
    left = ("ACCOUNT", "QOS", "RESERVATION", "MEM_PER_CPU")
    for name in (*given, *left):
        monkeypatch.setenv(f"SBATCH_{name}", "1")
    with outside_of_a_job(slurm_options(partition="gpu", sbatch={"exclusive": False})):
        assert {name for name in os.environ if name.startswith("SBATCH_")} == {f"SBATCH_{name}" for name in left}
    with outside_of_a_job(slurm_options(mem="8G")):
        assert "SBATCH_MEM_PER_CPU" not in os.environ
    assert os.environ["SBATCH_TIMELIMIT"] == "1"


def test_a_machine_without_a_configuration_of_slurm_is_told_from_a_controller_that_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def without(*words: str, **_: Any) -> str:
        raise SlurmError("resolve_ctls_from_dns_srv: res_nsearch error: Unknown host")

    monkeypatch.setattr(slurm_commands.shutil, "which", lambda name: name)
    monkeypatch.setattr(slurm_commands, "command", without)
    with pytest.raises(ConfigError, match="SLURM_CONF"):
        slurm_commands.check_reachable()
