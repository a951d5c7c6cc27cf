"""Shared fixtures: composed configs, the command in this process, and the real CIFAR-10 where it is."""

import copy
import functools
import gc
import logging
import os
import resource
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import hypothesis  # noqa: F401  # before torch_pruning, which loads trio, of which it warns afterwards
import pytest
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from kdbench import cli
from kdbench.config import CONF_DIR, RunConfig, parse
from kdbench.config.composition import without_hydra
from kdbench.config.options import groups, options, register_models
from kdbench.models import build
from kdbench.rundir.directory import RunDirectory
from kdbench.runner.policy import run_with_retries
from kdbench.system import signals
from kdbench.teachers import cache, store
from tests.networks import SPEC
from tests.slurm import Cluster, cluster

SMALL = (
    "student=resnet8", "teacher=resnet20", "data=shapes", "data.num_train=64", "data.num_val=50", "data.num_test=60",
    "recipe=smoke", "recipe.batch_size=32", "teacher.recipe.batch_size=32", "runtime.device=cpu",
    "runtime.precision=fp32",
)  # fmt: skip
"""A run of seconds."""
NARROW = ("student.widths=[8,8,16,32]", "teacher.widths=[8,8,16,32]")
"""Networks half as wide as usual: the same code in a quarter of the time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests of other Python versions, which take minutes: two processes then end at the same time."""
    items.sort(key=lambda item: item.path.name != "test_python_versions.py")


def pytest_collection_finish() -> None:
    """Leave what is imported by now out of garbage collection, and collect less often: a fifth of a composition."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True, scope="session")
def shared_models() -> Iterator[None]:
    """Share the registered models: Hydra copies all of them in each composition, a quarter of its time."""
    with pytest.MonkeyPatch.context() as patch:
        # `load` of the store copies what it returns
        patch.setattr(ConfigStore, "__deepcopy__", lambda store, _: store, raising=False)
        yield


@pytest.fixture(autouse=True)
def fresh_process_state() -> Iterator[None]:
    """The state of a new process."""
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None
    store.forget_verified()
    cache.forget_verified()
    threads, package = torch.get_num_threads(), logging.getLogger("kdbench")
    with same_root_logger():
        yield
    package.handlers, package.propagate = [], True
    signals.uninstall()
    torch.set_num_threads(threads)


@contextmanager
def same_root_logger() -> Iterator[None]:
    """Undo what Hydra does to the root logger in the block: its handlers would write to a stream that is closed."""
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    try:
        yield
    finally:
        root.setLevel(level)
        root.handlers[:] = handlers


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


def composed_once(*overrides: str) -> RunConfig:
    """Compose a run as `compose` does, in a fifth of the time: Hydra composes each set of options once."""
    return composed_in(os.environ.get("KDBENCH_DATA"), *overrides)


@functools.cache
def composed_in(data_root: str | None, *overrides: str) -> RunConfig:
    """Compose a run. `data_root` is what the environment says, which a config may read."""
    keys = {o: o.partition("=")[0] for o in overrides}
    chosen = tuple(o for o in overrides if keys[o] in groups() or not o[0].isalpha() or keys[o].startswith("hydra"))
    config, choices = composed_options(chosen)
    config = copy.deepcopy(config)
    for override in overrides:
        if override not in chosen:
            key, value = read_override(override)
            OmegaConf.update(config, key, value)
    return parse(config, choices)


@functools.cache
def composed_options(overrides: tuple[str, ...]) -> tuple[DictConfig, dict[str, Any]]:
    """Return the config of a choice of options, its interpolations unresolved, and the name of each option."""
    register_models(CONF_DIR)
    with hydra.initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        config = hydra.compose("config", list(overrides), return_hydra_config=True)
    return without_hydra(config), dict(config.hydra.runtime.choices)


@functools.cache
def read_override(override: str) -> tuple[str, Any]:
    """Return key and value of an override such as `recipe.lr=0.1`."""
    (read,) = OverridesParser.create().parse_overrides([override])
    assert not read.is_sweep_override(), f"{override} is a sweep"
    return read.key_or_group, read.value()


def complete(config: RunConfig) -> RunDirectory:
    """Complete a run and return its directory, or raise its error."""
    (result,) = run_with_retries([config])
    if result.error:
        raise result.error
    assert result.directory is not None
    return result.directory


def rest_wide(values: Iterable[Any], every_day: int = 1) -> list[Any]:
    """Parameters: the first values, or tuples of values, are tests of every day; the others of the kind are wide."""
    cases = [value if isinstance(value, tuple) else (value,) for value in values]
    return [pytest.param(*case, marks=pytest.mark.wide if n >= every_day else ()) for n, case in enumerate(cases)]


def every_model() -> list[Any]:
    """Parameters: every model that ships by name. All but one of each kind are wide tests."""
    names = sorted(options("student"))
    quick = ("resnet8", "resnet20", "resnet18")
    return [pytest.param(name, marks=() if name in quick else pytest.mark.wide) for name in names]


@pytest.fixture(scope="session")
def teachers_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    for overrides in ((), ("data.augment=false",), ("data.augment=false", "data.num_train=400")):
        complete(composed_once(*SMALL, *NARROW, "student=resnet20", "method=ce", f"output_root={root}", *overrides))
    return root


@pytest.fixture
def trained_teachers(teachers_once: Path, tmp_path: Path) -> None:
    """Train the teachers of `small` beforehand: with augmentation, without, and for 400 images without."""
    shutil.copytree(teachers_once / "runs", tmp_path / "out" / "runs")


class Killed(BaseException):
    """Ends a run as a SIGKILL would: nothing catches it."""


@contextmanager
def killed_after(epoch: int, step: int = 0, epochs: int | None = None) -> Iterator[None]:
    """Kill the run in the block with the checkpoint that it writes after an epoch and some steps of the next.

    Args:
        epoch: finished epochs.
        step: finished steps of the next one.
        epochs: only a run of that many epochs dies.
    """
    save = RunDirectory.save_checkpoint

    def die(self: RunDirectory, metadata: Any, content: bytes) -> None:
        save(self, metadata, content)
        if (metadata["epoch"], metadata["step"]) == (epoch, step) and epochs in (None, epochs_of(self)):
            raise Killed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(RunDirectory, "save_checkpoint", die)
        with pytest.raises(Killed):
            yield


def epochs_of(directory: RunDirectory) -> int:
    """Return the number of epochs in a run's config.yaml."""
    text = directory.config.read_text().split("\nrecipe:\n", 1)[1]
    return int(text.split("epochs: ", 1)[1].split("\n", 1)[0])


