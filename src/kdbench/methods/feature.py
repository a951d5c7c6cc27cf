"""Feature distillation: the student's maps, projected to the teacher's width, match the teacher's."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from omegaconf import MISSING
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.config.schema import number, one_of
from kdbench.data.batches import Batch
from kdbench.errors import ConfigError, nearest
from kdbench.methods.base import START, Method, Progress, Requires, Shapes, TeacherOutput, Weights, at_least_float32
from kdbench.models import Output


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
    if not student_maps or len(student_maps) != len(teacher_maps):
        raise ValueError(
            f"got {len(student_maps)} student maps and {len(teacher_maps)} teacher maps; give one of each per stage"
        )
    if normalize not in ("none", "teacher_std"):
        raise ValueError(f"normalize is {normalize!r}; it must be 'none' or 'teacher_std'")
    squared, angular = [], []
    for student_map, teacher_map in zip(student_maps, teacher_maps, strict=True):
        student, teacher = at_least_float32(student_map), at_least_float32(teacher_map.detach())
        if normalize == "teacher_std":
            scale = teacher.std().clamp_min(1e-6)
            student, teacher = student / scale, teacher / scale
        student, teacher = match_size(student, teacher)
        squared.append(F.mse_loss(student, teacher))
        angular.append((1 - F.cosine_similarity(student.mean((2, 3)), teacher.mean((2, 3)), dim=1)).mean())
    return torch.stack(squared).mean() + beta * torch.stack(angular).mean()


def match_size(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return both maps at the smaller height and width of the two."""
    size = (min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3]))
    return pool_to(a, size), pool_to(b, size)


def pool_to(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Return maps averaged to a height and width."""
    return maps if maps.shape[2:] == size else F.adaptive_avg_pool2d(maps, size)


class FeatureDistillation(Method):
    """Total = ce_weight * CE + kd_weight * `feature_kd`; trained 1x1 convolutions project the student's maps."""

    @dataclass
    class Config(Weights):
        """Keys of the method's YAML file."""

        beta: float = number(0)
        stages: list[str] | None = MISSING
        normalize: str = one_of("none", "teacher_std")

    role = "distilled"
    soft_labels = True
    needs_teacher = True

    def __init__(self, config: Config, student_shapes: Shapes, teacher_shapes: Shapes | None) -> None:
        super().__init__(config, student_shapes, teacher_shapes)
        assert teacher_shapes is not None
        stages = select_stages(config.stages, student_shapes, teacher_shapes)
        self.requires = Requires(teacher_stages=stages, student_stages=stages)
        self.projections = nn.ModuleDict(
            {stage: build_projection(student_shapes[stage][0], teacher_shapes[stage][0]) for stage in stages}
        )

    def forward(
        self,
        student: Output,
        teacher: TeacherOutput | None,
        batch: Batch,
        peers: Sequence[Output] = (),
        progress: Progress = START,
    ) -> dict[str, Tensor]:
        """Return the terms `total`, `ce` and `kd`; both losses before their weights."""
        assert teacher is not None
        ce_weight, kd_weight = self.config.resolved()
        ce = F.cross_entropy(at_least_float32(student.logits), batch.targets)
        projected = [project(student.features[stage]) for stage, project in self.projections.items()]
        targets = [teacher.features[stage] for stage in self.projections]
        kd = feature_kd(projected, targets, self.config.beta, self.config.normalize)
        return {"total": ce_weight * ce + kd_weight * kd, "ce": ce, "kd": kd}


def build_projection(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return a 1x1 convolution without bias, Xavier-initialised."""
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
    nn.init.xavier_uniform_(convolution.weight)
    return convolution


def select_stages(wanted: Sequence[str] | None, student: Shapes, teacher: Shapes) -> tuple[str, ...]:
    """Return the stages to match: the configured ones, or every layerN that both models have.

    Raises:
        ConfigError: a stage is missing in one of the models or is no map, or there is no common stage.
    """
    common = [stage for stage in student if stage in teacher and len(student[stage]) == len(teacher[stage]) == 3]
    if wanted is None:
        wanted = [stage for stage in common if re.fullmatch(r"layer\d+", stage)]
    if not wanted:
        raise ConfigError(
            f"method.stages selects no stage; the student has {', '.join(student)}, the teacher {', '.join(teacher)}",
            code="unknown_stage",
            key="method.stages",
        )
    for stage in wanted:
        if stage not in common:
            raise ConfigError(
                f"method.stages has {stage!r}, which is not a stage with maps in both models; {nearest(stage, common)}",
                code="unknown_stage",
                key="method.stages",
            )
    return tuple(dict.fromkeys(wanted))
