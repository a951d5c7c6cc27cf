"""Which runs are the same, and what happens to runs that are complete or held by another process."""

import dataclasses
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.config import RunConfig
from kdbench.errors import BusyError, ConfigError
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.lock import LEASE, own_host
from kdbench.runner.policy import run_with_retries
from kdbench.runner.run import is_complete, resolve_run
from tests.conftest import complete
from tests.rundir.test_lock import FOREIGN

Small = Callable[..., RunConfig]


def stamp(*directories: RunDirectory) -> list[int]:
    """Return when runs were finished."""
    return [directory.summary.stat().st_mtime_ns for directory in directories]


@pytest.mark.usefixtures("trained_teachers")
def test_a_complete_run_is_skipped_and_overwrite_repeats_it_but_not_its_teacher(small: Small) -> None:
    config = small("method=logit")
    assert not is_complete(config)
    run = complete(config)
    key = run.read_summary().teacher_key
    assert key
    (path,) = run.path.parent.glob(f"*resnet20_ce*_{key}")
    teacher = RunDirectory(path, key)
    finished = stamp(run, teacher)
    again = dataclasses.replace(config, overwrite=True)
    assert (is_complete(config), is_complete(again)) == (True, False)
    assert complete(config) == run
    assert stamp(run, teacher) == finished
    assert complete(again) == run
    assert stamp(run)[0] > finished[0]
    assert stamp(teacher)[0] == finished[1]


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv"])
def test_a_complete_run_whose_records_were_changed_is_an_error_until_they_are_restored(small: Small, name: str) -> None:
    config = small("method=ce")
    run = complete(config)
    content = (run.path / name).read_bytes()
    (run.path / name).write_bytes(content.replace(b"0.1", b"0.2", 1))
    with pytest.raises(ConfigError) as changed:
        complete(config)
    assert (changed.value.code, changed.value.key) == ("checksum", name)
    (run.path / name).write_bytes(content)
    assert complete(config) == run


def test_a_complete_run_is_skipped_without_its_weights_unless_it_is_a_teacher(small: Small) -> None:
    config = small("method=ce", "student=resnet20")
    run = complete(config)
    finished = stamp(run)
    run.weights.unlink()
    assert stamp(complete(config)) == finished
    with pytest.raises(ConfigError) as missing:
        complete(small("method=logit"))
    assert (missing.value.code, missing.value.key) == ("damaged", "teacher")


def test_what_a_kill_after_the_summary_left_is_removed(small: Small) -> None:
    config = small("method=ce")
    run = complete(config)
    for file in run.checkpoints():
        file.touch()
    assert complete(config) == run
    assert not any(file.exists() for file in run.checkpoints())
    lock = run.lock().file
    dead = subprocess.Popen(["true"])
    dead.wait()
    lock.write_text(FOREIGN.format(pid=dead.pid, lease=LEASE).replace("elsewhere", own_host()))
    assert complete(config) == run
    assert not lock.exists()


def test_the_last_checkpoint_is_kept_on_request(small: Small) -> None:
    run = complete(small("method=ce", "checkpoint.keep_last=true"))
    assert run.checkpoint.is_file()
    assert not run.previous_checkpoint.exists()


@pytest.mark.slow
def test_a_teacher_is_no_part_of_a_run_that_needs_none(small: Small) -> None:
    first, second = (complete(small("method=ce", f"teacher={name}")) for name in ("resnet20", "none"))
    assert first == second
    assert first.read_summary().teacher is None


def test_the_seed_changes_nothing_where_those_of_initialisation_and_data_are_given(small: Small) -> None:
    config = small("method=ce", "init_seed=1", "data_seed=1")
    assert complete(config) == complete(dataclasses.replace(config, seed=7))


@pytest.mark.slow
@pytest.mark.usefixtures("trained_teachers")
def test_runs_share_the_keys_of_their_group_and_of_their_baseline(small: Small) -> None:
    logit, other_seed, other_alpha, baseline, wider = (
        complete(small(*overrides)).read_summary()
        for overrides in (
            (), ("seed=1",), ("method.alpha=0.3",), ("method=ce",), ("method=ce", "student.widths=[4,8,16,32]"),
        )
    )  # fmt: skip
    assert logit.group_key == other_seed.group_key != other_alpha.group_key
    assert logit.baseline_key == other_alpha.baseline_key == baseline.baseline_key
    assert len({logit.baseline_key, other_seed.baseline_key, wider.baseline_key}) == 3


def test_a_run_that_another_process_holds_is_skipped_on_request(small: Small) -> None:
    config = small("method=ce", "on_busy=skip")
    lock = resolve_run(config)[1].lock()
    lock.acquire(wait=False)
    try:
        (result,) = run_with_retries([config])
    finally:
        lock.release()
    assert (result.status, result.path) == ("skipped", None)
    assert isinstance(result.error, BusyError)
    assert (result.error.code, result.error.key) == ("busy", "on_busy")
    assert complete(config).is_complete()


@pytest.mark.parametrize("name", ["", "best.safetensors", "train.log"])
def test_nothing_is_written_through_links(small: Small, tmp_path: Path, name: str) -> None:
    config, outside = small("method=ce"), tmp_path / "outside"
    directory = resolve_run(config)[1]
    outside.mkdir()
    if name:
        directory.path.mkdir(parents=True)
        (directory.path / name).symlink_to(outside / name)
    else:
        directory.path.parent.mkdir(parents=True)
        directory.path.symlink_to(outside)
    with pytest.raises(ConfigError) as linked:
        complete(config)
    assert linked.value.code == "link"
    assert not list(outside.iterdir())
