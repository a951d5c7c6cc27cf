"""What a run needs of its environment, and what it records of it: disk, memory, torch's settings, the revision."""

import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kdbench.config import RunConfig
from kdbench.errors import RunError
from kdbench.runner import environment
from kdbench.runner.policy import run_with_retries
from kdbench.runner.run import resolve_run
from kdbench.train.learner import Learner
from tests.conftest import complete
from tests.runner.trainers import after_steps

Small = Callable[..., RunConfig]


def test_disk_space_is_checked_before_anything_is_written(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000))
    config = small("method=ce", "student.widths=[16,16,32,64]")
    with pytest.raises(RunError) as full:
        complete(config)
    assert (full.value.code, full.value.key) == ("no_space", "output_root")
    assert "about 4 MB needed, 2 MB free" in str(full.value)
    assert not resolve_run(config)[1].path.exists()


def test_an_allocation_that_is_too_large_names_the_setting_to_lower(small: Small) -> None:
    def allocate(learners: Sequence[Learner], *_: Any) -> None:
        torch.empty(10**16)

    (result,) = run_with_retries([small("method=ce")], train=allocate)
    assert isinstance(result.error, RunError)
    assert (result.error.code, result.error.key) == ("out_of_memory", "recipe.batch_size")
    assert f"({4 * 10**16} bytes more requested)" in str(result.error)


def test_the_repro_profile_takes_only_repeatable_kernels_and_those_of_the_cpu_all_are(small: Small) -> None:
    only_repeatable: list[bool] = []

    def record(_: Learner) -> None:
        only_repeatable.append(torch.are_deterministic_algorithms_enabled())

    runs, profiles = [], ("repro", "repro", "fast")
    for number, profile in enumerate(profiles):
        root = f"{small().output_root}/{number}"
        config = small("method=ce", f"runtime.profile={profile}", f"output_root={root}")
        (result,) = run_with_retries([config], train=after_steps(record))
        assert result.directory, result.error
        runs.append(result.directory)
    assert only_repeatable == [True] * 4 + [False] * 2
    assert not torch.are_deterministic_algorithms_enabled()
    assert len({run.weights.read_bytes() for run in runs}) == 1
    assert [(run.read_summary().environment or {})["profile"] for run in runs] == list(profiles)


def test_the_revision_and_whether_tracked_files_changed_are_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "environment.py"
    file.write_text("")
    monkeypatch.setattr(environment, "__file__", str(file))

    def git(*arguments: str) -> str:
        names = ("-c", "user.name=A", "-c", "user.email=a@b")
        command = ["git", "-C", str(tmp_path), *names, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert environment.git_state() == {"git_revision": None, "git_dirty": None}
    git("init")
    git("add", file.name)
    git("commit", "-m", "first")
    (tmp_path / "untracked").write_text("")
    assert environment.git_state() == {"git_revision": git("rev-parse", "HEAD"), "git_dirty": False}
    file.write_text("changed")
    assert environment.git_state()["git_dirty"] is True
