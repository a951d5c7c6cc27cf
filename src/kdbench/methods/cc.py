"""Correlation congruence (CC): consecutive images do not differ from the teacher in the same dimensions."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdbench.config.schema import whole
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
from kdbench.models import Output


@full_precision
def correlation_congruence(student_embeddings: Tensor, teacher_embeddings: Tensor) -> Tensor:
    """Return the products of the absolute differences of consecutive images.

        mean over i in 1..B-1 of sum_d delta[i, d] * delta[i + 1, d],    delta = |f_s - f_t|

    The value depends on the order of the images: the last one is not paired with the first. It is not the paper's
    difference of Gaussian kernel matrices but the form that the authors contributed to RepDistiller.

    Args:
        student_embeddings: [B, D].
        teacher_embeddings: [B, D]. Gradients flow into them as well, because the method trains the linear layer that
            computes them.

    Returns:
        Scalar, at least 0; 0 for identical embeddings, and for a batch of one image.

    Source: Peng et al. 2019 (arXiv 1904.01802), in the form described above.
    """
    differences = (student_embeddings - teacher_embeddings).abs()
    return (differences[:-1] * differences[1:]).sum() / max(1, len(differences) - 1)


class CorrelationCongruence(Method):
    """Total = ce_weight * CE + kd_weight * `correlation_congruence` of linear embeddings, summed over pairs of stages.

    Both linear layers are trained, and no gradient reaches the teacher's own features.
    """

    @dataclass
    class Config(LossWeights):
        """Keys of the method's YAML file."""

        width: int = whole(1)
        pairs: dict[str, str] | None = stage_names()

    role = "distilled"
    soft_labels = True
    needs_teacher = True
    invariants = ("zero_for_identical",)

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        self.pairs = StagePairs(config.pairs, context, "pooled", kind="embeddings")
        pairs = self.pairs.pairs
        self.student_embeddings = nn.ModuleList(nn.Linear(pair.student_shape[0], config.width) for pair in pairs)
        self.teacher_embeddings = nn.ModuleList(nn.Linear(pair.teacher_shape[0], config.width) for pair in pairs)
        self.requires = self.pairs.requires(whole_batch=True)

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce` and `kd`; both losses before their weights."""
        layers = zip(self.student_embeddings, self.teacher_embeddings, *self.pairs(student, teachers[0]), strict=True)
        kd = [
            correlation_congruence(embed_student(own), embed_teacher(target.detach()))
            for embed_student, embed_teacher, own, target in layers
        ]
        return ce_plus_kd(self.config, student, batch, torch.stack(kd).sum())
