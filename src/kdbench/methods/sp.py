"""Similarity-preserving distillation (SP): images that are similar for the teacher are similar for the student."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
from kdbench.methods.pairing import StagePairs, check_pairs, stage_names
from kdbench.methods.vectors import unit_vectors
from kdbench.models import Output


@full_precision
def similarity_preserving(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Return the squared distance between the similarity matrices of a batch, summed over stages.

        sum over stages of norm_F(G_s - G_t)^2 / B^2,    G = F F^T with rows of unit length, F the flattened maps

    Maps may differ in all dimensions but the first: G is [B, B] for both.

    Args:
        student_maps: one [B, C, H, W], or any [B, ...], per stage.
        teacher_maps: one [B, C', H', W'], or any [B, ...], per stage; no gradient flows into them.

    Returns:
        Scalar, at least 0; 0 means the same similarities.

    Raises:
        ValueError: no stages, or different numbers of them.

    Source: Tung and Mori 2019 (arXiv 1907.09682), equations 2 to 4.
    """
    check_pairs(student_maps, teacher_maps)
    distances = [
        (image_similarities(student) - image_similarities(teacher.detach())).square().mean()
        for student, teacher in zip(student_maps, teacher_maps, strict=True)
    ]
    return torch.stack(distances).sum()


def image_similarities(maps: Tensor) -> Tensor:
    """Return the inner products [B, B] of maps [B, ...], with rows of unit length."""
    flat = maps.flatten(1)
    return unit_vectors(flat @ flat.T)


class SimilarityPreserving(Method):
    """Total = ce_weight * CE + kd_weight * `similarity_preserving`."""

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
        self.pairs = StagePairs(config.pairs, context, "last")
        self.requires = self.pairs.requires(whole_batch=True)

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce` and `kd`; both losses before their weights."""
        kd = similarity_preserving(*self.pairs(student, teachers[0], same_size=False))
        return ce_plus_kd(self.config, student, batch, kd)
