"""The choice between the live teacher and its logit cache."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from kdbench.config import RunConfig, parse
from kdbench.errors import RunError
from kdbench.rundir.identity import teacher_directory
from kdbench.runner.run import check_run, resolve_run
from tests.conftest import NARROW, SMALL, Finished, complete, killed_after
from tests.teachers.conftest import PLAIN, LogLines, cache_of

Small = Callable[..., RunConfig]
pytestmark = pytest.mark.usefixtures("trained_teachers")


def test_a_run_records_where_its_teachers_logits_came_from(small: Small) -> None:
    run = complete(small(*PLAIN))
    assert run.read_summary().logit_cache is True
    assert "cache: 'on'" in run.config.read_text()
    assert str(cache_of(run)) in run.log.read_text()
    assert complete(small("method=ce")).read_summary().logit_cache is None


def test_the_cache_is_no_part_of_a_runs_key(small: Small) -> None:
    assert complete(small(*PLAIN)) == complete(small("data.augment=false", "teacher.cache=off"))


def test_auto_trains_live_where_a_cache_does_not_pay_off(small: Small, log_lines: LogLines) -> None:
    run = complete(small())
    assert run.read_summary().logit_cache is False
    assert not cache_of(run).exists()
    assert any(line.startswith("teacher: live (") and "162 epochs" in line for line in log_lines())


def test_auto_builds_a_cache_that_pays_off_within_the_run(small: Small) -> None:
    once, twice = (complete(small("data.augment=false", f"recipe.epochs={n}", f"seed={n}")) for n in (1, 2))
    assert once.read_summary().logit_cache is False
    assert twice.read_summary().logit_cache is True


@pytest.mark.slow
def test_auto_reads_a_cache_that_is_there(small: Small) -> None:
    file = cache_of(complete(small(*PLAIN)))
    built = file.stat().st_mtime_ns
    assert complete(small("data.augment=false", "seed=1")).read_summary().logit_cache is True
    assert file.stat().st_mtime_ns == built


@pytest.mark.slow
def test_a_sweep_counts_the_epochs_of_all_its_runs(kdbench: Callable[..., Finished], tmp_path: Path) -> None:
    sweep = ("method=logit,feature,ce", "seed=0,1", f"output_root={tmp_path / 'out'}")
    ended = kdbench("-m", *SMALL, *NARROW, "data.augment=false", *sweep)
    assert ended.code == 0, ended.err
    assert ended.out.count("64 images x 1 views") == 1  # built once
    (record,) = (tmp_path / "out" / "sweeps").iterdir()
    jobs = json.loads(record.read_text())["jobs"]
    assert ["teacher.cache=on" in job["overrides"] for job in jobs] == [True, True, False, False, False, False]


@pytest.mark.slow
def test_a_sweep_whose_epochs_do_not_pay_for_a_cache_is_left_alone(
    kdbench: Callable[..., Finished], tmp_path: Path
) -> None:
    ended = kdbench("-m", *SMALL, *NARROW, "method=logit", "seed=0,1", f"output_root={tmp_path / 'out'}")
    assert ended.code == 0, ended.err
    (record,) = (tmp_path / "out" / "sweeps").iterdir()
    jobs = json.loads(record.read_text())["jobs"]
    assert not any("teacher.cache=on" in job["overrides"] for job in jobs)
    assert not list((tmp_path / "out" / "runs").glob("*/logits-cpu.npy"))


def test_methods_that_read_feature_maps_keep_the_live_teacher(small: Small, log_lines: LogLines) -> None:
    run = complete(small(*PLAIN, "method=feature"))
    assert run.read_summary().logit_cache is False
    assert any(line.startswith("teacher: live (method=feature ") for line in log_lines())


@pytest.mark.parametrize("value", ["on", "off", "auto"])
def test_a_bare_on_or_off_in_yaml_keeps_its_meaning(small: Small, value: str) -> None:
    node = small().node()
    node["teacher"]["cache"] = OmegaConf.create(f"cache: {value}").cache
    teacher = parse(node).teacher
    assert teacher is not None
    assert teacher.cache == value


@pytest.mark.slow
def test_repeating_a_run_chooses_anew(small: Small) -> None:
    settings = ("data.augment=false", "checkpoint.keep_last=true", "overwrite=true")
    assert complete(small(*settings, "teacher.cache=on")).read_summary().logit_cache is True
    assert complete(small(*settings, "teacher.cache=off")).read_summary().logit_cache is False
    assert check_run(small(*settings)) is not None  # a sweep that repeats it counts its epochs


def test_the_disk_is_checked_before_anything_is_computed_and_without_space_the_teacher_is_live(
    small: Small, log_lines: LogLines, fill_disk: Callable[[], None]
) -> None:
    fill_disk()
    run = complete(small(*PLAIN))
    assert run.read_summary().logit_cache is False
    assert log_lines()[0].startswith("teacher: live (")
    assert not list(cache_of(run).parent.glob("*logits-cpu*"))


# A run continues as it started

LONG = ("data.augment=false", "recipe.epochs=3", "checkpoint.every_minutes=0")


def start(config: RunConfig) -> None:
    """Start a run that ends after an epoch, with a checkpoint."""
    with killed_after(epoch=1, epochs=3):
        complete(config)


@pytest.mark.slow
def test_a_run_that_started_live_continues_live_though_there_is_a_cache_now(small: Small) -> None:
    start(small(*LONG, "teacher.cache=off"))
    complete(small(*PLAIN, "seed=1"))
    assert complete(small(*LONG, "teacher.cache=on")).read_summary().logit_cache is False


@pytest.mark.slow
def test_a_run_that_started_with_a_cache_continues_with_one(small: Small) -> None:
    start(small(*LONG, "teacher.cache=on"))
    (file,) = Path(small().output_root).glob("runs/*/logits-cpu.npy")
    file.unlink()
    assert complete(small(*LONG, "teacher.cache=off")).read_summary().logit_cache is True


def test_a_run_that_started_with_a_cache_stops_where_there_is_no_space_for_it(
    small: Small, fill_disk: Callable[[], None]
) -> None:
    config = small(*LONG, "teacher.cache=on")
    start(config)
    resolved, directory = resolve_run(config)
    (teacher_directory(resolved).path / "logits-cpu.npy").unlink()
    fill_disk()
    before = directory.checkpoint.read_bytes()
    with pytest.raises(RunError) as stopped:
        complete(config)
    assert (stopped.value.code, stopped.value.key) == ("no_space", "teacher.cache")
    assert directory.checkpoint.read_bytes() == before
