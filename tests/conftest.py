"""What tests share: composing configs, calling the command in this process, and the real CIFAR-10 where it is."""

import copy
import functools
import gc
import logging
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from kdbench import cli, teachers
from kdbench.compose import run_config as composed
from kdbench.config import CONF_DIR, RunConfig
from kdbench.models import build
from kdbench.run import execute
from kdbench.train.checkpoint import Checkpointer

SMALL = (
    "student=resnet8", "teacher=resnet20", "data=shapes", "data.num_train=64", "data.num_val=50", "data.num_test=60",
    "recipe=smoke", "recipe.batch_size=32", "teacher.recipe.batch_size=32", "runtime.device=cpu",
    "runtime.precision=fp32",
)  # fmt: skip
"""A run of seconds."""
NARROW = ("student.widths=[8,8,16,32]", "teacher.widths=[8,8,16,32]")
"""Networks half as wide as usual: the same code in a quarter of the time."""


def pytest_collection_finish() -> None:
    """What is imported by now stays: statsmodels collects garbage for every table, a tenth of a second without this."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def fresh_process_state() -> Iterator[None]:
    """What a new process would start with."""
    GlobalHydra.instance().clear()
    teachers.forget_verified()
    threads, package = torch.get_num_threads(), logging.getLogger("kdbench")
    yield
    package.handlers, package.propagate = [], True
    torch.set_num_threads(threads)


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., RunConfig]:
    """Compose a run of seconds that writes into the test's own folder."""

    def make(*overrides: str) -> RunConfig:
        narrow = NARROW[:1] if "teacher=none" in overrides else NARROW
        config = copy.deepcopy(composed_once(*SMALL, *narrow, *overrides))
        if config.output_root == "outputs":
            config.output_root = str(tmp_path / "out")
        return config

    return make


@functools.cache
def composed_once(*overrides: str) -> RunConfig:
    return composed(*overrides)


def every_model() -> list[Any]:
    """Parameters: every model that ships by name. All but one of each kind are slow tests."""
    names = sorted(file.stem for file in (CONF_DIR / "model").glob("*.yaml"))
    quick = ("resnet8", "resnet20", "resnet18")
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


@pytest.fixture(scope="session")
def teachers_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    for overrides in ((), ("data.augment=false",), ("data.augment=false", "data.num_train=400")):
        execute(composed(*SMALL, *NARROW, "student=resnet20", "method=ce", f"output_root={root}", *overrides))
    return root


@pytest.fixture
def trained_teachers(teachers_once: Path, tmp_path: Path) -> None:
    """What `small` learns from is trained already, with augmentation, without, and for 400 images without."""
    shutil.copytree(teachers_once / "runs", tmp_path / "out" / "runs")


class Killed(BaseException):
    """Ends a run where a SIGKILL would: nothing catches it."""


@contextmanager
def killed_after(epoch: int, step: int = 0, epochs: int | None = None) -> Iterator[None]:
    """Runs (of so many epochs) die with the checkpoint that they write after an epoch and so many steps of the next."""
    save = Checkpointer.save

    def die(self: Checkpointer) -> None:
        save(self)
        here = self.learner
        if (here.epoch, here.step_of_epoch) == (epoch, step) and epochs in (None, here.recipe.epochs):
            raise Killed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Checkpointer, "save", die)
        with pytest.raises(Killed):
            yield


@functools.cache
def times_slower() -> float:
    """How much longer this machine takes than the one that limits of time were set on, from 1 to 4.

    That one trains resnet8 in float32 with batches of 128 at 1,800 images/s on two cores.
    """
    student = build(composed_once(*SMALL, "method=ce").student, 10, ()).to(memory_format=torch.channels_last)
    images = torch.randn(128, 3, 32, 32).contiguous(memory_format=torch.channels_last)

    def step() -> None:
        student.zero_grad()
        student(images).logits.square().mean().backward()

    for _ in range(5):
        step()
    seconds = []
    for _ in range(20):
        started = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - started)
    return min(4.0, max(1.0, statistics.median(seconds) / (128 / 1800)))


@dataclass
class Finished:
    code: int
    out: str
    err: str


@pytest.fixture
def kdbench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Finished]:
    """The command, called in this process with an empty folder as working directory."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)

    def call(*arguments: str) -> Finished:
        monkeypatch.setattr(sys, "argv", ["kdbench", *arguments])
        try:
            code = cli.command(list(arguments))
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        captured = capfd.readouterr()
        return Finished(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def cifar_root() -> Path:
    root = Path(os.environ.get("KDBENCH_DATA", "data"))
    if not (root / "cifar-10-batches-py").is_dir():
        pytest.skip(f"needs CIFAR-10: no cifar-10-batches-py in {root.absolute()} (set KDBENCH_DATA)")
    return root.absolute()
