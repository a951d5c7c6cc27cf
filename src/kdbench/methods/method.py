"""What a method is: the contract between a loss, the models and the loop."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from kdbench.data.batches import Batch
from kdbench.errors import ConfigError
from kdbench.models import Output
from kdbench.schema import number, optional

Shapes = Mapping[str, tuple[int, ...]]
"""Shape of one image's output per stage: (C, H, W) for maps, (D,) for embeddings."""


class Knowledge(NamedTuple):
    """What a teacher says of one batch: only what the methods asked for, always without gradient."""

    logits: Tensor | None
    features: Mapping[str, Tensor]

    def only(self, needs: "Needs") -> "Knowledge":
        """What one method asked for; the teacher may have been asked for others too."""
        features = {stage: self.features[stage] for stage in needs.teacher_stages}
        return Knowledge(self.logits if needs.teacher_logits else None, features)


class Progress:
    """Where a training stands; weights that ramp up or down depend on it.

    Args:
        epoch: Counted from 0.
        epochs: In total.
    """

    def __init__(self, epoch: int, epochs: int) -> None:
        self._epoch = epoch
        self.epochs = epochs
        self.was_asked = False
        """Whether what is computed depends on the epoch, so that a step recorded in one is not replayed in another."""

    @property
    def epoch(self) -> int:
        self.was_asked = True
        return self._epoch


START = Progress(0, 1)


@dataclass(frozen=True)
class Needs:
    """What a method must be given, so that nothing more is computed."""

    teacher_logits: bool = False
    teacher_stages: tuple[str, ...] = ()
    student_stages: tuple[str, ...] = ()

    @classmethod
    def of_teacher(cls, several: Iterable["Needs"]) -> "Needs":
        """What a teacher must answer so that each of several methods is given what it needs."""
        asked = list(several)
        stages = dict.fromkeys(stage for needs in asked for stage in needs.teacher_stages)
        return cls(any(needs.teacher_logits for needs in asked), tuple(stages))


@dataclass
class Weights:
    """The keys of methods whose loss is ce_weight * CE + kd_weight * KD, configured by `alpha`.

    alpha is the weight of KD and 1 - alpha that of CE (other code bases mean it the other way round). For weights
    that do not add up to 1, alpha=null and both given.
    """

    alpha: float | None = optional(number(0, 1))
    ce_weight: float | None = optional(number(0))
    kd_weight: float | None = optional(number(0))

    def __post_init__(self) -> None:
        explicit = (self.ce_weight, self.kd_weight)
        if self.alpha is not None and explicit != (None, None):
            raise ConfigError(
                f"method.alpha is {self.alpha:g} and explicit weights are given too "
                f"(ce_weight={self.ce_weight}, kd_weight={self.kd_weight}); for these weights set method.alpha=null"
            )
        if self.alpha is None and None in explicit:
            raise ConfigError(
                "method.alpha=null needs both method.ce_weight and method.kd_weight; "
                f"given: ce_weight={self.ce_weight}, kd_weight={self.kd_weight}"
            )

    def resolved(self) -> tuple[float, float]:
        """(ce_weight, kd_weight)."""
        if self.alpha is not None:
            return 1 - self.alpha, self.alpha
        assert self.ce_weight is not None
        assert self.kd_weight is not None
        return self.ce_weight, self.kd_weight


class Method(nn.Module, ABC):
    """How a student learns. Subclasses own every parameter and buffer that their loss needs.

    `Config` is a dataclass with one field per key of the method's YAML file, no defaults in it. `needs_teacher` says,
    before anything is built, whether a run with this method must have a teacher; `needs` says what of it.
    """

    @dataclass
    class Config:
        pass

    needs_teacher: ClassVar[bool]
    uses_stages: ClassVar[bool] = True
    """Whether the nodes that stages name can change its numbers; if not, they are no part of a run's key."""
    needs: Needs

    def __init__(self, config: Any, student_shapes: Shapes, teacher_shapes: Shapes | None) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(
        self,
        student: Output,
        teacher: Knowledge | None,
        batch: Batch,
        peers: Sequence[Output] = (),
        progress: Progress = START,
    ) -> dict[str, Tensor]:
        """Named scalar terms of the batch's loss, means over its images; `total` is the one that is minimised.

        On a GPU the work of one call is recorded and replayed, so what lasts from step to step is a buffer, written in
        place; a call that keeps something on the host, or waits for the device, is noticed and not recorded.

        Args:
            student: The student's output in train mode.
            teacher: What `needs` asked for, or None if it asks for nothing.
            batch: Images, labels, sample indices and views.
            peers: Outputs of the other learners of the run.
            progress: Which epoch of how many.
        """

    def predict(self, output: Output) -> Tensor:
        """Logits [N, C] for inference: the student's own."""
        return output.logits


def at_least_float32(values: Tensor) -> Tensor:
    """Losses accumulate in float32 or better, also where autocast made a model's output narrow."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
