"""Several processes that want the same thing."""

import json
import signal
import subprocess
import sys
import time

import pytest

from tests.conftest import SMALL


def start(folder, *overrides):
    arguments = [*SMALL, "runtime.threads=1", "output_root=out", *overrides]
    return subprocess.Popen(
        [sys.executable, "-m", "kdbench", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def ended(processes):
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return [out for out, _ in outputs]


@pytest.mark.slow
def test_two_processes_train_one_teacher_once_and_the_second_says_what_it_waits_for(tmp_path):
    longer = ("teacher.recipe.epochs=10", "data.num_train=320")
    first = start(tmp_path, "seed=0", *longer)
    while not list((tmp_path / "out" / ".locks").glob("*.lock")):
        assert first.poll() is None, first.communicate()
        time.sleep(0.005)
    first.send_signal(signal.SIGSTOP)  # it trains the teacher, and is not done before the second one is there
    second = start(tmp_path, "seed=1", *longer)
    waiting = next(line for line in second.stdout if line.startswith("teacher: waiting: "))
    first.send_signal(signal.SIGCONT)
    assert f"process {first.pid} " in waiting
    assert "resnet20" in waiting
    outputs = ended([first, second])
    assert [out.count("resnet20 ce seed 0: ") for out in outputs] == [1, 0]
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 3


@pytest.mark.slow
def test_the_same_run_asked_for_twice_is_carried_out_once(tmp_path):
    outputs = ended([start(tmp_path, "method=ce", "recipe.epochs=40", "data.num_train=320") for _ in range(2)])
    assert sorted("epoch 40/40" in out for out in outputs) == [False, True]
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 1


@pytest.mark.slow
def test_two_processes_build_one_table_once_and_the_second_waits_for_it(tmp_path):
    settings = ("teacher=resnet8", "teacher.seed=1", "teacher.table=on", "data.num_train=160", "recipe.epochs=2")
    ended([start(tmp_path, *settings, "method=ce", "recipe.epochs=1", "seed=1")])
    outputs = ended([start(tmp_path, f"seed={seed}", *settings) for seed in (0, 1)])
    assert sorted(out.count("table of 160 images x 162 views") for out in outputs) == [0, 1]
    builder = next(out for out in outputs if "table of 160 images" in out)
    assert builder.count("table: done in") == 1
    summaries = [json.loads(file.read_text()) for file in (tmp_path / "out" / "runs").glob("*_logit_*/summary.json")]
    assert [summary["teacher_table"] for summary in summaries] == [True, True]
    assert len(list((tmp_path / "out" / "runs").glob("*/table-cpu.npy"))) == 1


@pytest.mark.slow
def test_table_whose_builder_is_killed_is_completed_by_the_next(tmp_path):
    settings = ("teacher=resnet8", "teacher.seed=1", "teacher.table=on", "data.num_train=160")
    ended([start(tmp_path, *settings, "method=ce", "recipe.epochs=1", "seed=1")])
    first = start(tmp_path, *settings)
    while not (partial := list((tmp_path / "out" / "runs").glob("*/.table-cpu.*.partial"))) or (
        partial[0].stat().st_size < 200_000
    ):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    first.kill()
    first.communicate()
    (out,) = ended([start(tmp_path, *settings)])
    assert "table of 160 images x 162 views, going on after" in out
    assert not list((tmp_path / "out" / "runs").glob("*/.table-cpu.*"))
