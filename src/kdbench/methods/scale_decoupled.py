"""Scale-decoupled distillation (SDD): logits of regions of the last map, of whole and parts, at several scales."""

import copy
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.config.schema import number, setting
from kdbench.data.batches import Batch
from kdbench.errors import ConfigError
from kdbench.methods.base import (
    LossOutput,
    LossWeights,
    Method,
    MethodContext,
    Progress,
    RampedWeights,
    Requires,
    TeacherOutput,
    ce_plus_kd,
    check_some_weight,
    full_precision,
    ramp,
)
from kdbench.methods.decoupled import decoupled_terms, kl_of_rows
from kdbench.methods.pairing import StagePairs, as_map, find_classifier, pool_to, stage_names
from kdbench.models import Network, Output


@full_precision
def scale_decoupled_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    complementary_weight: float,
) -> Tensor:
    """Return the KL divergence of the predictions of regions, with another weight for complementary regions.

        mean over B and R of w * T^2 * KL(p_t, p_s),    p = softmax(z / T)

    w is `complementary_weight` where the teacher's arg max is the label in exactly one of the region and the whole
    map, else 1.

    Args:
        student_logits: [B, R, C]; region 0 is the whole map (`pool_regions`).
        teacher_logits: [B, R, C]; no gradient flows into them.
        labels: [B] int64.
        temperature: T, above 0.
        complementary_weight: at least 0; 1 gives the same weight to all regions.

    Returns:
        Scalar in nats, at least 0; 0 means identical distributions.

    Raises:
        ValueError: logits that are not [B, R, C].

    Source: Wei et al., CVPR 2024 (arXiv 2403.13512). As in the authors' code and unlike the paper, the regions are
    averaged, and two different wrong classes are not complementary.
    """
    teacher_logits = teacher_logits.detach()
    weights = region_weights(student_logits, teacher_logits, labels, complementary_weight)
    log_s = F.log_softmax(student_logits / temperature, dim=2)
    log_t = F.log_softmax(teacher_logits / temperature, dim=2)
    return temperature**2 * (weights * kl_of_rows(log_s, log_t)).mean()


@full_precision
def scale_decoupled_dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float,
    beta: float,
    complementary_weight: float,
) -> Tensor:
    """Return `scale_decoupled_kd` with the two parts of decoupled KD in place of the KL divergence.

        mean over B and R of w * T^2 * (alpha * TCKD + beta * NCKD)

    TCKD is the KL divergence of the probabilities of label and rest at temperature T, NCKD that of the softmax over
    the classes other than the label.

    Args:
        student_logits: [B, R, C]; region 0 is the whole map (`pool_regions`).
        teacher_logits: [B, R, C]; no gradient flows into them.
        labels: [B] int64.
        temperature: T, above 0.
        alpha: weight of TCKD, at least 0 (not the weight of CE or KD).
        beta: weight of NCKD, at least 0.
        complementary_weight: weight w of complementary regions; see `scale_decoupled_kd`.

    Returns:
        Scalar in nats, at least 0; 0 means identical distributions.

    Raises:
        ValueError: logits that are not [B, R, C].

    Source: Wei et al., CVPR 2024 (arXiv 2403.13512); Zhao et al. 2022 (arXiv 2203.08679).
    """
    teacher_logits = teacher_logits.detach()
    weights = region_weights(student_logits, teacher_logits, labels, complementary_weight)
    images, regions = weights.shape
    student, teacher = (logits.flatten(0, 1) / temperature for logits in (student_logits, teacher_logits))
    target, others = decoupled_terms(student, teacher, labels.repeat_interleave(regions))
    losses = (alpha * target + beta * others).unflatten(0, (images, regions))
    return temperature**2 * (weights * losses).mean()


def pool_regions(maps: Tensor, scales: Sequence[int]) -> Tensor:
    """Return the mean of each region of maps, in the order in which the losses expect regions.

    Applied to them, the classifier gives the regions' logits. Each scale is pooled from the map itself: pooling a
    finer scale's means differs where the map's side is no multiple of it.

    Args:
        maps: [B, D, H, W], the last maps.
        scales: numbers m of cells along height and width, ascending from 1 (the whole map).

    Returns:
        [B, R, D], R the sum of m^2: the whole map, then the cells of each finer scale, row by row.

    Raises:
        ValueError: scales that do not ascend from 1.
    """
    if not ascend_from_1(scales):
        raise ValueError(f"scales are {list(scales)}; they must ascend from 1, such as [1, 2, 4]")
    return torch.cat([pool_to(maps, (scale, scale)).flatten(2) for scale in scales], dim=2).transpose(1, 2)


def ascend_from_1(scales: Sequence[int]) -> bool:
    """Return whether scales ascend from 1."""
    return len(scales) > 0 and scales[0] == 1 and sorted(set(scales)) == list(scales)


