"""Feature distillation: the student's maps, projected to the teacher's width, match the teacher's."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.config.schema import number, one_of, optional, setting
from kdbench.data.batches import Batch
from kdbench.errors import ConfigError
from kdbench.methods.base import (
    LossOutput,
    Method,
    MethodContext,
    Progress,
    TeacherOutput,
    Weights,
    ce_plus_kd,
    full_precision,
)
from kdbench.methods.pairing import StagePairs, check_pairs, match_size, stage_names
from kdbench.models import Output


@full_precision
def feature_kd(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], beta: float, normalize: str = "none"
) -> Tensor:
    """Return the distance between maps at several stages: squared error, plus the angle between pooled maps.

        mean over stages of MSE(s, t)  +  beta * mean over stages of mean_B (1 - cos(GAP s, GAP t))

    Where height and width differ, the larger map is reduced with adaptive average pooling.

    Args:
        student_maps: one [B, C, H, W] per stage, already projected to the teacher's C.
        teacher_maps: one [B, C, H', W'] per stage; no gradient flows into them.
        beta: weight of the cosine part, at least 0.
        normalize: "none", or "teacher_std": divide both sides of a stage by the unbiased standard deviation of the
            teacher's map over the whole batch tensor, at least 1e-6.

    Returns:
        Scalar, at least 0; 0 means identical maps.

    Raises:
        ValueError: no stages, different numbers of them, or an unknown `normalize`.

    Source: arXiv 2605.31191.
    """
    check_pairs(student_maps, teacher_maps)
    if normalize not in ("none", "teacher_std"):
        raise ValueError(f"normalize is {normalize!r}; it must be 'none' or 'teacher_std'")
    squared, angular = [], []
    for student, teacher in zip(student_maps, (t.detach() for t in teacher_maps), strict=True):
        if normalize == "teacher_std":
            scale = teacher.std().clamp_min(1e-6)
            student, teacher = student / scale, teacher / scale
        student, teacher = match_size(student, teacher)
        squared.append(F.mse_loss(student, teacher))
        angular.append((1 - F.cosine_similarity(student.mean((2, 3)), teacher.mean((2, 3)), dim=1)).mean())
    return torch.stack(squared).mean() + beta * torch.stack(angular).mean()


class FeatureDistillation(Method):
    """Total = ce_weight * CE + kd_weight * `feature_kd`; trained 1x1 convolutions project the student's maps."""

    @dataclass
    class Config(Weights):
        """Keys of the method's YAML file."""

        beta: float = number(0)
        stages: list[str] | None = optional(setting(lambda v: len(v) > 0, "a list of names such as [layer1,layer2]"))
        normalize: str = one_of("none", "teacher_std")
        pairs: dict[str, str] | None = stage_names(neutral=None)

        def __post_init__(self) -> None:
            super().__post_init__()
            if self.stages is not None and self.pairs is not None:
                raise ConfigError(
                    "method.stages and method.pairs are both given; use method.pairs alone, which names the stages of "
                    "student and teacher",
                    code="mismatch",
                    key="method.pairs",
                )

    role = "distilled"
    soft_labels = True
    needs_teacher = True
    invariants = ("zero_for_identical", "batch_order")

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        pairs = config.pairs if config.stages is None else [(stage, stage) for stage in config.stages]
        key = "method.pairs" if config.stages is None else "method.stages"
        self.pairs = StagePairs(pairs, context, "common", projection=build_projection, key=key)
        self.requires = self.pairs.requires(whole_batch=config.normalize == "teacher_std")

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce` and `kd`; both losses before their weights."""
        own, targets = self.pairs(student, teachers[0], same_size=False)
        kd = feature_kd(own, targets, self.config.beta, self.config.normalize)
        return ce_plus_kd(self.config, student, batch, kd)


def build_projection(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return a 1x1 convolution without bias, Xavier-initialised."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
    nn.init.xavier_uniform_(convolution.weight)
    return convolution
