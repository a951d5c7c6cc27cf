"""Multi-level logit distillation: agreement per image, between images and between classes, at several temperatures."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.config.schema import number, setting
from kdbench.data.batches import Batch
from kdbench.methods.base import (
    LossOutput,
    LossWeights,
    Method,
    MethodContext,
    Progress,
    Requires,
    TeacherOutput,
    ce_plus_kd,
    check_some_weight,
    full_precision,
)
from kdbench.models import Output

MAX_TEMPERATURE = 1000
"""Beyond it, float32 rounds all classes to the same logit."""


@full_precision
def multi_level_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperatures: Sequence[float],
    instance_weight: float = 1.0,
    batch_weight: float = 1.0,
    class_weight: float = 1.0,
) -> Tensor:
    """Return the difference of predictions per image, of their Gram matrix and of that of the classes.

        sum over T of  instance_weight * T^2 * mean_B KL(p_t, p_s)
                     + batch_weight * norm_F(P_t P_t' - P_s P_s')^2 / B
                     + class_weight * norm_F(P_t' P_t - P_s' P_s)^2 / C,    P = softmax(z / T) [B, C]

    The Gram terms grow with the batch: the published weights hold for 64 images.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C]; no gradient flows into them.
        temperatures: values of T, each above 0.
        instance_weight: weight of the KL divergences, in nats; at least 0.
        batch_weight: weight of the similarities of images; at least 0.
        class_weight: weight of the similarities of classes; at least 0.

    Returns:
        Scalar, at least 0; 0 means identical distributions.

    Raises:
        ValueError: no temperatures.

    Source: Jin, Wang and Lin, CVPR 2023. As in the authors' code and unlike the paper, the first term is a mean over
    the batch and has the factor T^2.
    """
    if not temperatures:
        raise ValueError("temperatures is empty; give at least one")
    teacher_logits = teacher_logits.detach()
    batch_size, num_classes = student_logits.shape
    terms = []
    for temperature in temperatures:
        log_s = F.log_softmax(student_logits / temperature, dim=1)
        log_t = F.log_softmax(teacher_logits / temperature, dim=1)
        s, t = log_s.exp(), log_t.exp()
        kl = F.kl_div(log_s, log_t, reduction="batchmean", log_target=True)
        images = (t @ t.T - s @ s.T).square().sum() / batch_size
        classes = (t.T @ t - s.T @ s).square().sum() / num_classes
        terms.append(instance_weight * temperature**2 * kl + batch_weight * images + class_weight * classes)
    return torch.stack(terms).sum()


class MultiLevelDistillation(Method):
    """Total = ce_weight * CE + kd_weight * `multi_level_kd`, on one view of each image."""

    @dataclass
    class Config(LossWeights):
        """Keys of the method's YAML file."""

        temperatures: list[float] = setting(
            lambda values: len(values) > 0 and all(0 < value <= MAX_TEMPERATURE for value in values),
            f"a list of finite numbers above 0 and at most {MAX_TEMPERATURE}, such as [2,3,4]",
        )
        instance_weight: float = number(0)
        batch_weight: float = number(0)
        class_weight: float = number(0)

        def __post_init__(self) -> None:
            super().__post_init__()
            check_some_weight(self, "instance_weight", "batch_weight", "class_weight")

    uses_stages = False
    role = "distilled"
    soft_labels = True
    needs_teacher = True
    invariants = ("zero_for_identical", "batch_order", "logit_shift")

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        compares = config.batch_weight > 0 or config.class_weight > 0
        self.requires = Requires(teacher_logits=True, whole_batch=compares)

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce` and `kd`; both losses before their weights."""
        keys = self.config
        weights = (keys.instance_weight, keys.batch_weight, keys.class_weight)
        kd = multi_level_kd(student.logits, teachers[0].get_logits(), keys.temperatures, *weights)
        return ce_plus_kd(keys, student, batch, kd)
