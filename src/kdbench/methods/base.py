"""The contract of a method: between a loss, the models and the training loop."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from kdbench.config.schema import number, optional
from kdbench.data.batches import Batch
from kdbench.errors import ConfigError
from kdbench.models import Output

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of one image's output per stage: (C, H, W) for maps, (D,) for embeddings."""


class TeacherOutput(NamedTuple):
    """Output of a teacher for one batch: the parts that methods require, always without gradient."""

    logits: Tensor | None
    features: Mapping[str, Tensor]

    def select(self, requires: "Requires") -> "TeacherOutput":
        """Return the part that one method requires; the teacher may serve others too."""
        features = {stage: self.features[stage] for stage in requires.teacher_stages}
        return TeacherOutput(self.logits if requires.teacher_logits else None, features)

    def part(self, rows: slice) -> "TeacherOutput":
        """Return the output for some of the images."""
        features = {stage: values[rows] for stage, values in self.features.items()}
        return TeacherOutput(None if self.logits is None else self.logits[rows], features)


class Progress:
    """Position of a training, for weights that ramp up or down.

    Args:
        epoch: current epoch, counted from 0.
        epochs: number of epochs in total.
    """

    def __init__(self, epoch: int, epochs: int) -> None:
        self._epoch = epoch
        self.epochs = epochs
        self.was_read = False
        """True if the step depends on the epoch, so that a step captured in one epoch is not replayed in another."""

    @property
    def epoch(self) -> int:
        self.was_read = True
        return self._epoch


START = Progress(0, 1)


@dataclass(frozen=True)
class Requires:
    """Requirements of a method; nothing else is computed."""

    teacher_logits: bool = False
    teacher_stages: tuple[str, ...] = ()
    student_stages: tuple[str, ...] = ()

    @classmethod
    def of_teacher(cls, several: Iterable["Requires"]) -> "Requires":
        """Return what a teacher must compute so that each of several methods gets what it requires."""
        all_required = list(several)
        stages = dict.fromkeys(stage for requires in all_required for stage in requires.teacher_stages)
        return cls(any(requires.teacher_logits for requires in all_required), tuple(stages))


@dataclass
class Weights:
    """The keys of methods whose loss is ce_weight * CE + kd_weight * KD, configured by `alpha`.

    alpha is the weight of KD and 1 - alpha that of CE (other code bases use it the other way round). For weights that
    do not add up to 1, set alpha=null and both weights.
    """

    alpha: float | None = optional(number(0, 1))
    ce_weight: float | None = optional(number(0))
    kd_weight: float | None = optional(number(0))

    def __post_init__(self) -> None:
        explicit = (self.ce_weight, self.kd_weight)
        if self.alpha is not None and explicit != (None, None):
            raise ConfigError(
                f"method.alpha is {self.alpha:g} and explicit weights are given too "
                f"(ce_weight={self.ce_weight}, kd_weight={self.kd_weight}); for these weights set method.alpha=null",
                code="conflicting_weights",
                key="method.alpha",
            )
        if self.alpha is None and None in explicit:
            raise ConfigError(
                "method.alpha=null needs both method.ce_weight and method.kd_weight; "
                f"given: ce_weight={self.ce_weight}, kd_weight={self.kd_weight}",
                code="missing_value",
                key="method.alpha",
            )

    def resolved(self) -> tuple[float, float]:
        """Return (ce_weight, kd_weight)."""
        if self.alpha is not None:
            return 1 - self.alpha, self.alpha
        assert self.ce_weight is not None
        assert self.kd_weight is not None
        return self.ce_weight, self.kd_weight


class Method(nn.Module, ABC):
    """A way of training a student. A subclass owns every parameter and buffer that its loss needs.

    `Config` is a dataclass with one field per key of the method's YAML file, without defaults. `needs_teacher`
    declares, before anything is built, whether a run must have a teacher; `requires` declares what of it.
    """

    @dataclass
    class Config:
        pass

    role: ClassVar[Literal["baseline", "distilled", "control"]]
    """Role of the method in a comparison; it is written into summary.json, and the report reads it there."""
    needs_teacher: ClassVar[bool]
    uses_stages: ClassVar[bool] = True
    """True if the nodes that stages name can change its numbers; if not, they are no part of a run's key."""
    soft_labels: ClassVar[bool] = False
    """True if its loss is defined for labels that are probabilities: it uses `batch.targets` in place of
    `batch.labels`. If not, recipes that smooth or mix labels are refused."""
    capturable: bool = True
    """True if a training step may be captured as a CUDA graph. Declare False for a method that draws random numbers on
    the host, keeps state in attributes or reassigned buffers, or waits for the device in `forward`."""
    requires: Requires

    def __init__(self, config: Any, student_shapes: Shapes, teacher_shapes: Shapes | None) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(
        self,
        student: Output,
        teacher: TeacherOutput | None,
        batch: Batch,
        peers: Sequence[Output] = (),
        progress: Progress = START,
    ) -> dict[str, Tensor]:
        """Return the named scalar terms of the batch's loss, means over its images; `total` is minimised.

        On a GPU a captured call is replayed. State that lasts from step to step is then a buffer, written in place.

        Args:
            student: output of the student in train mode.
            teacher: what `requires` declares of the teacher, or None if it declares nothing.
            batch: images, labels (as integers, and as targets of the cross-entropy), sample indices and views.
            peers: outputs of the other learners of the run.
            progress: current epoch and number of epochs.
        """

    def predict(self, output: Output) -> Tensor:
        """Return the logits [N, C] for inference: by default the student's own."""
        return output.logits


def at_least_float32(values: Tensor) -> Tensor:
    """Return values in float32 or wider, so that losses accumulate there where autocast made an output narrow."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
