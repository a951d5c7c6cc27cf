"""Runs without validation: the validation images are trained on, and the weights of the last epoch count."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kdbench.config import RunConfig, parse
from kdbench.data import load
from kdbench.errors import ConfigError
from kdbench.methods.base import MethodContext
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.files import sha256
from kdbench.rundir.identity import run_key
from kdbench.rundir.summary import RunSummary
from kdbench.runner.run import resolve_run
from kdbench.teachers.store import forget_verified
from kdbench.train.learner import Learner
from kdbench.verify.artifacts import Options
from kdbench.verify.checks import FAIL
from kdbench.verify.verify import verify
from tests.conftest import complete

Small = Callable[..., RunConfig]


@pytest.fixture
def best_is_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the accuracy on the validation images fall from epoch to epoch."""
    end_epoch, measured = Learner.end_epoch, "kdbench.train.learner.metrics.accuracy"

    def falling(learner: Learner, dataset: object) -> dict[str, float]:
        with monkeypatch.context() as patch:
            patch.setattr(measured, lambda *_: 0.9 - 0.1 * learner.epoch)
            return end_epoch(learner, dataset)  # type: ignore[arg-type]

    monkeypatch.setattr(Learner, "end_epoch", falling)


@pytest.mark.usefixtures("best_is_first")
@pytest.mark.parametrize("validation", [True, False])
def test_the_last_weights_are_kept_whatever_their_accuracy_on_images_trained_on(small: Small, validation: bool) -> None:
    config = small("method=ce", "recipe.epochs=2", f"data.validation={str(validation).lower()}")
    run = complete(config)
    summary = run.read_summary()
    assert summary.validation is validation
    assert summary.best_val_epoch == (1 if validation else None)
    assert (summary.best_val_acc is None) != validation
    if not validation:
        assert summary.test_acc_best == summary.test_acc_final
        assert "at the last epoch, 2" in run.log.read_text()


@pytest.mark.slow
def test_a_run_and_its_teacher_are_trained_verified_and_reused_without_validation(small: Small) -> None:
    run = complete(small("data.validation=false", "recipe.epochs=2"))
    summary = run.read_summary()
    teacher = RunDirectory(next(run.path.parent.glob(f"*_{summary.teacher_key}")), str(summary.teacher_key))
    of_teacher = teacher.read_summary()
    for own in (summary, of_teacher):
        assert (own.validation, own.best_val_acc, own.best_val_epoch) == (False, None, None)
        assert (own.num_train, own.num_val) == (64, 50)
    for path in (run.path, teacher.path):
        assert [str(line) for line in verify(path, Options()) if line.verdict == FAIL] == []
    forget_verified()
    assert complete(small("data.validation=false", "seed=1")).read_summary().teacher_key == teacher.key
    logits = load_file(teacher.logits)
    logits["val_logits"] = torch.nn.functional.one_hot(logits["val_labels"]).float()
    save_file(logits, teacher.logits)
    teacher.write_summary(dataclasses.replace(of_teacher, logits_sha256=sha256(teacher.logits)))
    forget_verified()
    with pytest.raises(ConfigError) as error:
        complete(small("data.validation=false", "seed=2"))
    assert (error.value.code, error.value.key) == ("mismatch", "teacher")
    assert "1.0 in its logits.safetensors" in str(error.value)


@pytest.mark.parametrize("change", [{"validation": True}, {"best_val_acc": 0.5}, {"best_val_epoch": 1}])
def test_verification_finds_a_run_that_claims_a_validation_that_it_had_not(
    small: Small, change: dict[str, object]
) -> None:
    run = complete(small("method=ce", "data.validation=false"))
    run.write_summary(dataclasses.replace(run.read_summary(), **change))
    failed = {line.what for line in verify(run.path, Options(quick=True)) if line.verdict == FAIL}
    assert set(change) <= failed


def test_validation_is_part_of_the_key_of_a_run_and_of_its_teacher_only_where_it_is_false(small: Small) -> None:
    with_it, without = small(), small("data.validation=false")
    assert run_key(with_it) != run_key(without)
    assert run_key(small("data.validation=true")) == run_key(with_it)
    earlier = with_it.node()
    del earlier["data"]["validation"]  # recorded by a version without the key
    assert run_key(parse(earlier)) == run_key(with_it)


def test_methods_receive_every_image_that_is_trained_on(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[MethodContext] = []
    config = small("method=crd", "method.negatives=16", "data.validation=false", "data.num_train=80")
    original = config.method.target.__init__

    def spy(method: object, params: object, context: MethodContext) -> None:
        seen.append(context)
        original(method, params, context)

    monkeypatch.setattr(config.method.target, "__init__", spy)
    summary: RunSummary = complete(config).read_summary()
    dataset = load(resolve_run(config)[0].data, "cpu")
    assert summary.num_train == len(dataset.train) == 80
    assert any(torch.equal(context.indices, dataset.train.indices.cpu()) for context in seen)
    assert len(dataset.train.indices.unique()) == 80


def test_a_logit_cache_holds_every_image_that_is_trained_on(small: Small) -> None:
    run = complete(small("data.validation=false", "data.augment=false", "teacher.cache=on"))
    assert run.read_summary().logit_cache
    (cache,) = Path(run.path.parent).glob("*/logits-cpu.npy")
    assert np.load(cache, mmap_mode="r").shape[0] == 64
