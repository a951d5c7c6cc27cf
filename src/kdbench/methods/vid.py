"""Variational information distillation: a Gaussian around a regression of the student's map explains the teacher's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.config.schema import one_of
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

MIN_VARIANCE = 1e-5
INITIAL_VARIANCE = 5.0


@full_precision
def variational_information(mean: Tensor, target: Tensor, log_scale: Tensor) -> Tensor:
    """Return the negative log-likelihood of a map under a Gaussian with one variance per channel.

        mean of 0.5 * ((mean - target)^2 / v + log v),    v = softplus(log_scale) + 1e-5

    The constant 0.5 * log(2 pi) is left out. The mean runs over images, channels and positions.

    Args:
        mean: [B, C, H, W] or [B, C], predicted from the student.
        target: the teacher's map of the same shape; no gradient flows into it.
        log_scale: [C], before softplus.

    Returns:
        Scalar in nats per number of the map, at least 0.5 * log(1e-5) = -5.76; lower means better explained. A value
        below 0 is no error.

    Source: Ahn et al. 2019 (CVPR, arXiv 1904.05835); constants of the code that the authors shared.
    """
    variance = F.softplus(log_scale) + MIN_VARIANCE
    variance = variance.reshape(-1, *[1] * (mean.ndim - 2))
    return 0.5 * ((mean - target.detach()).square() / variance + variance.log()).mean()


class VariationalInformationDistillation(Method):
    """Total = ce_weight * CE + kd_weight * sum over stages of `variational_information`.

    Regressors and variances are trained with the student. Within a stage the loss is a mean; the stages are summed, as
    in the code that the authors shared. Maps are pooled to the smaller size of the two before the regressor.
    """

    @dataclass
    class Config(LossWeights):
        """Keys of the method's YAML file."""

        variant: str = one_of("paper", "mdistiller")
        pairs: dict[str, str] | None = stage_names()

    role = "distilled"
    soft_labels = True
    needs_teacher = True
    invariants = ("batch_order",)

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        self.pairs = StagePairs(config.pairs, context, "common", projection=build_mean_regressor)
        widths = [pair.teacher_shape[0] for pair in self.pairs.pairs]
        self.scales = nn.ModuleList(LogScale(width, trained=config.variant == "paper") for width in widths)
        self.requires = self.pairs.requires()

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce` and `kd`; both losses before their weights."""
        means, targets = self.pairs(student, teachers[0])
        losses = [
            variational_information(mean, target, scale())
            for mean, target, scale in zip(means, targets, self.scales, strict=True)
        ]
        return ce_plus_kd(self.config, student, batch, torch.stack(losses).sum())


class LogScale(nn.Module):
    """Values before softplus from which the variances of a stage's channels follow; all variances begin at 5."""

    log_scale: Tensor

    def __init__(self, channels: int, trained: bool) -> None:
        super().__init__()
        initial = torch.full((channels,), math.log(math.expm1(INITIAL_VARIANCE - MIN_VARIANCE)))
        if trained:
            self.log_scale = nn.Parameter(initial)
        else:
            self.register_buffer("log_scale", initial)

    def forward(self) -> Tensor:
        """Return the values [C]."""
        return self.log_scale


def build_mean_regressor(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return three 1x1 convolutions without bias, with ReLU between them; the inner width is `out_channels`."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, kernel_size=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(out_channels, out_channels, kernel_size=1, bias=False),
    )
