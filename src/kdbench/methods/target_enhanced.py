"""Target-enhanced distillation on exits (OFA-KD): exits of the student's stages learn from the teacher's logits."""

import itertools
import re
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
    LossWeights,
    Method,
    MethodContext,
    Progress,
    Requires,
    TeacherOutput,
    ce_plus_kd,
    full_precision,
)
from kdbench.methods.pairing import MAX_PREFIX, as_map, check_stage, flat_shape, last_stage, map_shape
from kdbench.models import ModelSummary, Output


@full_precision
def target_enhanced_kd(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, exponent: float
) -> Tensor:
    """Return the cross-entropy towards the teacher's probabilities, with more weight on the label's class.

        mean_B of -sum_c w_c log p_s[c],    w_y = (1 + p_t[y])^e - 1,    w_c = p_t[c]^e for c other than y

    p is softmax(z / T). There is no factor T^2.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C]; no gradient flows into them.
        labels: [B] int64, y.
        temperature: T, above 0.
        exponent: e, above 0. With 1, the weights are the teacher's probabilities.

    Returns:
        Scalar in nats, at least 0. With e = 1 its minimum is the entropy of the teacher's probabilities.

    Source: Hao et al. 2023 (arXiv 2310.19444), as in the authors' code.
    """
    return weighted_cross_entropy(student_logits, teacher_logits.detach(), labels, temperature, exponent, exponent)


@full_precision
def target_enhanced_kd_of_paper(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, exponent: float
) -> Tensor:
    """Return `target_enhanced_kd` as the paper writes it: w_c = p_t[c] for c other than y. Arguments: see there."""
    return weighted_cross_entropy(student_logits, teacher_logits.detach(), labels, temperature, exponent, 1.0)


def weighted_cross_entropy(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    of_label: float,
    of_others: float,
) -> Tensor:
    """Return the mean of -sum_c w_c log p_s[c] with these exponents in w; see `target_enhanced_kd`."""
    log_s = F.log_softmax(student_logits / temperature, dim=1)
    log_t = F.log_softmax(teacher_logits / temperature, dim=1)
    others = (of_others * log_t).exp()
    label = labels[:, None]
    target = torch.expm1(of_label * torch.log1p(log_t.gather(1, label).exp()))
    return -(others.scatter(1, label, target) * log_s).sum(1).mean()


class TargetEnhancedDistillation(Method):
    """Total = ce_weight * CE + kd_weight * (L(logits) + exit_weight * sum of L(exit)), L = `target_enhanced_kd`.

    An exit is a trained head on a stage of the student; inference is without exits.
    """

    @dataclass
    class Config(LossWeights):
        """Keys of the method's YAML file."""

        temperature: float = number(0, 1000, above=True)
        exponent: float = number(0, 100, above=True)
        exit_weight: float = number(0)
        stages: list[str] | None = optional(
            setting(lambda v: 0 < len(v) == len(set(v)), "a list of different names such as [layer1,layer2]")
        )
        variant: str = one_of("authors", "paper")

    role = "distilled"
    needs_teacher = True
    invariants = ("batch_order", "logit_shift")

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        student = context.student
        layers = [stage for stage in student.shapes if re.fullmatch(r"layer\d+", stage)]
        self.shapes = exit_shapes(layers if config.stages is None else config.stages, student)
        self.requires = Requires(teacher_logits=True, student_stages=tuple(self.shapes))
        width = max(last_width(student), last_width(context.teacher))
        order = list(student.shapes)
        self.exits = nn.ModuleList()
        for stage, shape in self.shapes.items():
            later = sum(order.index(layer) > order.index(stage) for layer in layers)
            self.exits.append(build_exit(shape, later, width, context.data.num_classes))

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce`, `kd`, and its parts `final` and `exits`; all before their weights."""
        keys, teacher = self.config, teachers[0].get_logits()

        def loss(logits: Tensor) -> Tensor:
            form = target_enhanced_kd if keys.variant == "authors" else target_enhanced_kd_of_paper
            return form(logits, teacher, batch.labels, keys.temperature, keys.exponent)

        final = loss(student.logits)
        exits = torch.stack(
            [
                loss(head(as_map(student.features[stage], shape)))
                for head, (stage, shape) in zip(self.exits, self.shapes.items(), strict=True)
            ]
        ).sum()
        return ce_plus_kd(keys, student, batch, final + keys.exit_weight * exits, final=final, exits=exits)


def exit_shapes(stages: Sequence[str], student: ModelSummary) -> dict[str, tuple[int, int, int]]:
    """Return the shape (C, H, W) as a map of each stage of the student that gets an exit.

    Raises:
        ConfigError: there are none, or one cannot have an exit.
    """
    if not stages:
        known = ", ".join(student.shapes) or "none"
        raise ConfigError(
            f"method.stages is null, and the student has no stage layerN; give a list of its stages: {known}",
            code="unknown_stage",
            key="method.stages",
        )
    shapes = {}
    for stage in stages:
        check_stage(stage, student, "student", "method.stages")
        shape = map_shape(student.shapes[stage])
        if shape is None:
            raise ConfigError(
                f"method.stages has {stage!r}: its {student.shapes[stage][0]} tokens are no square grid after at most "
                f"{MAX_PREFIX} others; choose another stage",
                code="mismatch",
                key="method.stages",
            )
        shapes[stage] = shape
    return shapes


def last_width(model: ModelSummary) -> int:
    """Return the number of channels of a network's last stage; 0 for a network without stages."""
    stage = last_stage(model, "pooled")
    return flat_shape(model.shapes[stage])[0] if stage else 0


def build_exit(shape: tuple[int, int, int], later: int, width: int, num_classes: int) -> nn.Sequential:
    """Return the exit of a stage: separable convolutions that halve the map, mean over positions, linear layer.

    As in the authors' code, there is one convolution block per later stage of the network, so that the exit has as
    many reductions as the network after this stage, and the last stage has a 1x1 convolution in place of blocks. Maps
    of 2 x 2 and smaller are not reduced further: in networks whose stages all have the same size, such as vision
    transformers, blocks per later stage would otherwise reduce the map to nothing.

    Args:
        shape: (C, H, W) of the stage as a map.
        later: number of later stages.
        width: channels before the linear layer. Those of the blocks double up to it.
        num_classes: number of outputs.
    """
    channels, *size = shape
    widths: list[int] = []
    while len(widths) < later and max(size) > 2:
        channels, size = min(2 * channels, width), [(side + 1) // 2 for side in size]
        widths.append(channels)
    blocks: list[nn.Module]
    if widths:
        widths[-1] = width
        blocks = [separable_block(a, b) for a, b in itertools.pairwise([shape[0], *widths])]
    else:
        blocks = [nn.Conv2d(channels, width, kernel_size=1)]
    head = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    return head


def separable_block(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return two depthwise-separable 3x3 convolutions with batch norm and ReLU, the first with stride 2."""
    layers: list[nn.Module] = []
    for stride, channels in ((2, in_channels), (1, out_channels)):
        layers += [
            nn.Conv2d(in_channels, in_channels, 3, stride, padding=1, groups=in_channels, bias=False),
            nn.Conv2d(in_channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers)
