"""Correlations of probabilities: the student matches the teacher's relations within rows and columns of a batch."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from kdbench.config.schema import number
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


@full_precision
def dist_kd(student_logits: Tensor, teacher_logits: Tensor, temperature: float, beta: float, gamma: float) -> Tensor:
    """Return one minus the correlation of the probabilities of each image, and of each class over the batch.

        T^2 * (beta * (1 - mean_B r(p_s[i, :], p_t[i, :]))  +  gamma * (1 - mean_C r(p_s[:, c], p_t[:, c])))
        r(a, b) = sum(a' b') / (norm(a') norm(b') + 1e-8),    a' = a - mean(a),    p = softmax(z / T)

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C]; no gradient flows into them.
        temperature: T, above 0.
        beta: weight of the relations between classes (rows), at least 0.
        gamma: weight of the relations between images (columns), at least 0.

    Returns:
        Scalar in [0, 2 T^2 (beta + gamma)]; 0, up to the 1e-8, means that the probabilities agree up to scale and
        shift. In a batch of one image, columns have no correlation, so that their part is the constant T^2 * gamma.

    Source: Huang et al. 2022 (arXiv 2205.10536); the 1e-8 and T^2 as in the authors' code.
    """
    p_student = F.softmax(student_logits / temperature, dim=1)
    p_teacher = F.softmax(teacher_logits.detach() / temperature, dim=1)
    rows = 1 - pearson(p_student, p_teacher).mean()
    columns = 1 - pearson(p_student.T, p_teacher.T).mean()
    return temperature**2 * (beta * rows + gamma * columns)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Return the correlation [N] of the rows of two tensors [N, D]; 0 where a row is constant."""
    a, b = (values - values.mean(dim=1, keepdim=True) for values in (a, b))
    return (a * b).sum(dim=1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-8)


class StrongerTeacherDistillation(Method):
    """Total = ce_weight * CE + kd_weight * `dist_kd`."""

    @dataclass
    class Config(LossWeights):
        """Keys of the method's YAML file."""

        beta: float = number(0)
        gamma: float = number(0)
        temperature: float = number(0, 1000, above=True)

        def __post_init__(self) -> None:
            super().__post_init__()
            check_some_weight(self, "beta", "gamma")

    uses_stages = False
    role = "distilled"
    soft_labels = True
    needs_teacher = True
    invariants = ("batch_order", "logit_shift")

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        self.requires = Requires(teacher_logits=True, whole_batch=config.gamma > 0)

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce` and `kd`; both losses before their weights."""
        config = self.config
        kd = dist_kd(student.logits, teachers[0].get_logits(), config.temperature, config.beta, config.gamma)
        return ce_plus_kd(config, student, batch, kd)
