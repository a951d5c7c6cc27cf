"""Logit distillation: the student matches the teacher's softened class probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from kdbench.config.schema import number
from kdbench.data.batches import Batch
from kdbench.methods.base import (
    Invariant,
    LossOutput,
    LossWeights,
    Method,
    Progress,
    Requires,
    TeacherOutput,
    Weights,
    ce_plus_kd,
    full_precision,
)
from kdbench.models import Output


@full_precision
def logit_kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float, standardize: bool = False) -> Tensor:
    """Return the KL divergence from student to teacher at a temperature, times the temperature squared.

        T^2 * mean_B sum_C p_t (log p_t - log p_s),    p = softmax(z / T)

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C]; no gradient flows into them.
        temperature: T, above 0.
        standardize: whether each row of both is z-scored first: (z - mean) / (1e-7 + unbiased std).

    Returns:
        Scalar in nats, at least 0; 0 means that both distributions are the same.

    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2; `standardize`: Sun et al. 2024 (arXiv 2403.01427).
    """
    student, teacher = student_logits, teacher_logits.detach()
    if standardize:
        student, teacher = z_score(student), z_score(teacher)
    log_p_student = F.log_softmax(student / temperature, dim=1)
    log_p_teacher = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_p_student, log_p_teacher, reduction="batchmean", log_target=True)


def z_score(logits: Tensor) -> Tensor:
    """Return rows of zero mean and unit standard deviation."""
    return (logits - logits.mean(dim=1, keepdim=True)) / (1e-7 + logits.std(dim=1, keepdim=True))


class LogitDistillation(Method):
    """Total = ce_weight * CE + kd_weight * `logit_kd`."""

    @dataclass
    class Config(Weights):
        """Keys of the method's YAML file."""

        temperature: float = number(0, 1000, above=True)  # beyond, float32 rounds all classes to the same logit

    uses_stages = False
    role = "distilled"
    soft_labels = True
    needs_teacher = True
    invariants: ClassVar[tuple[Invariant, ...]] = ("zero_for_identical", "batch_order", "logit_shift")
    requires = Requires(teacher_logits=True)
    standardize: ClassVar[bool] = False
    """True if logits are z-scored first."""

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce` and `kd`; both losses before their weights."""
        kd = logit_kd(student.logits, teachers[0].get_logits(), self.config.temperature, self.standardize)
        return ce_plus_kd(self.config, student, batch, kd)


class StandardizedLogitDistillation(LogitDistillation):
    """Total = ce_weight * CE + kd_weight * `logit_kd` of z-scored logits."""

    @dataclass
    class Config(LossWeights):
        """Keys of the method's YAML file."""

        temperature: float = number(0, 1000, above=True)

    invariants = ("zero_for_identical", "batch_order", "logit_shift", "student_scale", "teacher_scale")
    standardize = True
