"""Knowledge review: fused maps of several of the student's stages match the teacher's, at several resolutions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.data.batches import Batch
from kdbench.methods.base import (
    LossOutput,
    Method,
    MethodContext,
    Progress,
    RampedWeights,
    TeacherOutput,
    ce_plus_kd,
    full_precision,
    ramp,
)
from kdbench.methods.pairing import StagePairs, check_pairs, match_size, pool_to, stage_names
from kdbench.models import Output

MAX_WIDTH = 512
"""Largest number of channels of fused maps."""


@full_precision
def hierarchical_context(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Return the squared error between maps at their own and at coarser resolutions, summed over stages.

        sum over stages of (MSE + sum_l w_l MSE_l) / (1 + sum_l w_l)

    MSE_l compares maps pooled to l x l; l runs over those of 4, 2 and 1 that are below height and width, and w_l over
    1/2, 1/4, ... in this order. Where height and width differ, the larger map is first reduced with adaptive average
    pooling.

    Args:
        student_maps: one [B, C, H, W] per stage, with the teacher's C.
        teacher_maps: one [B, C, H', W'] per stage; no gradient flows into them.

    Returns:
        Scalar, at least 0; 0 means identical maps.

    Raises:
        ValueError: no stages, or different numbers of them.

    Source: Chen et al. 2021 (arXiv 2104.09044), section 3.3; weights of the authors' code.
    """
    check_pairs(student_maps, teacher_maps)
    losses = []
    for student, teacher in zip(student_maps, teacher_maps, strict=True):
        student, teacher = match_size(student, teacher.detach())
        loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
        for side in (4, 2, 1):
            if side < min(student.shape[2:]):
                weight /= 2
                total += weight
                loss = loss + weight * F.mse_loss(pool_to(student, (side, side)), pool_to(teacher, (side, side)))
        losses.append(loss / total)
    return torch.stack(losses).sum()


class KnowledgeReview(Method):
    """Total = ce_weight * CE + kd_weight * ramp * `hierarchical_context`.

    The student's maps are fused from the deepest stage to the first, see `AttentionFusion`; ramp = min(epoch /
    ramp_epochs, 1), epochs from 1.
    """

    @dataclass
    class Config(RampedWeights):
        """Keys of the method's YAML file."""

        pairs: dict[str, str] | None = stage_names()

    role = "distilled"
    soft_labels = True
    needs_teacher = True
    invariants = ("zero_for_identical", "batch_order")

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        self.pairs = StagePairs(config.pairs, context, "common")
        deepest = self.pairs.pairs[-1]
        width = min(MAX_WIDTH, deepest.student_shape[0])
        self.fusions = nn.ModuleList(
            AttentionFusion(pair.student_shape[0], width, pair.teacher_shape[0], fuses=pair is not deepest)
            for pair in self.pairs.pairs
        )
        self.requires = self.pairs.requires()

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce` and `kd`; both losses before weights and ramp."""
        maps, targets = self.pairs(student, teachers[0], same_size=False)
        kd = hierarchical_context(self.fuse(maps, targets), targets)
        return ce_plus_kd(self.config, student, batch, kd, ramp(progress, self.config.ramp_epochs))

    def fuse(self, maps: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Tensor]:
        """Return the student's maps with width and size of the teacher's, in the order of the pairs."""
        outputs, fused = [], None
        for fusion, values, target in reversed(list(zip(self.fusions, maps, targets, strict=True))):
            output, fused = fusion(values, fused, target.shape[2:])
            outputs.append(output)
        return outputs[::-1]


class AttentionFusion(nn.Module):
    """Fusion of a stage's map with the fused map of the deeper stages.

    Both, at this stage's size and a common width, are added with weights per position: two sigmoid channels of a 1x1
    convolution of their concatenation. A 3x3 convolution brings the sum to the teacher's width.

    Args:
        in_channels: width of the stage.
        width: width of fused maps.
        out_channels: width of the teacher's stage.
        fuses: False for the deepest stage, which has nothing to be fused with.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int, fuses: bool) -> None:
        super().__init__()
        self.reduction = nn.Sequential(nn.Conv2d(in_channels, width, 1, bias=False), nn.BatchNorm2d(width))
        self.attention = nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid()) if fuses else None
        self.output = nn.Sequential(
            nn.Conv2d(width, out_channels, 3, padding=1, bias=False), nn.BatchNorm2d(out_channels)
        )

    def forward(self, maps: Tensor, deeper: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return the map to compare with the teacher's, and the fused map for the next shallower stage.

        Args:
            maps: [B, in_channels, H, W].
            deeper: fused map [B, width, h, w] of the next deeper stage; None for the deepest.
            size: height and width of the teacher's map.
        """
        fused = self.reduction(maps)
        if self.attention is not None:
            assert deeper is not None
            deeper = F.interpolate(deeper, fused.shape[2:], mode="nearest")
            own, other = self.attention(torch.cat([fused, deeper], dim=1)).split(1, dim=1)
            fused = own * fused + other * deeper
        fused = resize(fused, size)
        return self.output(fused), fused


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps at a size: averaged where it is smaller, repeated (nearest neighbour) where it is larger."""
    smaller = (min(maps.shape[2], size[0]), min(maps.shape[3], size[1]))
    maps = pool_to(maps, smaller)
    return maps if maps.shape[2:] == size else F.interpolate(maps, size, mode="nearest")
