"""Decoupled distillation: the probability of the label and those of the other classes are matched apart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.config.schema import number
from kdbench.data.batches import Batch
from kdbench.methods.base import (
    LossOutput,
    Method,
    Progress,
    RampedWeights,
    Requires,
    TeacherOutput,
    ce_plus_kd,
    check_some_weight,
    full_precision,
    ramp,
)
from kdbench.models import Output


@full_precision
def decoupled_kd(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, alpha: float, beta: float
) -> Tensor:
    """Return the KL divergence of the label against the rest, and of the other classes among themselves.

        T^2 * mean_B (alpha * TCKD + beta * NCKD)
        TCKD = KL(b_t, b_s),    b = (p[y], 1 - p[y]),    p = softmax(z / T)
        NCKD = KL of the softmaxes of z / T over the classes other than y

    The KL divergence of `logit_kd` is TCKD + (1 - p_t[y]) * NCKD: the factor that hides the other classes where the
    teacher is sure of the label is replaced by beta.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C]; no gradient flows into them.
        labels: [B] int64: the label y of each image.
        temperature: T, above 0.
        alpha: weight of TCKD, at least 0; not the weight of KD.
        beta: weight of NCKD, at least 0.

    Returns:
        Scalar in nats, at least 0; 0 means that all distributions with a weight are the same.

    Source: Zhao et al. 2022 (arXiv 2203.08679); T^2 as in the authors' code.
    """
    student, teacher = student_logits / temperature, teacher_logits.detach() / temperature
    target, others = decoupled_terms(student, teacher, labels)
    return temperature**2 * (alpha * target + beta * others).mean()


def decoupled_terms(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return TCKD and NCKD [B] of logits [B, C] that are divided by the temperature; see `decoupled_kd`."""
    target = kl_of_rows(label_and_rest(student, labels), label_and_rest(teacher, labels))
    return target, kl_within(student, teacher, keep=all_but(labels, student))


def label_and_rest(logits: Tensor, classes: Tensor) -> Tensor:
    """Return the log-probabilities [B, 2] of one class per image, and of all others together."""
    log_p = F.log_softmax(logits, dim=1)
    of_class = log_p.gather(1, classes[:, None])
    of_others = log_p.masked_fill(~all_but(classes, logits), -math.inf).logsumexp(dim=1, keepdim=True)
    return torch.cat([of_class, of_others], dim=1)


def all_but(classes: Tensor, logits: Tensor) -> Tensor:
    """Return a mask [B, C] of all classes of the logits but one per image."""
    return torch.arange(logits.shape[1], device=logits.device) != classes[:, None]


def kl_of_rows(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    """Return the KL divergence [...] from student to teacher for log-probabilities [..., C]."""
    return F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=-1)


def kl_within(student: Tensor, teacher: Tensor, keep: Tensor) -> Tensor:
    """Return the KL divergence [B] from student to teacher, softmaxes over some classes of each image.

    Args:
        student: logits [B, C], divided by the temperature.
        teacher: the same of the teacher.
        keep: mask [B, C] of the classes. Rows with fewer than two give 0 and no gradient.
    """
    empty = ~keep.any(dim=1, keepdim=True)
    out = ~(keep | empty)  # a softmax over no class is NaN: rows without any keep all, and are set to 0 below
    log_student, log_teacher = (
        F.log_softmax(logits.masked_fill(out, -math.inf), dim=1).masked_fill(out, 0) for logits in (student, teacher)
    )
    return kl_of_rows(log_student, log_teacher).masked_fill(empty[:, 0], 0)


class DecoupledDistillation(Method):
    """Total = ce_weight * CE + kd_weight * ramp * `decoupled_kd`."""

    @dataclass
    class Config(RampedWeights):
        """Keys of the method's YAML file."""

        alpha: float = number(0)
        beta: float = number(0)
        temperature: float = number(0, 1000, above=True)

        def __post_init__(self) -> None:
            super().__post_init__()
            check_some_weight(self, "alpha", "beta")

    uses_stages = False
    role = "distilled"
    needs_teacher = True
    invariants = ("zero_for_identical", "batch_order", "logit_shift")
    requires = Requires(teacher_logits=True)

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce` and `kd`; both losses before their weights and the ramp."""
        config = self.config
        kd = decoupled_kd(
            student.logits, teachers[0].get_logits(), batch.labels, config.temperature, config.alpha, config.beta
        )
        return ce_plus_kd(config, student, batch, kd, ramp(progress, config.ramp_epochs))
