"""Runs and sweeps as a user starts them: exit codes, what is printed, and which files are written."""

import json
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from torch.optim.optimizer import register_optimizer_step_pre_hook

from kdbench import cli
from kdbench.rundir.directory import RunDirectory
from kdbench.runner.run import resolve_run
from kdbench.system import signals
from tests.conftest import NARROW, SMALL, composed_once, rest_wide
from tests.errors import recorded_errors, reported

TINY = (*SMALL, *NARROW, "output_root=out")
STEPS = 2
"""Optimiser steps of a run of `TINY`."""


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and ".locks" not in p.parts)


def sweep_record(home):
    (record,) = (home / "out" / "sweeps").iterdir()
    return json.loads(record.read_text())["jobs"]


@contextmanager
def signal_at_step(number, step):
    """Send a signal to this process when the optimisers of all runs make their step with this number."""
    steps = []

    def count(*_):
        steps.append(1)
        if len(steps) == step:
            signal.raise_signal(number)

    hook = register_optimizer_step_pre_hook(count)
    try:
        yield
    finally:
        hook.remove()


def test_one_command_writes_the_directories_of_its_run_and_its_teacher_only(kdbench, tmp_path):
    result = kdbench(*TINY)
    assert result.code == 0, result.err
    assert result.err == ""
    names = {name.split("/")[2].rsplit("_", 1)[0] for name in files(tmp_path / "home")}
    assert names == {"shapes_resnet20_ce_seed0", "shapes_resnet8_logit_from_resnet20_seed0"}
    again = kdbench(*TINY)
    assert again.code == 0
    assert "complete already, skipped" in again.out


def test_a_sweep_writes_every_run_and_one_record_and_prints_a_table(kdbench, teachers_once, tmp_path):
    shutil.copytree(teachers_once / "runs", tmp_path / "home" / "out" / "runs")
    result = kdbench("-m", *TINY, "method=ce,logit,feature")
    assert result.code == 0, result.err
    home = tmp_path / "home"
    assert len([name for name in files(home) if not name.startswith("out/runs/")]) == 1
    jobs = sweep_record(home)
    assert [job["status"] for job in jobs] == ["complete"] * 3
    assert all((home / job["run"] / "summary.json").is_file() for job in jobs)
    header, *rows = result.out[result.out.index("student  teacher") :].splitlines()[:4]
    assert header.split("  ")[0] == "student"
    assert [row.split()[2] for row in rows] == ["ce", "logit", "feature"]
    assert rows[0].split()[5] == "-"
    assert rows[1].split()[5][0] in "+-"


@pytest.mark.slow
def test_jobs_that_fail_print_a_line_each_and_the_others_run(kdbench, tmp_path):
    with recorded_errors() as made:
        result = kdbench("-m", *TINY, "method=ce,lgit", "recipe.epochs=1,0")
    assert result.code == 1
    assert sorted(reported(made, result.err)) == [
        ("failed_runs", ""), ("out_of_range", "recipe.epochs"), ("unknown_option", "method"),
        ("unknown_option", "method"),
    ]  # fmt: skip
    assert reported(made, result.err)[-1] == ("failed_runs", "")
    assert [job["status"] for job in sweep_record(tmp_path / "home")].count("complete") == 1


@pytest.mark.slow
def test_a_job_whose_data_cannot_be_made_does_not_stop_the_others(kdbench, tmp_path):
    with recorded_errors() as made:
        result = kdbench("-m", *TINY, "method=ce", "data.num_train=200000,64")
    assert result.code == 1
    assert reported(made, result.err) == [("out_of_range", "data.num_train"), ("failed_runs", "")]
    assert [job["status"] for job in sweep_record(tmp_path / "home")] == ["refused", "complete"]


def test_a_sweep_without_a_job_that_can_run_writes_nothing(kdbench, tmp_path):
    result = kdbench("-m", *TINY, "method=ce", "recipe.epochs=0,-1")
    assert result.code == 1
    assert not list((tmp_path / "home").iterdir())


@pytest.mark.slow
def test_overwrite_repeats_a_run(kdbench):
    kdbench(*TINY, "method=ce")
    result = kdbench(*TINY, "method=ce", "overwrite=true")
    assert result.code == 0
    assert "epoch 1/1" in result.out


def test_printing_a_config_writes_nothing(kdbench, tmp_path):
    result = kdbench("--cfg", "job", "method=ce")
    assert result.code == 0
    assert "CrossEntropy" in result.out
    assert not list((tmp_path / "home").iterdir())


# Signals


@pytest.mark.parametrize(
    ("number", "code"),
    rest_wide([(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGUSR2, 75)], 2),
)
def test_a_signal_ends_a_run_with_a_checkpoint_and_one_line(kdbench, tmp_path, number, code):
    before = signal.getsignal(number)
    with signal_at_step(number, step=1):
        result = kdbench(*TINY, "method=ce")
    assert result.code == code
    assert result.err.startswith(f"kdbench: stopped by {number.name}")
    assert result.err.count("\n") == 1
    assert signal.getsignal(number) is before
    assert [file.name for file in tmp_path.rglob("*.ckpt")] == ["last.ckpt"]