def region_weights(student: Tensor, teacher: Tensor, labels: Tensor, complementary_weight: float) -> Tensor:
    """Return the weight [B, R] of each region: see `scale_decoupled_kd`."""
    if student.ndim != 3 or student.shape != teacher.shape:
        raise ValueError(
            f"student_logits are {list(student.shape)} and teacher_logits {list(teacher.shape)}; both must be [B, R, C]"
        )
    right = teacher.argmax(2) == labels[:, None]
    return torch.where(right != right[:, :1], complementary_weight, 1.0).to(student.dtype)


def scales_key() -> Any:
    """Declare the key `scales`."""
    return setting(ascend_from_1, "a list of whole numbers that ascend from 1, such as [1,2,4]")


class RegionDistillation(Method):
    """Base of methods that compare what both networks predict for regions of their last maps.

    A network's own classifier gives the logits of a region from its mean: the student's as it is trained, and a frozen
    copy of the teacher's. What a network does between pooling and classifier in training, such as dropout, is not done
    to regions.
    """

    role = "distilled"
    needs_teacher = True
    invariants = ("zero_for_identical", "batch_order", "logit_shift")

    def __init__(self, config: Any, context: MethodContext) -> None:
        super().__init__(config, context)
        self.pair = StagePairs(config.pairs, context, "last").only()
        self.student_path, self.student_shape = find_classifier(context.student, self.pair.student, "student")
        self.teacher_path, self.teacher_shape = find_classifier(context.teacher, self.pair.teacher, "teacher")
        for name, shape in (("student", self.student_shape), ("teacher", self.teacher_shape)):
            if config.scales[-1] > min(shape[1:]):
                raise ConfigError(
                    f"method.scales is {config.scales}, and the map of the {name} has {shape[1]} x {shape[2]} "
                    f"positions; use numbers of at most {min(shape[1:])}",
                    code="out_of_range",
                    key="method.scales",
                )
        self.requires = Requires(teacher_stages=(self.pair.teacher,), student_stages=(self.pair.student,))
        self.student_classifier: tuple[nn.Module, ...] = ()
        """The student's own classifier; within a tuple it is no submodule of the method."""
        self.teacher_classifier: nn.Module = nn.Identity()

    def bind_student(self, network: Network) -> None:
        """Keep the student's classifier."""
        self.student_classifier = (network.body.get_submodule(self.student_path),)

    def bind_teachers(self, networks: Sequence[Network]) -> None:
        """Keep a frozen copy of the teacher's classifier."""
        classifier = networks[0].body.get_submodule(self.teacher_path)
        self.teacher_classifier = copy.deepcopy(classifier).requires_grad_(False)

    def region_logits(self, student: Output, teacher: TeacherOutput) -> tuple[Tensor, Tensor]:
        """Return the logits [B, R, C] of the regions by student and teacher."""
        scales = self.config.scales
        own = as_map(student.features[self.pair.student], self.student_shape)
        other = as_map(teacher.features[self.pair.teacher], self.teacher_shape)
        (student_classifier,) = self.student_classifier
        with torch.no_grad():
            target = self.teacher_classifier(pool_regions(other, scales))
        return student_classifier(pool_regions(own, scales)), target

    @abstractmethod
    def region_loss(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return the KD term of logits [B, R, C]."""

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce` and `kd`; both losses before their weights and the ramp."""
        kd = self.region_loss(*self.region_logits(student, teachers[0]), batch.labels)
        ramp_epochs = self.config.ramp_epochs if isinstance(self.config, RampedWeights) else 0
        return ce_plus_kd(self.config, student, batch, kd, ramp(progress, ramp_epochs))


class ScaleDecoupledDistillation(RegionDistillation):
    """Total = ce_weight * CE + kd_weight * `scale_decoupled_kd`."""

    @dataclass
    class Config(LossWeights):
        """Keys of the method's YAML file."""

        temperature: float = number(0, 1000, above=True)
        complementary_weight: float = number(0)
        scales: list[int] = scales_key()
        pairs: dict[str, str] | None = stage_names()

    def region_loss(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return `scale_decoupled_kd`."""
        config = self.config
        return scale_decoupled_kd(student, teacher, labels, config.temperature, config.complementary_weight)


class ScaleDecoupledDkd(RegionDistillation):
    """Total = ce_weight * CE + kd_weight * ramp * `scale_decoupled_dkd`."""

    @dataclass
    class Config(RampedWeights):
        """Keys of the method's YAML file."""

        alpha: float = number(0)
        beta: float = number(0)
        temperature: float = number(0, 1000, above=True)
        complementary_weight: float = number(0)
        scales: list[int] = scales_key()
        pairs: dict[str, str] | None = stage_names()

        def __post_init__(self) -> None:
            super().__post_init__()
            check_some_weight(self, "alpha", "beta")

    def region_loss(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """Return `scale_decoupled_dkd`."""
        config = self.config
        return scale_decoupled_dkd(
            student, teacher, labels, config.temperature, config.alpha, config.beta, config.complementary_weight
        )
