"""`torchrun --nproc-per-node N -m kdbench ...`: real processes, disturbed, resumed, and beside one process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.test_parallel import ROOT, SMOOTH

pytestmark = pytest.mark.slow

RUN = (
    "student=smooth", "data=shapes", "recipe=smoke", "data.num_train=320", "data.num_val=40", "data.num_test=40",
    "recipe.batch_size=32", "recipe.lr=0.05", "runtime.precision=fp32", "runtime.device=cpu", "runtime.threads=1",
    "runtime.channels_last=false",
)  # fmt: skip
ALONE = (*RUN, "teacher=none", "method=ce")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "smooth.yaml").write_text(SMOOTH)
    (tmp_path / "conf" / "method").mkdir()
    (tmp_path / "conf" / "method" / "failing.yaml").write_text("_target_: tests.train.smooth.Failing\n")
    dropout = SMOOTH.replace("smooth.Smooth", "smooth.WithDropout")
    (tmp_path / "conf" / "model" / "dropout.yaml").write_text(dropout)
    return tmp_path


def start(folder, processes, *words):
    """Start kdbench in a number of processes; its lines go to log.txt."""
    command = [
        sys.executable,
        "-m",
        *(["torch.distributed.run", "--nproc-per-node", str(processes), "-m"] if processes > 1 else []),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    arguments = ["kdbench", "--config-dir", str(folder / "conf"), *words]
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen([*command, *arguments], cwd=folder, env=environment, stdout=log, stderr=log)


def finish(folder, processes, *words):
    """Return the exit code and the lines of kdbench in a number of processes."""
    process = start(folder, processes, *words)
    process.wait(timeout=120)
    return process.returncode, lines(folder)


def lines(folder):
    return (folder / "log.txt").read_text()


def wait_for_epoch(folder, epoch):
    deadline = time.monotonic() + 60
    while f"epoch {epoch}/" not in lines(folder):
        assert time.monotonic() < deadline, lines(folder)
        time.sleep(0.02)


def process_of(folder, rank):
    """Return the process id of a rank of the run in a folder."""
    for entry in Path("/proc").iterdir():
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in variables and Path(entry / "cwd").readlink() == folder:
                return int(entry.name)
        except OSError:
            continue
    raise AssertionError(f"no process of rank {rank}")


def weights_of(root):
    (run,) = Path(root, "runs").glob("shapes_smooth_*seed0_*")
    return torch.cat([value.double().reshape(-1) for _, value in sorted(load_file(run / "best.safetensors").items())])


def check_same_weights(first, second):
    a, b = weights_of(first), weights_of(second)
    assert float((a - b).norm() / a.norm()) < 1e-5


def test_a_signal_at_any_process_stops_all_and_one_process_continues(folder):
    long = (*ALONE, "recipe.epochs=60", "checkpoint.every_minutes=null")
    process = start(folder, 2, *long, "output_root=two")
    wait_for_epoch(folder, 1)
    other = process_of(folder, 1)
    wait_for_epoch(folder, 2)
    os.kill(other, signal.SIGUSR1)
    process.wait(timeout=60)
    stopped = lines(folder)
    assert "SIGUSR1: stopped after" in stopped, stopped
    assert "kdbench: stopped by SIGUSR1; the same command continues" in stopped
    assert "exitcode  : 75" in stopped  # in torchrun's own words
    assert stopped.count("epoch 2/60") == 1  # rank 0 alone writes
    code, resumed = finish(folder, 1, *long, "output_root=two")
    assert code == 0
    assert "resuming from last.ckpt" in resumed
    assert finish(folder, 1, *long, "output_root=one")[0] == 0
    check_same_weights(folder / "one", folder / "two")
    (summary,) = (folder / "two" / "runs").glob("*/summary.json")
    assert json.loads(summary.read_text())["environment"]["processes"] == 1


def test_a_killed_process_ends_the_others_and_the_same_command_continues(folder):
    long = (*ALONE, "recipe.epochs=60", "checkpoint.every_epochs=1")
    process = start(folder, 2, *long, "output_root=two")
    wait_for_epoch(folder, 1)
    other = process_of(folder, 1)
    wait_for_epoch(folder, 2)
    os.kill(other, signal.SIGKILL)
    process.wait(timeout=60)
    assert process.returncode != 0
    assert "a process has ended" in lines(folder)
    code, resumed = finish(folder, 2, *long, "output_root=two")
    assert code == 0, resumed
    assert "resuming from last.ckpt" in resumed
    assert finish(folder, 1, *long, "output_root=one")[0] == 0
    check_same_weights(folder / "one", folder / "two")


def test_a_sweep_in_lockstep_with_a_teacher_is_that_of_one_process(folder):
    sweep = (
        "-m", "hydra/launcher=lockstep", *RUN, "teacher=smooth", "teacher.width=16", "method=logit,feature",
        "teacher.recipe.batch_size=32", "teacher.recipe.lr=0.05", "recipe.epochs=2",
    )  # fmt: skip
    for processes in (1, 2):
        code, printed = finish(folder, processes, *sweep, f"output_root=by{processes}")
        assert code == 0, printed
    for one in sorted((folder / "by1" / "runs").iterdir()):
        two = folder / "by2" / "runs" / one.name
        assert sorted(file.name for file in one.iterdir()) == sorted(file.name for file in two.iterdir())
        first, second = (load_file(run / "best.safetensors") for run in (one, two))
        for name, value in first.items():
            torch.testing.assert_close(second[name], value, rtol=1e-3, atol=1e-5)


def test_local_batch_norm_makes_another_run_for_each_number_of_processes(folder):
    local = (*ALONE, "student=dropout", "runtime.parallel=local", "output_root=out")
    assert finish(folder, 2, *local)[0] == 0
    assert finish(folder, 1, *local)[0] == 0
    assert finish(folder, 1, *ALONE, "student=dropout", "output_root=out")[1].count("complete already, skipped") == 1
    runs = sorted((folder / "out" / "runs").iterdir())
    assert len(runs) == 2
    (two,) = (run for run in runs if "processes: 2" in (run / "config.yaml").read_text())
    code, refused = finish(folder, 1, "--config-path", str(two), "--config-name", "config", "output_root=elsewhere")
    assert code == 2
    assert "start as many: torchrun --nproc-per-node 2" in refused


@pytest.mark.parametrize(
    ("processes", "words", "message"),
    [
        (3, ALONE, "recipe.batch_size is 32, the number of images of a step in all processes"),
        (2, (*ALONE, "student=dropout"), "runtime.parallel=exact: 2 processes compute other logits than one"),
    ],
)
def test_what_several_processes_cannot_train_is_refused_in_one_line(folder, processes, words, message):
    code, printed = finish(folder, processes, *words)
    assert code != 0
    own = [line for line in printed.splitlines() if line.startswith("kdbench: error:")]
    assert len(own) == 1
    assert message in own[0]


def test_a_run_that_fails_in_every_process_does_not_end_the_sweep(folder):
    words = [word for word in ALONE if word != "method=ce"]
    code, printed = finish(folder, 2, "-m", *words, "method=failing,ce", "output_root=out")
    assert code == 1
    assert "1 of 2 jobs failed" in printed
    assert printed.count("ValueError: a bug of the third step") == 1
    assert "done: test accuracy" in printed
    assert len(list((folder / "out" / "runs").glob("*_ce_*/summary.json"))) == 1
