"""Hint regression (FitNets): the student's map, through a trained regressor, matches the teacher's."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

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
from kdbench.methods.pairing import StagePairs, check_pairs, conv_bn_relu, match_size, stage_names
from kdbench.models import Output


@full_precision
def hint_regression(student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor]) -> Tensor:
    """Return the mean squared error between maps, averaged over stages.

        mean over stages of mean((s - t)^2)

    Where height and width differ, the larger map is reduced with adaptive average pooling.

    Args:
        student_maps: one [B, C, H, W] per stage, already projected to the teacher's C.
        teacher_maps: one [B, C, H', W'] per stage; no gradient flows into them.

    Returns:
        Scalar, at least 0; 0 means identical maps.

    Raises:
        ValueError: no stages, or different numbers of them.

    Source: Romero et al. 2015 (arXiv 1412.6550), equation 3, without the factor 1/2 and as a mean; trained in one phase
    together with the cross-entropy, in place of a first phase of its own.
    """
    check_pairs(student_maps, teacher_maps)
    pairs = [match_size(s, t.detach()) for s, t in zip(student_maps, teacher_maps, strict=True)]
    return torch.stack([F.mse_loss(student, teacher) for student, teacher in pairs]).mean()


class HintRegression(Method):
    """Total = ce_weight * CE + kd_weight * `hint_regression`; a trained 1x1 regressor per pair of stages.

    Maps are pooled to the smaller size of the two before the regressor.
    """

    @dataclass
    class Config(LossWeights):
        """Keys of the method's YAML file."""

        pairs: dict[str, str] | None = stage_names()

    role = "distilled"
    soft_labels = True
    needs_teacher = True
    invariants = ("zero_for_identical", "batch_order")

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        self.pairs = StagePairs(config.pairs, context, "layer2", projection=conv_bn_relu)
        self.requires = self.pairs.requires()

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce` and `kd`; both losses before their weights."""
        own, targets = self.pairs(student, teachers[0])
        return ce_plus_kd(self.config, student, batch, hint_regression(own, targets))
