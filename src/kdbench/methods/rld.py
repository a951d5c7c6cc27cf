"""Refined logits: the teacher's confidence and its classes below the label are matched, not its wrong ranking."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from kdbench.config.schema import number
from kdbench.data.batches import Batch
from kdbench.methods.base import (
    LossOutput,
    Method,
    Progress,
    RampedWeights,
    Requires,
    TeacherOutput,
    ce_plus_kd,
    check_some_weight,
    full_precision,
    ramp,
)
from kdbench.methods.decoupled import kl_of_rows, kl_within, label_and_rest
from kdbench.models import Output


@full_precision
def refined_logits_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float,
    beta: float,
    confidence_temperature: float,
) -> Tensor:
    """Return the distance to the teacher's confidence, and to its distribution over the classes below the label.

        mean_B (alpha * SCD + beta * MCD)
        SCD = Tc^2 * KL((p_t[m], 1 - p_t[m]), (p_s[y], 1 - p_s[y])),    p = softmax(z / Tc),    m = argmax z_t
        MCD = T^2 * KL of the softmaxes of z / T over the classes with z_t < z_t[y]; 0 for fewer than two classes

    The student's probability of the label follows the teacher's largest probability, whatever class has it; the label
    itself, classes that the teacher ranks above it, and ties with it are not in MCD. Where the teacher is right and
    Tc = T, this is `decoupled_kd`.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C]; no gradient flows into them.
        labels: [B] int64: the label y of each image.
        temperature: T, above 0.
        alpha: weight of SCD, at least 0; not the weight of KD.
        beta: weight of MCD, at least 0.
        confidence_temperature: Tc, above 0.

    Returns:
        Scalar in nats, at least 0. Identical logits give 0 only where the teacher is right.

    Source: Sun et al. 2024 (arXiv 2408.07703). The paper has one temperature; the authors' code can take Tc = 1.
    """
    teacher = teacher_logits.detach()
    confidence = kl_of_rows(
        label_and_rest(student_logits / confidence_temperature, labels),
        label_and_rest(teacher / confidence_temperature, teacher.argmax(dim=1)),
    )
    below = teacher < teacher.gather(1, labels[:, None])
    masked = kl_within(student_logits / temperature, teacher / temperature, keep=below)
    return (alpha * confidence_temperature**2 * confidence + beta * temperature**2 * masked).mean()


class RefinedLogitsDistillation(Method):
    """Total = ce_weight * CE + kd_weight * ramp * `refined_logits_kd`."""

    @dataclass
    class Config(RampedWeights):
        """Keys of the method's YAML file."""

        alpha: float = number(0)
        beta: float = number(0)
        temperature: float = number(0, 1000, above=True)
        confidence_temperature: float = number(0, 1000, above=True)

        def __post_init__(self) -> None:
            super().__post_init__()
            check_some_weight(self, "alpha", "beta")

    uses_stages = False
    role = "distilled"
    needs_teacher = True
    invariants = ("batch_order", "logit_shift")
    requires = Requires(teacher_logits=True)

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce` and `kd`; both losses before their weights and the ramp."""
        config = self.config
        kd = refined_logits_kd(
            student.logits,
            teachers[0].get_logits(),
            batch.labels,
            config.temperature,
            config.alpha,
            config.beta,
            config.confidence_temperature,
        )
        return ce_plus_kd(config, student, batch, kd, ramp(progress, config.ramp_epochs))
