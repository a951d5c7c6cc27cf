"""hydra/launcher=slurm on a real SLURM: disturbed sweeps end as undisturbed ones."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdbench.errors import ConfigError
from kdbench.sweep.slurm import check_slurm, submit_arrays
from kdbench.sweep.slurm_commands import check_reachable
from tests.docs.test_docs import CHECKOUT, blocks
from tests.slurm import PAUSED, TINY, Cluster, Sweep, same_runs, slurm_options, write_method

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]


def restarts(slurm: Cluster, job: str) -> int:
    """Return how often SLURM has requeued a job."""
    match = re.search(r"Restarts=(\d+)", slurm.command("scontrol", "show", "job", job))
    assert match
    return int(match[1])


def test_a_sweep_that_is_requeued_preempted_drained_and_out_of_time_ends_as_an_undisturbed_one(
    slurm: Cluster, tmp_path: Path
) -> None:
    six = ("seed=0,1", "recipe.epochs=2,3,60")
    whole, folder = tmp_path / "whole", tmp_path / "disturbed"
    undisturbed = Sweep(None, whole, 0, *six)
    assert undisturbed.process.wait(300) == 0, undisturbed.printed

    # The two long runs take a minute at least; the signal comes 24 to 54 seconds after the start of a task.
    sweep = Sweep(slurm, folder, 0.5, "hydra.launcher.time=1", "hydra.launcher.signal_seconds=6", *six)
    slurm.wait_for(lambda: sweep.array)
    jobs = [f"{sweep.array}_{number}" for number in range(6)]
    slurm.wait_for(lambda: sweep.rows("seed0") > 2 + 3 + 2)
    slurm.command("scontrol", "requeue", jobs[2])  # the long run with seed 0
    slurm.wait_for(lambda: restarts(slurm, jobs[2]) >= 1)

    slurm.command("scontrol", "update", "nodename=node1", "state=drain", "reason=test")
    for job in slurm.jobs("RUNNING"):  # as an administrator does who needs the node now
        slurm.command("scontrol", "requeue", job)
    slurm.wait_for(lambda: not slurm.jobs("RUNNING", "COMPLETING"))
    end = time.monotonic() + 6
    slurm.wait_for(lambda: time.monotonic() > end)
    assert slurm.jobs("PENDING"), "no task is left to start"
    assert not slurm.jobs("RUNNING")
    slurm.command("scontrol", "update", "nodename=node1", "state=resume")

    slurm.wait_for(lambda: len(slurm.jobs("RUNNING")) == 2)
    words = ("sbatch", "--parsable", "--partition=urgent", "--ntasks=2", "--output=/dev/null", "--wrap=sleep 1")
    urgent = slurm.command(*words).strip()
    slurm.wait_for(lambda: slurm.jobs("COMPLETED").get(urgent))

    slurm.wait_for(lambda: "SIGUSR2: stopped after" in sweep.job_logs())
    (folder / "pause").write_text("0")
    slurm.wait_for(lambda: sweep.process.poll() is not None)
    assert sweep.process.returncode == 0, sweep.printed + sweep.job_logs()
    assert "6 runs compared, 0 differ" in same_runs(whole / "out", folder / "out")
    assert len(re.findall(r"^job \d: .*out/runs/\S+ \(SLURM job \d+_\d\)$", sweep.printed, re.M)) == 6
    logs = sweep.job_logs()
    assert "SIGTERM: stopped after" in logs
    assert "SIGUSR2: stopped after" in logs  # a time limit
    assert "resuming from last.ckpt after" in logs
    (record,) = (folder / "out" / "sweeps").glob("*.json")
    assert {job["status"] for job in json.loads(record.read_text())["jobs"]} == {"complete"}


def test_a_killed_command_finds_its_jobs_again(slurm: Cluster, tmp_path: Path) -> None:
    hold = tmp_path / "hold"
    hold.touch()
    sweep = Sweep(slurm, tmp_path, 0, "seed=0,1", "recipe.epochs=3")
    slurm.wait_for(lambda: len(slurm.jobs("RUNNING")) == 2)
    sweep.stop(signal.SIGKILL)
    sweep.start()
    slurm.wait_for(lambda: "of an earlier command has" in sweep.printed)
    hold.unlink()
    slurm.wait_for(lambda: sweep.process.poll() is not None)
    assert sweep.process.returncode == 0, sweep.printed
    assert not sweep.array  # it has submitted nothing
    assert len(list((tmp_path / "out" / "slurm").iterdir())) == 1


def test_a_task_that_never_comes_further_fails_after_some_stops(slurm: Cluster, tmp_path: Path) -> None:
    (tmp_path / "hold").touch()
    sweep = Sweep(
        slurm, tmp_path, 0, "seed=0", "recipe.epochs=1", "hydra.launcher.max_stops=1", "checkpoint.grace_seconds=3"
    )  # fmt: skip
    slurm.wait_for((tmp_path / "waiting").exists)
    slurm.command("scancel", "--signal=USR2", sweep.array)
    slurm.wait_for(lambda: sweep.process.poll() is not None)
    assert sweep.process.returncode == 1
    (error,) = re.findall(r"^kdbench: error: .*seed=\d [^:]*: (.*)$", sweep.printed, re.M)
    assert error.startswith("stopped once by SLURM without a new checkpoint (hydra.launcher.max_stops)")
    assert "Traceback" not in sweep.printed
    slurm.wait_for(lambda: not slurm.jobs("PENDING", "RUNNING"))  # it does not come back


def test_options_that_slurm_refuses_are_reported_in_its_words_before_anything_is_written(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(slurm, tmp_path, 0, "seed=0,1", "hydra.launcher.partition=nowhere")
    assert sweep.process.wait(60) == 2
    assert sweep.printed.startswith(
        "kdbench: error: SLURM refuses the jobs of hydra/launcher=slurm: invalid partition specified: nowhere; "
        "Invalid partition name specified; change hydra.launcher.partition=nowhere"
    )
    assert sweep.printed.count("\n") == 1
    assert not (tmp_path / "out").exists()

    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    for given, words in (
        ({"mem": "100T"}, "Requested node configuration is not available"),
        ({"sbatch": {"no-such-option": 1}}, "unrecognized option '--no-such-option=1'"),
    ):
        with pytest.raises(ConfigError, match=words):
            check_slurm(slurm_options(**given))


def test_a_controller_that_does_not_answer_is_reported(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "slurm.conf"
    other.write_text(re.sub("SlurmctldPort=.*", "SlurmctldPort=9", Path(slurm.environment["SLURM_CONF"]).read_text()))
    monkeypatch.setenv("SLURM_CONF", str(other))
    with pytest.raises(ConfigError, match=r"^hydra/launcher=slurm: its controller does not answer: "):
        check_reachable()


def test_defaults_of_the_shell_do_not_change_what_a_task_gets(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    for name, value in (("TIMELIMIT", "1"), ("PARTITION", "nowhere"), ("WAIT", "1"), ("SIGNAL", "KILL@5")):
        monkeypatch.setenv(f"SBATCH_{name}", value)
    options = slurm_options(time=7, partition="main", sbatch={"hold": True})
    check_slurm(options)
    ((task,),) = submit_arrays(options, [print], tmp_path, "defaults")
    shown = slurm.command("scontrol", "show", "job", task.job)
    slurm.command("scancel", task.job)
    assert "TimeLimit=00:07:00" in shown
    assert "Partition=main" in shown


def test_the_batch_script_of_the_docs_requeues_itself(slurm: Cluster, tmp_path: Path) -> None:
    (script,) = [block for block in blocks(CHECKOUT / "docs" / "scaling.md", "sh") if "#SBATCH" in block]
    (tmp_path / "job.sh").write_text(script)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "kdbench").write_text(f'#!/bin/sh\nexec {sys.executable} -m kdbench "$@"\n')
    (tmp_path / "bin" / "kdbench").chmod(0o755)
    write_method(tmp_path, 0.25)
    path = f"{tmp_path}/bin:{slurm.environment['PATH']}"
    run = ["--config-dir", "configs", *PAUSED, *TINY, "recipe.epochs=400", "output_root=out"]
    words = ["sbatch", "--parsable", "--time=10", "--output=job.log", "job.sh", *run]
    job = subprocess.run(
        words, cwd=tmp_path, env=slurm.environment | {"PATH": path, "PYTHONPATH": str(tmp_path)}, capture_output=True,
        text=True, check=True,
    ).stdout.strip()  # fmt: skip
    slurm.wait_for(lambda: list(tmp_path.glob("out/runs/*/metrics.csv")))
    slurm.command("scancel", "--batch", "--signal=USR1", job)  # as at the time limit
    slurm.wait_for(lambda: restarts(slurm, job))
    (tmp_path / "pause").write_text("0")
    slurm.wait_for(lambda: slurm.jobs("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL").get(job))
    log = (tmp_path / "job.log").read_text()
    assert slurm.jobs("COMPLETED").get(job), log
    assert "SIGUSR1: stopped after" in log
    assert "done: test accuracy" in log


def test_the_batch_script_of_the_docs_stays_cancelled(slurm: Cluster, tmp_path: Path) -> None:
    (script,) = [block for block in blocks(CHECKOUT / "docs" / "scaling.md", "sh") if "#SBATCH" in block]
    (tmp_path / "job.sh").write_text(script.replace('\nkdbench "$@"', "\nsleep 60"))
    words = ["sbatch", "--parsable", "--time=1", "--signal=B:USR1@5", "--output=job.log", "job.sh"]
    job = subprocess.run(
        words, cwd=tmp_path, env=slurm.environment, capture_output=True, text=True, check=True
    ).stdout.strip()
    slurm.wait_for(lambda: slurm.jobs("RUNNING").get(job))
    time.sleep(1)
    slurm.command("scancel", job)
    slurm.wait_for(lambda: slurm.jobs("CANCELLED").get(job))
    assert restarts(slurm, job) == 0
