"""Shared roots: where a run is looked for, and what it leaves unchanged; test_members.py trains with them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.config import RunConfig
from kdbench.errors import ConfigError
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.identity import teacher_directory
from kdbench.runner.run import resolve_run
from kdbench.teachers.cache import cache_file

Small = Callable[..., RunConfig]


@pytest.fixture
def store(small: Small, tmp_path: Path) -> Path:
    """Return an output root in which the teacher of `small` is complete, as far as its files' names go."""
    teacher = teacher_directory(resolve_run(small())[0])
    folder = tmp_path / "store" / "runs" / teacher.path.name
    folder.mkdir(parents=True)
    (folder / "summary.json").touch()
    return tmp_path / "store"


def test_shared_roots_change_no_key_and_are_recorded_only_where_they_are_given(small: Small, store: Path) -> None:
    plain, sharing = small(), small(f"shared_roots=[{store}]")
    assert resolve_run(plain)[1].key == resolve_run(sharing)[1].key
    assert "shared_roots" not in plain.node()
    assert sharing.node()["shared_roots"] == [str(store)]


def test_a_complete_run_of_a_shared_root_is_found_unless_the_own_root_has_it_complete(
    small: Small, store: Path
) -> None:
    config = resolve_run(small(f"shared_roots=[{store}]"))[0]
    shared = teacher_directory(config)
    assert shared.path.parent == store / "runs"
    assert shared.is_shared(config)
    own = Path(config.output_root) / "runs" / shared.path.name
    own.mkdir(parents=True)
    assert teacher_directory(config) == shared  # the own one is not complete
    (own / "summary.json").touch()
    assert teacher_directory(config) == RunDirectory(own, shared.key)
    assert not teacher_directory(config).is_shared(config)


def test_a_run_that_is_to_be_repeated_is_written_to_the_own_root(small: Small, store: Path) -> None:
    overrides = ("student=resnet20", "teacher=none", "method=ce", "student.widths=[8,8,16,32]")
    for repeat in ("false", "true"):
        config, directory = resolve_run(small(*overrides, f"shared_roots=[{store}]", f"overwrite={repeat}"))
        assert directory.is_shared(config) == (repeat == "false")


def test_the_logit_cache_of_a_shared_teacher_is_written_to_the_own_root_and_read_in_both(
    small: Small, store: Path
) -> None:
    config = resolve_run(small(f"shared_roots=[{store}]"))[0]
    teacher = teacher_directory(config)
    own = Path(config.output_root) / "runs" / teacher.path.name / "logits-cpu.npy"
    assert cache_file(teacher, config) == own
    (teacher.path / "logits-cpu.npy").touch()
    assert cache_file(teacher, config) == teacher.path / "logits-cpu.npy"
    own.parent.mkdir(parents=True)
    own.touch()
    assert cache_file(teacher, config) == own


def test_a_shared_root_that_is_none_is_an_error(small: Small, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        resolve_run(small(f"shared_roots=[{tmp_path}]"))
    assert (error.value.code, error.value.key) == ("not_found", "shared_roots")
