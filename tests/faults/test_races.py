"""Several processes that want the same run, teacher or logit cache."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import NARROW, SMALL

pytestmark = pytest.mark.slow
CACHED = ("teacher=resnet8", "teacher.seed=1", "teacher.cache=on", "data.num_train=160")
Process = subprocess.Popen[str]


def start(folder: Path, *overrides: str) -> Process:
    """Start a run in a process of its own."""
    arguments = [*SMALL, *NARROW, "runtime.threads=1", "output_root=out", *overrides]
    return subprocess.Popen(
        [sys.executable, "-m", "kdbench", *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(processes: Sequence[Process]) -> list[str]:
    """Wait for processes, which succeed, and return their output."""
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), outputs
    return [out for out, _ in outputs]


def runs_in(folder: Path) -> int:
    """Return the number of run directories."""
    return len(list((folder / "out" / "runs").iterdir()))


def test_two_processes_train_one_teacher_once_and_the_second_names_the_first(tmp_path: Path) -> None:
    longer = ("teacher.recipe.epochs=10", "data.num_train=320")
    first = start(tmp_path, "seed=0", *longer)
    assert first.stdout
    assert any("resnet20 ce seed 0: " in line for line in first.stdout)
    first.send_signal(signal.SIGSTOP)  # it trains the teacher, and does not finish before the second one is there
    second = start(tmp_path, "seed=1", *longer)
    assert second.stdout
    waiting = next(line for line in second.stdout if f"process {first.pid} " in line)
    first.send_signal(signal.SIGCONT)
    assert waiting.startswith("teacher: ")
    assert "resnet20" in waiting
    outputs = finish([first, second])
    assert [out.count("resnet20 ce seed 0: ") for out in outputs] == [0, 0]  # the first one's line was read above
    assert runs_in(tmp_path) == 3


def test_a_run_that_is_given_twice_is_trained_once(tmp_path: Path) -> None:
    outputs = finish([start(tmp_path, "method=ce", "recipe.epochs=40", "data.num_train=320") for _ in range(2)])
    assert sorted("epoch 40/40" in out for out in outputs) == [False, True]
    assert runs_in(tmp_path) == 1


def test_two_processes_build_one_cache_once_and_the_second_waits_for_it(tmp_path: Path) -> None:
    settings = (*CACHED, "recipe.epochs=2")
    finish([start(tmp_path, *settings, "method=ce", "recipe.epochs=1", "seed=1")])
    outputs = finish([start(tmp_path, f"seed={seed}", *settings) for seed in (0, 1)])
    assert sorted(out.count("160 images x 162 views") for out in outputs) == [0, 1]
    summaries = [json.loads(file.read_text()) for file in (tmp_path / "out" / "runs").glob("*_logit_*/summary.json")]
    assert [summary["logit_cache"] for summary in summaries] == [True, True]
    assert len(list((tmp_path / "out" / "runs").glob("*/logits-cpu.npy"))) == 1


def test_a_cache_whose_builder_was_killed_is_completed_by_the_next_process(tmp_path: Path) -> None:
    finish([start(tmp_path, *CACHED, "method=ce", "recipe.epochs=1", "seed=1")])
    first = start(tmp_path, *CACHED)
    while not (partial := list((tmp_path / "out" / "runs").glob("*/.logits-cpu.*.partial"))) or (
        partial[0].stat().st_size < 200_000
    ):
        assert first.poll() is None, first.communicate()
        time.sleep(0.05)
    first.kill()
    first.communicate()
    (out,) = finish([start(tmp_path, *CACHED)])
    assert "160 images x 162 views, continuing at " in out
    assert not list((tmp_path / "out" / "runs").glob("*/.logits-cpu.*"))
