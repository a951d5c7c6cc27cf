"""Attention transfer: the student attends to the same positions of the image as the teacher."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.config.schema import number
from kdbench.data.batches import Batch
from kdbench.methods.base import (
    LossOutput,
    LossWeights,
    Method,
    MethodContext,
    Progress,
    TeacherOutput,
    ce_plus_kd,
    full_precision,
)
from kdbench.methods.pairing import StagePairs, check_pairs, match_size, stage_names
from kdbench.methods.vectors import unit_vectors
from kdbench.models import Output


@full_precision
def attention_transfer(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], power: float = 2) -> Tensor:
    """Return the squared difference between attention maps, summed over stages.

        sum over stages of mean((Q_s - Q_t)^2),    Q = q / norm_2(q) of each image,    q = mean_c abs(F)^power

    Where height and width differ, the larger map is reduced with adaptive average pooling before q is taken.

    Args:
        student_maps: one [B, C, H, W] per stage.
        teacher_maps: one [B, C', H', W'] per stage; C' may differ from C. No gradient flows into them.
        power: exponent of the absolute values, at least 1.

    Returns:
        Scalar in [0, 2 * number of stages]; 0 means the same attention. Per stage the mean runs over images and
        positions.

    Raises:
        ValueError: no stages, or different numbers of them.

    Source: Zagoruyko and Komodakis 2017 (arXiv 1612.03928), in the form of the authors' code: mean of squares, where
    equation 2 has an L2 norm.
    """
    check_pairs(student_maps, teacher_maps)
    losses = []
    for student, teacher in zip(student_maps, teacher_maps, strict=True):
        student, teacher = match_size(student, teacher.detach())
        losses.append(F.mse_loss(attention(student, power), attention(teacher, power)))
    return torch.stack(losses).sum()


def attention(maps: Tensor, power: float) -> Tensor:
    """Return the normalised attention [B, H * W] of maps [B, C, H, W].

    It does not depend on the scale of an image's map, so powers are taken relative to the largest value: they neither
    overflow nor underflow, and no gradient has to flow through that value.
    """
    magnitudes = maps.abs()
    largest = magnitudes.detach().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)
    return unit_vectors((magnitudes / largest).pow(power).mean(1).flatten(1))


class AttentionTransfer(Method):
    """Total = ce_weight * CE + kd_weight * `attention_transfer`."""

    @dataclass
    class Config(LossWeights):
        """Keys of the method's YAML file."""

        power: float = number(1, 1000)
        pairs: dict[str, str] | None = stage_names()

    role = "distilled"
    soft_labels = True
    needs_teacher = True
    invariants = ("zero_for_identical", "batch_order", "student_scale", "teacher_scale")

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        self.pairs = StagePairs(config.pairs, context, "common")
        self.requires = self.pairs.requires()

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce` and `kd`; both losses before their weights."""
        own, targets = self.pairs(student, teachers[0])
        return ce_plus_kd(self.config, student, batch, attention_transfer(own, targets, self.config.power))
