"""SimKD: the student's last maps, projected, match the teacher's; the teacher's own classifier then predicts."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.config.schema import number
from kdbench.data.batches import Batch
from kdbench.methods.base import (
    LossOutput,
    Method,
    MethodContext,
    Progress,
    TeacherOutput,
    full_precision,
)
from kdbench.methods.pairing import StagePairs, as_map, conv_bn_relu, find_classifier, match_size, pool_to, stage_names
from kdbench.models import Network, Output


@full_precision
def projected_map_distance(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Return the mean squared error between two maps of one stage.

    Args:
        student_map: [B, C, H, W], already projected to the teacher's C.
        teacher_map: [B, C, H', W']; no gradient flows into it. Where height and width differ, the larger map is
            reduced with adaptive average pooling.

    Returns:
        Scalar, at least 0; 0 means identical maps.

    Source: Chen et al. 2022 (arXiv 2203.14001), equation 3.
    """
    return F.mse_loss(*match_size(student_map, teacher_map.detach()))


class SimKD(Method):
    """Total = kd_weight * `projected_map_distance` of the last maps; no cross-entropy.

    A projector brings the student's last map to the teacher's width. For inference, the mean of the projected map over
    its positions goes through a frozen copy of the teacher's classifier; the student's own classifier is not used. A
    teacher for bf16 or fp16 has narrow weights, so there the copy has the teacher's weights as that type rounds them.
    """

    @dataclass
    class Config:
        """Keys of the method's YAML file."""

        kd_weight: float = number(0, above=True)
        pairs: dict[str, str] | None = stage_names()

    role = "distilled"
    soft_labels = True
    needs_teacher = True
    invariants = ("zero_for_identical", "batch_order")
    inference = ("pairs", "classifier")

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        self.pairs = StagePairs(config.pairs, context, "last", projection=build_projector)
        self.pair = self.pairs.only()
        self.path, _ = find_classifier(context.teacher, self.pair.teacher, "teacher")
        self.requires = self.pairs.requires()
        self.classifier: nn.Module = nn.Identity()

    def bind_teachers(self, networks: Sequence[Network]) -> None:
        """Keep a frozen copy of the teacher's classifier."""
        self.classifier = copy.deepcopy(networks[0].body.get_submodule(self.path)).float().requires_grad_(False)

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total` and `kd`, before its weight."""
        (projected,), (target,) = self.pairs(student, teachers[0])
        kd = projected_map_distance(projected, target)
        with torch.no_grad():
            logits = self.classifier(projected.mean((2, 3)))
        return LossOutput({"total": self.config.kd_weight * kd, "kd": kd}, logits)

    def predict(self, output: Output) -> Tensor:
        """Return the teacher's classifier's logits [N, C] of the projected map."""
        maps = as_map(output.features[self.pair.student], self.pair.student_shape)
        projected = self.pairs.projections[0](pool_to(maps, self.pair.size))
        return self.classifier(projected.mean((2, 3)))


def build_projector(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return convolutions 1x1, 3x3 and 1x1, each with batch norm and ReLU, over twice the teacher's width."""
    middle = 2 * out_channels
    return nn.Sequential(
        *conv_bn_relu(in_channels, middle), *conv_bn_relu(middle, middle, 3), *conv_bn_relu(middle, out_channels)
    )
