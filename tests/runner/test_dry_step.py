"""Mistakes in a method of one's own are found before anything trains, each in one line."""

import dataclasses
import random
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from kdbench.config import RunConfig
from kdbench.errors import ConfigError
from kdbench.methods import LossOutput, Requires
from kdbench.methods.logit import LogitDistillation
from kdbench.models import summarize
from kdbench.runner import dry_step
from kdbench.runner.build import check_parts, context_of
from kdbench.runner.run import check_run
from tests.conftest import complete

Small = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def nothing_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_step, "_passed", set())
    STEPS.clear()


STEPS: list[int] = []
"""Numbers of images of the steps that were taken."""


class Working(LogitDistillation):
    """Records its steps."""

    def forward(self, student: Any, *given: Any) -> LossOutput:
        STEPS.append(len(student.logits))
        return super().forward(student, *given)


class Narrow(Working):
    def forward(self, *given: Any) -> LossOutput:
        terms, logits = super().forward(*given)
        return LossOutput(terms, logits[:, :3])


class Classes(Working):
    def forward(self, *given: Any) -> LossOutput:
        terms, logits = super().forward(*given)
        return LossOutput(terms, logits.argmax(1))


class Raises(Working):
    def forward(self, *given: Any) -> LossOutput:
        raise ValueError("my own problem")


class RaisesAfterwards(Working):
    def finish_step(self, skipped: torch.Tensor) -> None:
        raise ValueError("my own problem")


class CannotPredict(Working):
    def predict(self, output: Any) -> torch.Tensor:
        raise ValueError("my own problem")


class UndeclaredStage(Working):
    uses_stages = True

    def forward(self, student: Any, *given: Any) -> LossOutput:
        assert student.features["layer1"] is not None
        return super().forward(student, *given)


class UndeclaredLogits(Working):
    requires = Requires()

    def forward(self, student: Any, teachers: Any, *given: Any) -> LossOutput:
        total = student.logits.sum() * teachers[0].logits.sum()
        return LossOutput({"total": total}, student.logits)


class WithoutTeacher(Working):
    needs_teacher = False


class TextForStages(Working):
    uses_stages = True
    requires = Requires(teacher_logits=True, student_stages="layer1")


class FewArguments(Working):
    def forward(self, student: Any, teacher: Any, batch: Any) -> LossOutput:
        return super().forward(student, teacher, batch, None)


MISTAKES = {
    Narrow: "Narrow.forward returned logits [32, 3] for a batch whose logits are [32, 10]",
    Classes: "Classes.forward returned logits [32] for a batch whose logits are [32, 10]",
    Raises: "a first step of Raises fails: ValueError: my own problem (test_dry_step.py, line ",
    RaisesAfterwards: "a first step of RaisesAfterwards fails: ValueError: my own problem",
    CannotPredict: "a first step of CannotPredict fails: ValueError: my own problem",
    UndeclaredStage: "declare it in requires = Requires(student_stages=('layer1',), ...)",
    UndeclaredLogits: "declare requires = Requires(teacher_logits=True)",
    WithoutTeacher: "declare needs_teacher = True",
    TextForStages: "it must be a tuple of names, such as ('layer1',)",
    FewArguments: "its forward must take (student, teachers, batch, progress)",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda cls: cls.__name__)
def test_a_mistake_is_one_line_before_training(small: Small, mistake: type[Working]) -> None:
    config = small(f"method._target_={__name__}.{mistake.__name__}")
    with pytest.raises(ConfigError) as error:
        check_run(config)
    assert MISTAKES[mistake] in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.key in ("method", "method._target_")


def test_a_step_of_a_batch_is_taken_once_for_runs_that_differ_in_their_seeds(small: Small) -> None:
    for seed in (0, 1):
        check_run(small(f"method._target_={__name__}.Working", f"seed={seed}"))
    assert STEPS == [32]
    check_run(small(f"method._target_={__name__}.Working", "method.temperature=2", "recipe.batch_size=20"))
    assert STEPS == [32, 20]


class Draws(Working):
    """Draws from every generator, and counts on its class."""

    count = 0
    seen: ClassVar[list[int]] = []

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        torch.rand(3, generator=context.generator)

    def forward(self, student: Any, teachers: Any, batch: Any, progress: Any) -> LossOutput:
        type(self).count += 1
        self.seen.append(type(self).count)
        noise = random.random() + np.random.rand() + torch.rand(())
        terms, logits = super().forward(student, teachers, batch, progress)
        return LossOutput({"total": terms["total"] * (1 + noise)}, logits)


def test_the_step_draws_no_number_of_the_process_and_leaves_the_class_as_it_was(small: Small) -> None:
    states = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()]
    check_run(small(f"method._target_={__name__}.Draws"))
    after = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()]
    assert STEPS
    assert torch.equal(states[0], after[0])
    assert states[1:] == after[1:]
    assert (Draws.count, Draws.seen) == (0, [])


class Neighbours(Working):
    """Needs several images of each of several classes, and the probabilities of labels that the recipe makes."""

    soft_labels = True

    def forward(self, student: Any, teachers: Any, batch: Any, progress: Any) -> LossOutput:
        distances = torch.cdist(student.logits, student.logits)
        distances.topk(5, dim=1, largest=False)
        others = batch.labels[:, None] != batch.labels
        assert all(row.any() for row in others)
        terms, logits = super().forward(student, teachers, batch, progress)
        return LossOutput({"total": terms["total"] + batch.soft_targets.sum()}, logits)


def test_the_step_has_the_size_the_classes_and_the_labels_of_a_batch(small: Small) -> None:
    check_run(small(f"method._target_={__name__}.Neighbours", "recipe.label_smoothing=0.1"))
    assert STEPS == [32]


@pytest.mark.parametrize(("error", "refused"), [(AttributeError, True), (RuntimeError, False)])
def test_on_another_device_only_errors_of_code_are_refused(
    small: Small, monkeypatch: pytest.MonkeyPatch, error: type[Exception], refused: bool
) -> None:
    config = small(f"method._target_={__name__}.Working")
    dataset, student, _ = check_parts(config)
    context = context_of(config, dataset, student, summarize(config.teacher.model, dataset.spec, "teacher"))
    monkeypatch.setattr(dry_step, "_passed", set())
    monkeypatch.setattr(dry_step, "take_step", raising(error("of a kernel")))
    config.runtime = dataclasses.replace(config.runtime, device="cuda")
    with pytest.raises(ConfigError) if refused else nullcontext():
        dry_step.check_first_step(config, context)


def raising(error: Exception) -> Callable[..., None]:
    """Return a function that raises an error."""

    def function(*given: Any) -> None:
        raise error

    return function


class ReadsImages(Working):
    """Computes something of all training images when it is bound."""

    def bind_teachers(self, networks: Any) -> None:
        self.seen = sum(len(images) for images in self.images())

    def __init__(self, config: Any, context: Any) -> None:
        super().__init__(config, context)
        self.images = context.images

    def forward(self, *given: Any) -> LossOutput:
        assert self.seen == 64
        return super().forward(*given)


def test_a_method_that_reads_the_training_images_is_left_to_the_run(small: Small) -> None:
    config = small(f"method._target_={__name__}.ReadsImages", "runtime.threads=1")
    check_run(config)
    assert STEPS == []
    assert complete(config).is_complete()
