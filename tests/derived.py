"""Finished runs that tests of deployment begin with, trained and compressed once per session, and copies of them."""

import functools
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from kdbench.pipeline.compress import compress
from kdbench.rundir.summary import RunSummary, read_unverified
from tests.conftest import NARROW, SMALL, complete, composed_once

ON_CPU = ("runtime.device=cpu",)
TRAINED = ("data.num_train=200", "recipe.epochs=2")
"""Enough training that predictions differ among classes."""
ARMS: dict[str, tuple[str, ...]] = {
    "structured": ("method=structured",),
    "magnitude": ("method=magnitude",),
    "int8": ("method=int8", "int8.images=32"),
    "bf16": ("method=bf16",),
    "tuned": ("chain=[structured,finetune]", "finetune.recipe.epochs=1"),
}
"""Compressions of the trained network."""


@functools.cache
def trained_under(base: Path) -> Path:
    """Train the network that is compressed, and return its run directory."""
    return complete(composed_once(*SMALL, NARROW[0], "teacher=none", "method=ce", *TRAINED, f"output_root={base}")).path


@functools.cache
def compressed_under(base: Path, arm: str) -> Path:
    """Compress the trained network, and return the run directory of the last step."""
    root = trained_under(base)
    assert compress([str(root), *ARMS[arm], *ON_CPU]) == 0
    name = f"{summary_of(root).student}-{'structured-tuned' if arm == 'tuned' else arm}"
    (last,) = [path for path in root.parent.iterdir() if summary_of(path).student == name]
    return last


Copies = Callable[..., dict[str, Path]]


@pytest.fixture
def copies(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Copies:
    """Return copies of the trained run, by the name `root`, and of compressed ones, in the test's own folder `out`."""
    base = tmp_path_factory.getbasetemp() / "derived"

    def make(*arms: str) -> dict[str, Path]:
        found = {"root": trained_under(base)} | {arm: compressed_under(base, arm) for arm in arms}
        if "tuned" in arms:
            found |= {"structured": compressed_under(base, "structured")}
        (tmp_path / "out" / "runs").mkdir(parents=True, exist_ok=True)
        return {
            arm: Path(shutil.copytree(path, tmp_path / "out" / "runs" / path.name, dirs_exist_ok=True))
            for arm, path in found.items()
        }

    return make


def summary_of(path: Path) -> RunSummary:
    return read_unverified(path)[0]


def folder_of(runs: Path, ending: str) -> Path:
    """Return the run directory whose student's name has an ending, and which is no measurement."""
    (found,) = [p for p in runs.iterdir() if "measured" not in p.name and summary_of(p).student.endswith(ending)]
    return found


def compressed(root: Path, *arguments: str) -> int:
    """Compress a run on the CPU, and return the exit code."""
    return compress([str(root), *arguments, *ON_CPU])


def texts(arguments: Sequence[str | Path]) -> list[str]:
    return [str(argument) for argument in arguments]
