"""Mistakes in a method of one's own are found before anything trains, each in one line."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kdbench.config import RunConfig
from kdbench.errors import ConfigError
from kdbench.methods import LossOutput, Requires
from kdbench.methods.logit import LogitDistillation
from kdbench.runner import dry_step
from kdbench.runner.run import check_run
from tests.conftest import complete

Small = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def nothing_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_step, "_passed", set())


class Working(LogitDistillation):
    """Counts its steps, so that a test sees which were taken."""

    steps = 0

    def forward(self, *given: Any) -> LossOutput:
        type(self).steps += 1
        return super().forward(*given)


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
    requires = Requires(teacher_logits=True, student_stages="layer1")  # type: ignore[arg-type]  # the mistake itself


class FewArguments(Working):
    def forward(self, student: Any, teacher: Any, batch: Any) -> LossOutput:  # type: ignore[override]  # a mistake
        return super().forward(student, teacher, batch, None)


MISTAKES = {
    Narrow: "Narrow.forward returned logits [4, 3] for a batch whose logits are [4, 10]",
    Classes: "Classes.forward returned logits [4] for a batch whose logits are [4, 10]",
    Raises: "a first step of Raises on 4 images fails: ValueError: my own problem (test_dry_step.py, line ",
    RaisesAfterwards: "a first step of RaisesAfterwards on 4 images fails: ValueError: my own problem",
    CannotPredict: "a first step of CannotPredict on 4 images fails: ValueError: my own problem",
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


def test_a_step_is_taken_once_for_runs_that_differ_in_their_seeds(small: Small) -> None:
    Working.steps = 0
    for seed in (0, 1):
        check_run(small(f"method._target_={__name__}.Working", f"seed={seed}"))
    assert Working.steps == 1
    check_run(small(f"method._target_={__name__}.Working", "method.temperature=2"))
    assert Working.steps == 2


def test_the_step_changes_no_number_of_the_run(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = (f"method._target_={__name__}.Working", "runtime.threads=1")
    first = complete(small(*settings)).weights.read_bytes()
    monkeypatch.setattr("kdbench.runner.build.check_first_step", lambda *_: None)
    second = complete(small(*settings, "overwrite=true"))
    assert second.weights.read_bytes() == first


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
    Working.steps = 0
    config = small(f"method._target_={__name__}.ReadsImages", "runtime.threads=1")
    check_run(config)
    assert Working.steps == 0
    assert complete(config).is_complete()