@pytest.mark.parametrize("key", ["output_root", "hydra.verbose"])  # read by kdbench, and by Hydra
def test_a_signal_while_the_config_is_composed_is_a_stop_whatever_error_follows_it(kdbench, tmp_path, key):
    def interrupted() -> str:
        try:
            signal.raise_signal(signal.SIGTERM)
        except signals.Interrupted:
            raise ValueError("half a config") from None
        return "home"

    OmegaConf.register_new_resolver("interrupted", interrupted)
    try:
        result = kdbench("method=ce", f"{key}=${{interrupted:}}")
    finally:
        OmegaConf.clear_resolver("interrupted")
    assert (result.code, result.out) == (75, "")
    assert result.err == f"kdbench: stopped by SIGTERM{cli.CONTINUES}\n"
    assert files(tmp_path / "home") == []


@pytest.mark.slow
def test_a_recorded_config_repeats_its_run_and_leaves_no_other_files(kdbench, tmp_path):
    kdbench(*TINY, "method=ce")
    before = files(tmp_path / "home")
    (summary,) = Path().rglob("summary.json")
    first = summary.read_bytes()
    result = kdbench(
        "--config-path", str(summary.parent), "--config-name", "config", "output_root=out", "overwrite=true"
    )
    assert (result.code, result.err) == (0, "")
    assert files(tmp_path / "home") == before
    assert summary.read_bytes() != first  # it has the time at which the run ended


def test_the_same_command_continues_an_interrupted_run(kdbench, tmp_path):
    with signal_at_step(signal.SIGTERM, step=1):
        kdbench(*TINY, "method=ce")
    result = kdbench(*TINY, "method=ce")
    assert result.code == 0
    assert [file.name for file in tmp_path.rglob("summary.json")] == ["summary.json"]


@pytest.mark.slow
def test_an_interrupted_sweep_records_the_status_of_every_job(kdbench, tmp_path):
    with signal_at_step(signal.SIGINT, step=STEPS + 1):
        assert kdbench("-m", *TINY, "method=ce", "seed=0,1,2").code == 130
    assert [job["status"] for job in sweep_record(tmp_path / "home")] == ["complete", "interrupted", "not started"]


# Disks and numbers


LARGEST_FILES = [10_000, 200_000]
"""Files may not grow past a limit, which fails as a full disk does: first the metrics, then the weights."""


@pytest.mark.parametrize("limit", rest_wide(LARGEST_FILES))
def test_a_full_disk_is_an_error_in_one_line(kdbench, tmp_path, limit):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with recorded_errors() as made:
            result = kdbench(*SMALL, "output_root=out", "method=ce")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    check_full_disk(result.code, result.err, tmp_path)
    ((code, key),) = reported(made, result.err)
    assert code in ("no_space", "io_error")
    assert key == "output_root"


@pytest.mark.slow
@pytest.mark.parametrize("limit", LARGEST_FILES)
def test_a_full_disk_is_an_error_in_one_line_until_the_process_ends(tmp_path, limit):
    def restrict():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    command = [sys.executable, "-m", "kdbench", *SMALL, "output_root=out", "method=ce"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, preexec_fn=restrict)
    check_full_disk(result.returncode, result.stderr, tmp_path)


def check_full_disk(code, err, folder):
    assert code == 1, err
    assert err.count("\n") == 1
    assert err.startswith("kdbench: error: out/runs/shapes_resnet8_ce_seed0_")
    assert not list(folder.rglob("summary.json"))


def test_weights_that_overflow_in_the_last_step_are_no_result(kdbench, tmp_path):
    with recorded_errors() as made:
        result = kdbench(*TINY, "method=ce", "recipe.lr=1e9", "data.num_train=40", "recipe.batch_size=20")
    assert result.code == 1
    assert reported(made, result.err) == [("not_finite", "recipe.lr")]
    assert not list((tmp_path / "home").rglob("summary.json"))


# Other processes


@pytest.mark.slow
def test_runs_that_another_process_holds_are_skipped_with_exit_code_75(kdbench, tmp_path):
    home = tmp_path / "home"
    _, directory = resolve_run(composed_once(*TINY, "method=ce", "seed=1"))
    other = RunDirectory(home / directory.path, directory.key).lock("run")
    other.acquire(wait=False)
    try:
        with recorded_errors() as made:
            alone = kdbench(*TINY, "method=ce", "seed=1", "on_busy=skip")
            sweep = kdbench("-m", *TINY, "method=ce", "seed=0,1", "on_busy=skip")
    finally:
        other.release()
    assert (alone.code, sweep.code) == (75, 75)
    assert reported(made, alone.err) == [("busy", "on_busy")]
    assert reported(made, sweep.err) == [("busy", "on_busy")]
    assert "skipped: " in sweep.out
    assert [job["status"] for job in sweep_record(home)] == ["complete", "skipped"]
