"""Simple recipe distillation: a linear projection and a log-sum distance between normalised embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdbench.config.schema import number, one_of
from kdbench.data.batches import Batch
from kdbench.methods.base import (
    NO_TEACHER,
    LossOutput,
    Method,
    MethodContext,
    Progress,
    TeacherOutput,
    check_some_weight,
    cross_entropy,
    full_precision,
)
from kdbench.methods.logit import logit_kd
from kdbench.methods.pairing import StagePairs, stage_names
from kdbench.models import Output


@full_precision
def projected_log_sum(student_embeddings: Tensor, teacher_embeddings: Tensor, exponent: float) -> Tensor:
    """Return the logarithm of a summed power of the differences between normalised embeddings.

        log sum over B and D of abs(BN(s) - BN(t))^exponent,    BN(x) = (x - mean_B) / sqrt(var_B + 1e-4)

    Statistics are those of the batch on both sides, always, with biased variance; BN has no trained part.

    Args:
        student_embeddings: [B, D], already projected: W f + b.
        teacher_embeddings: [B, D]; no gradient flows into them.
        exponent: at least 1.

    Returns:
        Scalar; lower means closer. It is below 0 for embeddings that are close. Where both sides are the same, or the
        batch has one image, the formula is log 0: the value is then finite, far below 0, and without gradient.

    Source: Miles and Mikolajczyk 2024 (arXiv 2303.11098), in the form of the authors' code for ImageNet.
    """
    difference = normalize(student_embeddings, 1e-4) - normalize(teacher_embeddings.detach(), 1e-4)
    tiny = torch.finfo(difference.dtype).tiny
    # Powers relative to the largest difference neither overflow nor underflow; its gradient would cancel.
    largest = difference.detach().abs().amax().clamp_min(tiny)
    return exponent * largest.log() + (difference / largest).abs().pow(exponent).sum().clamp_min(tiny).log()


@full_precision
def projected_log_correlation(student_embeddings: Tensor, teacher_embeddings: Tensor) -> Tensor:
    """Return the logarithm of the summed fourth powers of 1 - correlation of the embeddings' columns.

        log(sum_D (corr_d - 1)^4 + 1e-5),    corr_d = mean_B of n(s) n(t),    n(x) = (x - mean_B) / sqrt(var_B)

    Statistics are those of the batch on both sides, with biased variance.

    Args:
        student_embeddings: [B, D], already projected: W f + b.
        teacher_embeddings: [B, D]; no gradient flows into them.

    Returns:
        Scalar from log(1e-5) = -11.5, all columns correlated perfectly, to log(16 D). A column that is constant over
        the batch counts as not correlated, without gradient.

    Source: Miles and Mikolajczyk 2024 (arXiv 2303.11098), the authors' code for DeiT.
    """
    correlation = (normalize(student_embeddings, 0) * normalize(teacher_embeddings.detach(), 0)).mean(0)
    return ((correlation - 1).pow(4).sum() + 1e-5).log()


def normalize(embeddings: Tensor, eps: float) -> Tensor:
    """Return columns of zero mean and unit biased variance over the batch; constant columns give zeros."""
    centred = embeddings - embeddings.mean(0)
    variance = centred.square().mean(0) + eps
    return centred / variance.where(variance > 0, torch.ones_like(variance)).sqrt()


class SimpleRecipeDistillation(Method):
    """Total = ce_weight * CE + a loss of projected embeddings + kl_weight * `logit_kd` at temperature 1.

    The loss of embeddings, mean over the pairs of stages, is log_sum_weight * `projected_log_sum` (variant paper), or
    correlation_weight * `projected_log_correlation` (variant deit). A trained linear layer with bias per pair projects
    the student's embeddings.
    """

    @dataclass
    class Config:
        """Keys of the method's YAML file."""

        variant: str = one_of("paper", "deit")
        ce_weight: float = number(0)
        log_sum_weight: float = number(0)
        correlation_weight: float = number(0)
        kl_weight: float = number(0)
        exponent: float = number(1, 1000)
        pairs: dict[str, str] | None = stage_names()

        def __post_init__(self) -> None:
            used = "log_sum_weight" if self.variant == "paper" else "correlation_weight"
            check_some_weight(self, "ce_weight", used, "kl_weight")

        def unused(self) -> dict[str, str]:
            """Return the keys without effect, and why."""
            of_paper = self.variant == "paper"
            return dict.fromkeys(
                ("correlation_weight",) if of_paper else ("log_sum_weight", "exponent"),
                f"method.variant is {self.variant}",
            )

    role = "distilled"
    soft_labels = True
    needs_teacher = True
    invariants = ("batch_order",)

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        weight = config.log_sum_weight if config.variant == "paper" else config.correlation_weight
        if not (weight or config.kl_weight):
            self.remarks += (NO_TEACHER,)
        self.pairs = StagePairs(config.pairs, context, "pooled", kind="embeddings", projection=nn.Linear)
        self.requires = self.pairs.requires(teacher_logits=True, whole_batch=True)

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce`, `kl`, and `log_sum` or `log_correlation`; all losses before their weights."""
        config = self.config
        pairs = list(zip(*self.pairs(student, teachers[0]), strict=True))
        if config.variant == "paper":
            name, weight = "log_sum", config.log_sum_weight
            losses = [projected_log_sum(own, target, config.exponent) for own, target in pairs]
        else:
            name, weight = "log_correlation", config.correlation_weight
            losses = [projected_log_correlation(own, target) for own, target in pairs]
        projected = torch.stack(losses).mean()
        ce = cross_entropy(student.logits, batch)
        kl = logit_kd(student.logits, teachers[0].get_logits(), 1.0)
        total = config.ce_weight * ce + weight * projected + config.kl_weight * kl
        return LossOutput({"total": total, "ce": ce, name: projected, "kl": kl}, student.logits)