@functools.cache
def times_slower() -> float:
    """Return how much longer this machine takes than the one that limits of time were set on, from 1 to 4.

    That one trains resnet8 in float32 with batches of 128 at 1,800 images/s on two cores.
    """
    student = build(composed_once(*SMALL, "method=ce").student, SPEC, ()).to(memory_format=torch.channels_last)
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


@contextmanager
def processor_time() -> Iterator[list[float]]:
    """Yield a list that receives the seconds on two cores of the processes started and ended within.

    Unlike the time of a clock, they do not grow with what else the machine does.
    """
    seconds: list[float] = []
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    yield seconds
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds.append((after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 2)


@dataclass
class Finished:
    """How a command ended."""

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
        with pytest.raises(SystemExit) as leaving:
            cli.main()
        captured = capfd.readouterr()
        assert isinstance(leaving.value.code, int)
        return Finished(leaving.value.code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def cifar_root() -> Path:
    root = Path(os.environ.get("KDBENCH_DATA", "data"))
    if not (root / "cifar-10-batches-py").is_dir():
        pytest.skip(f"needs CIFAR-10: no cifar-10-batches-py in {root.absolute()} (set KDBENCH_DATA)")
    return root.absolute()


@pytest.fixture(scope="session")
def cifar100_root() -> Path:
    root = Path(os.environ.get("KDBENCH_DATA", "data"))
    if not (root / "cifar-100-python").is_dir():
        pytest.skip(f"needs CIFAR-100: no cifar-100-python in {root.absolute()} (set KDBENCH_DATA)")
    return root.absolute()


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A SLURM with two CPUs, one for all tests of the group slurm."""
    with cluster(tmp_path_factory.mktemp("slurm") / "cluster") as running:
        yield running
