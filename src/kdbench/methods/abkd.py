"""Alpha-beta divergence between the student's and the teacher's softened probabilities."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.config.schema import number, one_of, setting
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
from kdbench.system.device import widest_float

NEAR_LIMIT = 1e-7
"""Size of alpha, beta or alpha + beta below which it counts as 0: the limit is off by about as much, and the general
form, in float64, loses about 1e-16 / 1e-7 to cancellation."""
NEAR_ORIGIN = 1e-5
"""The same where alpha and beta are both small: there the general form loses 1e-16 / (alpha beta)."""


@full_precision
def alpha_beta_kd(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, alpha: float, beta: float
) -> Tensor:
    """Return the alpha-beta divergence from student to teacher at a temperature.

        mean_B -1 / (a b) * sum_C (p^a q^b - a / (a + b) p^(a + b) - b / (a + b) q^(a + b))
        p teacher, q student, softmax(z / T); a alpha, b beta

    and, by continuity,

        b = 0:    mean_B sum_C (p^a log(p^a / q^a) - p^a + q^a) / a^2
        a = 0:    mean_B sum_C (q^b log(q^b / p^b) - q^b + p^b) / b^2
        a = -b:   mean_B sum_C (log(q^a / p^a) + (p / q)^a - 1) / a^2
        both 0:   mean_B sum_C (log p - log q)^2 / 2

    (1, 0) is KL(p, q), (0, 1) is KL(q, p), (0.5, 0.5) is 2 sum (sqrt p - sqrt q)^2, (1, 1) is half the squared
    distance. It is not multiplied by T^2. The sum is a small difference of large terms, so it is computed in float64.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C]; no gradient flows into them.
        temperature: T, above 0.
        alpha: exponent of the teacher's probabilities, any sign; not the weight of KD.
        beta: exponent of the student's probabilities, any sign.

    Returns:
        Scalar, at least 0; 0 means that both distributions are the same.

    Source: arXiv 2505.04560.
    """
    return mean_divergence(student_logits, teacher_logits.detach(), temperature, alpha, beta, once=False)


@full_precision
def alpha_beta_kd_of_authors(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, alpha: float, beta: float
) -> Tensor:
    """Return `alpha_beta_kd` as the authors' code computes it, which differs from their paper at three limits.

    It divides once where the square belongs: by a for b = 0 and for a = -b, and by b for a = 0. It is then not
    continuous there, and negative where the divisor is. Arguments: see `alpha_beta_kd`.
    """
    return mean_divergence(student_logits, teacher_logits.detach(), temperature, alpha, beta, once=True)


def mean_divergence(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, alpha: float, beta: float, once: bool
) -> Tensor:
    """Return the mean over the images of `alpha_beta_divergence` of logits [B, C]."""
    wide = widest_float(str(student_logits.device))
    log_p = F.log_softmax(teacher_logits.to(wide) / temperature, dim=1)
    log_q = F.log_softmax(student_logits.to(wide) / temperature, dim=1)
    divergence = alpha_beta_divergence(log_p, log_q, alpha, beta, once)
    return divergence.mean().to(student_logits.dtype)


def alpha_beta_divergence(log_p: Tensor, log_q: Tensor, alpha: float, beta: float, once: bool) -> Tensor:
    """Return the divergence [B] of log-probabilities [B, C]; see `alpha_beta_kd`.

    `once`: limits are divided by an exponent and not by its square.
    """
    total, difference = alpha + beta, log_p - log_q
    if max(abs(alpha), abs(beta)) < NEAR_ORIGIN:
        return difference.square().sum(dim=1) / 2
    if abs(beta) < NEAR_LIMIT:
        p, q, divisor = torch.exp(alpha * log_p), torch.exp(alpha * log_q), alpha
        terms = p * alpha * difference - p + q
    elif abs(alpha) < NEAR_LIMIT:
        p, q, divisor = torch.exp(beta * log_p), torch.exp(beta * log_q), beta
        terms = -q * beta * difference - q + p
    elif abs(total) < NEAR_LIMIT:
        divisor = alpha
        terms = torch.expm1(alpha * difference) - alpha * difference
    else:
        joint, p, q = (torch.exp(power) for power in (alpha * log_p + beta * log_q, total * log_p, total * log_q))
        return (alpha / total * p + beta / total * q - joint).sum(dim=1) / (alpha * beta)
    return terms.sum(dim=1) / (divisor if once else divisor**2)


class AlphaBetaDistillation(Method):
    """Total = ce_weight * CE + kd_weight * `alpha_beta_kd`."""

    @dataclass
    class Config(LossWeights):
        """Keys of the method's YAML file."""

        alpha: float = setting(math.isfinite, "a finite number")
        beta: float = setting(math.isfinite, "a finite number")
        temperature: float = number(0, 1000, above=True)
        variant: str = one_of("paper", "authors")

    uses_stages = False
    role = "distilled"
    soft_labels = True
    needs_teacher = True
    invariants = ("zero_for_identical", "batch_order", "logit_shift")
    requires = Requires(teacher_logits=True)

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce` and `kd`; both losses before their weights."""
        config = self.config
        loss = alpha_beta_kd if config.variant == "paper" else alpha_beta_kd_of_authors
        kd = loss(student.logits, teachers[0].get_logits(), config.temperature, config.alpha, config.beta)
        return ce_plus_kd(config, student, batch, kd)
