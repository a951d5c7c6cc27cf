"""Neuron selectivity transfer: channels of student and teacher have the same distribution of spatial patterns."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

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
from kdbench.models import Output


@full_precision
def neuron_selectivity(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Return the squared maximum mean discrepancy between the channels of maps, summed over stages.

        sum over stages of mean_B (mean_ij k(s_i, s_j) + mean_ij k(t_i, t_j) - 2 mean_ij k(s_i, t_j)),
        k(a, b) = (a . b)^2

    s_i and t_j are channels as vectors of H * W numbers, each divided by its L2 norm; the means run over all pairs,
    equal indices included. Where height and width differ, the larger map is reduced with adaptive average pooling.

    Args:
        student_maps: one [B, C, H, W] per stage.
        teacher_maps: one [B, C', H', W'] per stage; C' may differ from C. No gradient flows into them.

    Returns:
        Scalar in [0, 2 * number of stages] up to rounding; 0 for identical maps.

    Raises:
        ValueError: no stages, or different numbers of them.

    Source: Huang and Wang 2017 (arXiv 1707.01219), with the polynomial kernel of degree 2 and c = 0.
    """
    check_pairs(student_maps, teacher_maps)
    losses = []
    for student, teacher in zip(student_maps, teacher_maps, strict=True):
        student, teacher = match_size(student, teacher.detach())
        losses.append(squared_discrepancy(unit_channels(student), unit_channels(teacher)))
    return torch.stack(losses).sum()


def unit_channels(maps: Tensor) -> Tensor:
    """Return maps [B, C, H, W] as channels [B, C, H * W] of L2 norm 1; a channel of zeros stays zero."""
    return F.normalize(maps.flatten(2), dim=2)


def squared_discrepancy(a: Tensor, b: Tensor) -> Tensor:
    """Return MMD^2 of channels [B, C, P] and [B, C', P] with the kernel (a . b)^2, mean over the images.

    The kernel's means are inner products of A'A / C and B'B / C' [P, P], so MMD^2 is the squared norm of their
    difference. With more positions than channels, the Gram matrices of the channels give the same with less memory.
    """
    if a.shape[2] <= max(a.shape[1], b.shape[1]):
        difference = a.mT @ a / a.shape[1] - b.mT @ b / b.shape[1]
        return difference.square().sum((1, 2)).mean()
    own, others, mixed = ((x @ y.mT).square().mean() for x, y in ((a, a), (b, b), (a, b)))
    return own + others - 2 * mixed


class NeuronSelectivityTransfer(Method):
    """Total = ce_weight * CE + kd_weight * `neuron_selectivity`."""

    @dataclass
    class Config(LossWeights):
        """Keys of the method's YAML file."""

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
        return ce_plus_kd(self.config, student, batch, neuron_selectivity(own, targets))
