"""Relational distillation (RKD): the student matches distances and angles between the teacher's embeddings."""

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
    check_some_weight,
    full_precision,
)
from kdbench.methods.pairing import StagePairs, stage_names
from kdbench.methods.vectors import unit_vectors
from kdbench.models import Output


@full_precision
def relational_kd(
    student_embeddings: Tensor, teacher_embeddings: Tensor, distance_weight: float, angle_weight: float
) -> Tensor:
    """Return the difference between the relations of a batch's images in two embedding spaces.

        distance_weight * mean_ij Huber(d_s[i, j] / m_s - d_t[i, j] / m_t)
            + angle_weight * mean_ijk Huber(cos_s[i, j, k] - cos_t[i, j, k])

    d[i, j] is the Euclidean distance of images i and j, m the mean of the distances above 0, and cos[i, j, k] the
    cosine of the angle at image i between j and k, 0 where an image coincides with i. Huber(x) is x^2 / 2 for |x| < 1,
    else |x| - 1/2. Means are over all ordered pairs and triplets, those with equal indices included. The angles take
    memory for B^3 numbers, the differences for B^2 * D.

    Args:
        student_embeddings: [B, D].
        teacher_embeddings: [B, D']; no gradient flows into them.
        distance_weight: weight of the distances, at least 0; a part with weight 0 is not computed.
        angle_weight: weight of the angles, at least 0.

    Returns:
        Scalar, at least 0; 0 means that the embeddings have the same shape up to scale.

    Source: Park et al. 2019 (arXiv 1904.05068), equations 3 to 8; all pairs and triplets, and the weights of distances
    and angles, as in the authors' code.
    """
    student = pair_differences(student_embeddings)
    teacher = pair_differences(teacher_embeddings.detach())
    loss = student.new_zeros(())
    if distance_weight:
        loss = loss + distance_weight * F.smooth_l1_loss(relative_distances(student), relative_distances(teacher))
    if angle_weight:
        loss = loss + angle_weight * F.smooth_l1_loss(angle_cosines(student), angle_cosines(teacher))
    return loss


def pair_differences(embeddings: Tensor) -> Tensor:
    """Return the differences [B, B, D] of all pairs; a matrix product would lose small distances by cancellation."""
    return embeddings[None, :] - embeddings[:, None]


def relative_distances(differences: Tensor) -> Tensor:
    """Return the lengths [B, B] of differences [B, B, D], divided by the mean of those above 0."""
    squared = differences.square().sum(-1)
    positive = squared > 0  # the square root has no gradient at 0
    distances = torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)
    mean = distances.sum() / positive.sum().clamp(min=1)
    return distances / torch.where(mean > 0, mean, 1.0)


def angle_cosines(differences: Tensor) -> Tensor:
    """Return the cosines [B, B, B] between all differences [B, B, D] from the same image."""
    directions = unit_vectors(differences)
    return directions @ directions.transpose(1, 2)


class RelationalDistillation(Method):
    """Total = ce_weight * CE + kd_weight * `relational_kd`, summed over the pairs of stages."""

    @dataclass
    class Config(LossWeights):
        """Keys of the method's YAML file."""

        distance_weight: float = number(0)
        angle_weight: float = number(0)
        pairs: dict[str, str] | None = stage_names()

        def __post_init__(self) -> None:
            super().__post_init__()
            check_some_weight(self, "distance_weight", "angle_weight")

    role = "distilled"
    soft_labels = True
    needs_teacher = True
    invariants = ("zero_for_identical", "batch_order", "student_scale", "teacher_scale")

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        self.pairs = StagePairs(config.pairs, context, "pooled", kind="embeddings")
        self.requires = self.pairs.requires(whole_batch=True)

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce` and `kd`; both losses before their weights."""
        config = self.config
        own, targets = self.pairs(student, teachers[0])
        kd = [
            relational_kd(a, b, config.distance_weight, config.angle_weight) for a, b in zip(own, targets, strict=True)
        ]
        return ce_plus_kd(config, student, batch, torch.stack(kd).sum())
