"""Runs that were killed or stopped continue to the same numbers, whatever became of their checkpoints."""

import datetime
import io
import logging
import pickle
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf

from kdbench.config import RunConfig, parse
from kdbench.errors import RunError
from kdbench.rundir import checksummed
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.files import sha256
from kdbench.rundir.identity import teacher_directory
from kdbench.runner.policy import run_with_retries
from kdbench.runner.run import resolve_run
from kdbench.runner.run_all import Train
from kdbench.system.signals import Interrupted, handled
from kdbench.teachers import store
from kdbench.train.learner import Learner
from tests.conftest import NARROW, SMALL, complete, composed_once, killed_after, rest_wide
from tests.every_method import for_few_images
from tests.runner.trainers import with_learners

STEPS = ("recipe.epochs=3", "checkpoint.every_minutes=0")
"""Three epochs of two steps; a checkpoint after each step."""

Small = Callable[..., RunConfig]


def directory_of(config: RunConfig) -> RunDirectory:
    """Return where a run is, or will be."""
    return resolve_run(config)[1]


def assert_same_numbers(run: RunDirectory, expected: RunDirectory) -> None:
    """Assert that two runs have computed the same, bit for bit."""
    tables = [pd.read_csv(r.metrics, dtype=str).drop(columns=["images_per_second", "seconds"]) for r in (run, expected)]
    pd.testing.assert_frame_equal(*tables)
    assert run.weights.read_bytes() == expected.weights.read_bytes()
    assert run.logits.read_bytes() == expected.logits.read_bytes()


def starts_recorded(starts: list[tuple[int, int]]) -> Train:
    """Return a trainer that records where its learners start: finished epochs, and steps of the next."""
    return with_learners(lambda learners: starts.extend(learner.position for learner in learners))


def completed_from(config: RunConfig) -> tuple[RunDirectory, tuple[int, int]]:
    """Complete a run; return its directory and where its training started."""
    starts: list[tuple[int, int]] = []
    (result,) = run_with_retries([config], train=starts_recorded(starts))
    assert result.directory, result.error
    return result.directory, starts[0]


# Killed


@pytest.fixture(scope="module")
def undisturbed(teachers_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunDirectory]:
    """Complete a run by its overrides, beside teachers that are trained already; the same one only once."""
    root = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(teachers_once / "runs", root / "runs")
    return lambda *overrides: complete(composed_once(*SMALL, *NARROW, *overrides, f"output_root={root}"))


@pytest.mark.usefixtures("trained_teachers")
@pytest.mark.parametrize(
    ("method", "step"),
    [
        ("feature", 1),
        *(pytest.param("ce", step, marks=pytest.mark.wide) for step in (0, 2)),
        *(pytest.param(name, 1, marks=pytest.mark.wide) for name in ("crd", "random_control", "simkd", "vid", "wkd_l")),
    ],
)
def test_a_killed_run_resumes_to_the_same_numbers(
    small: Small, undisturbed: Callable[..., RunDirectory], method: str, step: int
) -> None:
    keys = (f"method={method}", *for_few_images(method))
    config = small(*keys, *STEPS)
    with killed_after(epoch=2, step=step, epochs=3):
        complete(config)
    resumed, start = completed_from(config)
    assert start == (2, step)
    assert "resuming from last.ckpt" in resumed.log.read_text()
    assert not any(file.exists() for file in resumed.checkpoints())
    assert_same_numbers(resumed, undisturbed(*keys, *STEPS))


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunDirectory]:
    """A folder with a run that was killed in the middle of its second epoch, and the same run undisturbed."""
    killed, whole = (
        composed_once(*SMALL, *NARROW, "method=ce", *STEPS, f"output_root={tmp_path_factory.mktemp(name)}")
        for name in ("killed", "whole")
    )
    with killed_after(epoch=1, step=1):
        complete(killed)
    return Path(killed.output_root), complete(whole)


@pytest.fixture
def killed(small: Small, killed_once: tuple[Path, RunDirectory], tmp_path: Path) -> tuple[RunConfig, RunDirectory]:
    """A run that was killed in the middle of its second epoch."""
    shutil.copytree(killed_once[0] / "runs", tmp_path / "out" / "runs")
    config = small("method=ce", *STEPS)
    return config, directory_of(config)


@pytest.fixture
def whole(killed_once: tuple[Path, RunDirectory]) -> RunDirectory:
    """The same run undisturbed."""
    return killed_once[1]


