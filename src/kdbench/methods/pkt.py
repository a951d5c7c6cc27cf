"""Probabilistic knowledge transfer (PKT): each image selects its neighbours with the teacher's probabilities."""

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
from kdbench.methods.pairing import StagePairs, stage_names
from kdbench.methods.vectors import unit_vectors
from kdbench.models import Output


@full_precision
def probabilistic_transfer(student_embeddings: Tensor, teacher_embeddings: Tensor) -> Tensor:
    """Return the divergence between the neighbour probabilities of a batch's images.

        mean over all B^2 entries of P_t log((P_t + e) / (P_s + e)),    P = (cosine + 1) / 2 with rows that sum to 1,
        e = 1e-7

    Args:
        student_embeddings: [B, D].
        teacher_embeddings: [B, D']; no gradient flows into them.

    Returns:
        Scalar in nats, at least 0 up to e; 0 means the same probabilities. A batch mean would be B times larger.

    Source: Passalis and Tefas 2018 (arXiv 1803.10837), with the cosine kernel; the mean over all entries and e are
    those of the authors' code.
    """
    own = neighbour_probabilities(student_embeddings)
    target = neighbour_probabilities(teacher_embeddings.detach())
    return (target * ((target + 1e-7).log() - (own + 1e-7).log())).mean()


def neighbour_probabilities(embeddings: Tensor) -> Tensor:
    """Return [B, B]: the cosine similarities of embeddings [B, D], mapped to [0, 1], with rows that sum to 1."""
    units = unit_vectors(embeddings)
    similarities = ((units @ units.T + 1) / 2).clamp(min=0)  # a cosine can be rounded to a value below -1
    return similarities / similarities.sum(1, keepdim=True)


class ProbabilisticTransfer(Method):
    """Total = ce_weight * CE + kd_weight * `probabilistic_transfer`, summed over the pairs of stages."""

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
        self.pairs = StagePairs(config.pairs, context, "pooled", kind="embeddings")
        self.requires = self.pairs.requires(whole_batch=True)

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce` and `kd`; both losses before their weights."""
        own, targets = self.pairs(student, teachers[0])
        kd = [probabilistic_transfer(a, b) for a, b in zip(own, targets, strict=True)]
        return ce_plus_kd(self.config, student, batch, torch.stack(kd).sum())
