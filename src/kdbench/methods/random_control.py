"""Random targets: a control that learns, as in logit distillation, from a teacher without knowledge."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kdbench.config.schema import number, one_of
from kdbench.data.batches import Batch
from kdbench.methods.base import (
    LossOutput,
    Method,
    MethodContext,
    Progress,
    Requires,
    TeacherOutput,
    Weights,
    ce_plus_kd,
)
from kdbench.methods.logit import logit_kd
from kdbench.methods.rows import rows_of_indices
from kdbench.models import Output


class RandomControl(Method):
    """Total = ce_weight * CE + kd_weight * `logit_kd` towards random logits, independent of images and labels.

    The logits are `scale` times standard normal numbers. `per_sample`: each training image has fixed logits, drawn
    when the run starts; they take memory for N * C numbers. `resampled`: each step draws new ones.
    """

    random_logits: Tensor
    row_of: Tensor

    @dataclass
    class Config(Weights):
        """Keys of the method's YAML file."""

        kind: str = one_of("per_sample", "resampled")
        temperature: float = number(0, 1000, above=True)
        scale: float = number(0, 1000)

    uses_stages = False
    role = "control"
    soft_labels = True
    needs_teacher = False
    requires = Requires()
    deferred = ("random_logits", "row_of")

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        if config.kind == "per_sample":
            size = (len(context.indices), context.data.num_classes)
            self.register_buffer("random_logits", torch.randn(size, generator=context.generator))
            self.register_buffer("row_of", rows_of_indices(context.indices), persistent=False)

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce` and `kd`; both losses before their weights."""
        config = self.config
        if config.kind == "per_sample":
            normal = self.random_logits[self.row_of[batch.indices]]
        else:
            normal = torch.randn(student.logits.shape, device=student.logits.device)
        kd = logit_kd(student.logits, config.scale * normal, config.temperature)
        return ce_plus_kd(config, student, batch, kd)