def test_a_resumed_run_keeps_the_time_of_its_first_start(killed: tuple[RunConfig, RunDirectory]) -> None:
    config, directory = killed
    first = directory.checkpoint_metadata()["started"]
    summary = complete(config).read_summary()
    assert summary.started == first
    assert datetime.datetime.fromisoformat(first) < datetime.datetime.now(datetime.UTC)


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(
    killed: tuple[RunConfig, RunDirectory], whole: RunDirectory
) -> None:
    config, directory = killed
    content = bytearray(directory.checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    directory.checkpoint.write_bytes(content)
    run, start = completed_from(config)
    assert start == (1, 0)
    log = run.log.read_text()
    assert "last.ckpt is damaged" in log
    assert "resuming from previous.ckpt" in log
    assert_same_numbers(run, whole)


def test_the_previous_checkpoint_alone_is_enough(killed: tuple[RunConfig, RunDirectory], whole: RunDirectory) -> None:
    """A process can be killed between the two renames that replace last.ckpt."""
    config, directory = killed
    directory.checkpoint.unlink()
    run, start = completed_from(config)
    assert start == (1, 0)
    assert not list(run.path.glob("*.ckpt"))
    assert_same_numbers(run, whole)


def test_without_a_readable_checkpoint_a_run_starts_over(
    killed: tuple[RunConfig, RunDirectory], whole: RunDirectory
) -> None:
    config, directory = killed
    for file in directory.checkpoints():
        file.write_bytes(file.read_bytes()[:1000])
    run, start = completed_from(config)
    assert start == (0, 0)
    assert "no checkpoint is readable; starting over" in run.log.read_text()
    assert_same_numbers(run, whole)


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("form", rest_wide(["torch", "pickle", "without checksum"]))
def test_a_checkpoint_that_would_execute_code_is_refused(
    killed: tuple[RunConfig, RunDirectory], whole: RunDirectory, tmp_path: Path, form: str
) -> None:
    config, directory = killed
    marker, content = tmp_path / "executed", io.BytesIO()
    if form == "torch":
        torch.save({"learner": Malicious(marker), "random": {}}, content)
    else:
        pickle.dump({"learner": Malicious(marker)}, content)
    for file in directory.checkpoints():
        if form == "without checksum":
            file.write_bytes(content.getvalue())
        else:
            checksummed.write(file, checksummed.read_metadata(file), content.getvalue())
    run, start = completed_from(config)
    assert start == (0, 0)
    assert not marker.exists()
    assert_same_numbers(run, whole)
    pickle.loads(pickle.dumps(Malicious(marker)))
    assert marker.exists()  # the check above can fail


def test_a_good_checkpoint_is_never_replaced_by_a_damaged_one(
    killed: tuple[RunConfig, RunDirectory], whole: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest is damaged, the run continues from the one before, and the disk is full at its next checkpoint."""
    config, directory = killed
    directory.checkpoint.write_bytes(b"damaged")
    good = directory.previous_checkpoint.read_bytes()
    replace = Path.replace

    def refuse(self: Path, target: Path) -> Path:
        if Path(target) == directory.checkpoint:
            raise OSError(28, "No space left on device")
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", refuse)
        with pytest.raises(RunError) as full:
            complete(config)
    assert (full.value.code, full.value.key) == ("no_space", "output_root")
    assert str(full.value).endswith("the last checkpoint is intact")
    assert directory.previous_checkpoint.read_bytes() == good
    run, start = completed_from(config)
    assert start == (1, 0)
    assert_same_numbers(run, whole)


@pytest.mark.parametrize("damage", ["edited", "deleted"])
def test_metrics_of_a_resumed_run_are_those_of_its_checkpoint(
    killed: tuple[RunConfig, RunDirectory], whole: RunDirectory, damage: str
) -> None:
    config, directory = killed
    content = directory.metrics.read_bytes()
    directory.metrics.write_bytes(content.replace(b"2.", b"9.")) if damage == "edited" else directory.metrics.unlink()
    run = complete(config)
    assert_same_numbers(run, whole)
    assert run.read_summary().metrics_sha256 == sha256(run.metrics)


# Settings that a resumed run keeps


def test_metadata_of_a_checkpoint_has_the_position_and_the_numeric_settings(
    killed: tuple[RunConfig, RunDirectory],
) -> None:
    config, directory = killed
    metadata = directory.checkpoint_metadata()
    assert (metadata["epoch"], metadata["step"]) == (1, 1)
    settings, runtime = metadata["settings"], resolve_run(config)[0].runtime
    assert len(settings.pop("train_data_sha256")) == 64
    kept = ("threads", "channels_last", "profile", "compile")
    assert settings == {name: asdict(runtime)[name] for name in kept} | {"cache": None, "teacher_weights_sha256": None}


def edit_settings(directory: RunDirectory, **changed: Any) -> None:
    """Change the numeric settings that a run's checkpoints record."""
    for file in directory.checkpoints():
        metadata, content = checksummed.read(file)
        metadata["settings"] |= changed
        checksummed.write(file, metadata, content)


@pytest.mark.parametrize(
    ("setting", "value"), rest_wide([("channels_last", False), ("threads", 2), ("profile", "repro")])
)
def test_a_resumed_run_keeps_its_numeric_settings(
    killed: tuple[RunConfig, RunDirectory], setting: str, value: Any
) -> None:
    config, directory = killed
    assert asdict(config.runtime)[setting] != value
    edit_settings(directory, **{setting: value})
    recorded = parse(OmegaConf.load(complete(config).config)).runtime
    assert asdict(recorded)[setting] == value


def test_training_data_that_changed_meanwhile_are_an_error(killed: tuple[RunConfig, RunDirectory]) -> None:
    config, directory = killed
    edit_settings(directory, train_data_sha256="0" * 64)
    assert refused(config) == ("data_changed", "data")


@pytest.mark.slow
@pytest.mark.usefixtures("trained_teachers")
def test_a_teacher_that_was_replaced_meanwhile_is_an_error(small: Small) -> None:
    config = small("method=logit", *STEPS)
    with killed_after(epoch=1, step=1, epochs=3):
        complete(config)
    teacher, other = (
        teacher_directory(resolve_run(small("method=logit", *more))[0]) for more in ((), ("teacher.seed=1",))
    )
    complete(small("method=ce", "student=resnet20", "seed=1"))
    shutil.rmtree(teacher.path)
    shutil.copytree(other.path, teacher.path)
    store.forget_verified()
    assert refused(config) == ("teacher_changed", "teacher")


@pytest.mark.slow
@pytest.mark.usefixtures("trained_teachers")
def test_a_teacher_with_other_weights_than_at_the_start_is_an_error(small: Small) -> None:
    config = small("method=logit", *STEPS)
    with killed_after(epoch=1, epochs=3):
        complete(config)
    edit_settings(directory_of(config), teacher_weights_sha256="0" * 64)
    assert refused(config) == ("teacher_changed", "teacher")


def refused(config: RunConfig) -> tuple[str, str]:
    """Return code and key of the error that a run ends with."""
    with pytest.raises(RunError) as error:
        complete(config)
    return error.value.code, error.value.key


# Stopped by a signal


UNTIMED = ("recipe.epochs=3", "checkpoint.every_minutes=null")
"""No checkpoint before the end of the training."""


def signal_in_step(number: signal.Signals, position: tuple[int, int]) -> Train:
    """Return a trainer that sends this process a signal while the step at a position is under way."""

    def watch(learners: Sequence[Learner]) -> None:
        for learner in learners:
            learner.optimizer.register_step_pre_hook(lambda *_, it=learner: send(it))

    def send(learner: Learner) -> None:
        if learner.position == position:
            signal.raise_signal(number)

    return with_learners(watch)


def stopped(config: RunConfig, train: Train) -> None:
    """Start a run that a signal stops."""
    with pytest.raises(Interrupted), handled():
        run_with_retries([config], train=train)


def test_a_signal_in_the_middle_of_a_step_leaves_a_checkpoint_after_it(
    small: Small, undisturbed: Callable[..., RunDirectory]
) -> None:
    config = small("method=ce", *UNTIMED)
    stopped(config, signal_in_step(signal.SIGTERM, (1, 0)))
    assert "SIGTERM: stopped after 1 of 3 epochs and 1 steps" in directory_of(config).log.read_text()
    run, start = completed_from(config)
    assert start == (1, 1)
    assert_same_numbers(run, undisturbed("method=ce", *UNTIMED))


@pytest.mark.slow
def test_a_signal_during_validation_loses_no_training(small: Small) -> None:
    def signal_in_validation(learners: Sequence[Learner]) -> None:
        for learner in learners:
            learner.student.register_forward_hook(send)

    def send(student: torch.nn.Module, *_: object) -> None:
        if not student.training:
            signal.raise_signal(signal.SIGUSR1)

    config = small("method=ce", *UNTIMED, "data.num_val=200")  # two batches: it stops between them
    stopped(config, with_learners(signal_in_validation))
    assert completed_from(config)[1] == (0, 2)


def test_a_run_has_its_log_at_any_level_of_the_process(small: Small) -> None:
    package = logging.getLogger("kdbench")
    before = package.level
    package.setLevel(logging.ERROR)
    try:
        run = complete(small("method=ce"))
        assert package.level == logging.ERROR
    finally:
        package.setLevel(before)
    assert "epoch 1/1: loss" in run.log.read_text()
