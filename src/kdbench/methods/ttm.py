"""Transformed teacher matching: the teacher's probabilities are raised to a power, the student's stay as they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from kdbench.config.schema import number
from kdbench.data.batches import Batch
from kdbench.methods.base import (
    LossOutput,
    LossWeights,
    Method,
    Progress,
    Requires,
    TeacherOutput,
    ce_plus_kd,
    full_precision,
)
from kdbench.models import Output


@full_precision
def transformed_teacher_matching(
    student_logits: Tensor, teacher_logits: Tensor, exponent: float, weighted: bool = False
) -> Tensor:
    """Return the KL divergence from the student's probabilities to a power of the teacher's.

        mean_B w * KL(q, softmax(z_s)),    q = p_t^g / Z,    Z = sum_C p_t^g,    p_t = softmax(z_t)

    q is the teacher's softmax at the temperature 1 / g. The student has no temperature, and there is no factor T^2.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C]; no gradient flows into them.
        exponent: g, above 0; in (0, 1) it smooths.
        weighted: whether w is Z, which for g in (0, 1) is larger the smoother the teacher is for the image; else 1.

    Returns:
        Scalar in nats, at least 0; 0 means that the student's probabilities are q. Identical logits do not give 0,
        unless g is 1.

    Source: Zheng and Yang 2024 (arXiv 2402.11148).
    """
    log_powers = exponent * F.log_softmax(teacher_logits.detach(), dim=1)
    log_q = F.log_softmax(log_powers, dim=1)
    divergence = F.kl_div(F.log_softmax(student_logits, dim=1), log_q, reduction="none", log_target=True).sum(dim=1)
    return (log_powers.logsumexp(dim=1).exp() * divergence if weighted else divergence).mean()


class TransformedTeacherMatching(Method):
    """Total = ce_weight * CE + kd_weight * `transformed_teacher_matching`."""

    @dataclass
    class Config(LossWeights):
        """Keys of the method's YAML file."""

        exponent: float = number(0, 1000, above=True)

    uses_stages = False
    role = "distilled"
    soft_labels = True
    needs_teacher = True
    invariants = ("batch_order", "logit_shift")
    requires = Requires(teacher_logits=True)
    weighted: ClassVar[bool] = False

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce` and `kd`; both losses before their weights."""
        kd = transformed_teacher_matching(student.logits, teachers[0].get_logits(), self.config.exponent, self.weighted)
        return ce_plus_kd(self.config, student, batch, kd)


class WeightedTransformedTeacherMatching(TransformedTeacherMatching):
    """Total = ce_weight * CE + kd_weight * `transformed_teacher_matching` with each image weighted by its Z."""

    weighted = True
