"""Logit distillation: the student matches the teacher's softened class probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from kdbench.config.schema import number
from kdbench.data.batches import Batch
from kdbench.methods.base import START, Method, Progress, Requires, TeacherOutput, Weights, at_least_float32
from kdbench.models import Output


def logit_kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float, standardize: bool = False) -> Tensor:
    """Return the KL divergence from student to teacher at a temperature, times the temperature squared.

        T^2 * mean_B sum_C p_t (log p_t - log p_s),    p = softmax(z / T)

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C]; no gradient flows into them.
        temperature: T, above 0.
        standardize: whether each row of both is z-scored first: (z - mean) / (1e-7 + unbiased std).

    Returns:
        Scalar in nats, at least 0; 0 means that both distributions are the same.

    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2; `standardize`: Sun et al. 2024 (arXiv 2403.01427).
    """
    student, teacher = at_least_float32(student_logits), at_least_float32(teacher_logits.detach())
    if standardize:
        student, teacher = z_score(student), z_score(teacher)
    log_p_student = F.log_softmax(student / temperature, dim=1)
    log_p_teacher = F.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * F.kl_div(log_p_student, log_p_teacher, reduction="batchmean", log_target=True)


def z_score(logits: Tensor) -> Tensor:
    """Return rows of zero mean and unit standard deviation."""
    return (logits - logits.mean(dim=1, keepdim=True)) / (1e-7 + logits.std(dim=1, keepdim=True))


class LogitDistillation(Method):
    """Total = ce_weight * CE + kd_weight * `logit_kd`."""

    @dataclass
    class Config(Weights):
        """Keys of the method's YAML file."""

        temperature: float = number(0, 1000, above=True)  # beyond, float32 rounds all classes to the same logit

    uses_stages = False
    role = "distilled"
    soft_labels = True
    needs_teacher = True
    requires = Requires(teacher_logits=True)

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
        assert teacher.logits is not None
        ce_weight, kd_weight = self.config.resolved()
        ce = F.cross_entropy(at_least_float32(student.logits), batch.targets)
        kd = logit_kd(student.logits, teacher.logits, self.config.temperature)
        return {"total": ce_weight * ce + kd_weight * kd, "ce": ce, "kd": kd}
