"""Label smoothing: a control without a teacher for the effect of soft targets alone."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from kdbench.config.schema import setting
from kdbench.data.batches import Batch
from kdbench.methods.base import (
    LossOutput,
    Method,
    Progress,
    Requires,
    TeacherOutput,
    cross_entropy,
    full_precision,
)
from kdbench.models import Output


@full_precision
def smoothed_cross_entropy(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    """Return the cross-entropy with targets that are mixed with the uniform distribution.

        mean_B of -sum_C q log softmax(z),    q = (1 - smoothing) * targets + smoothing / C

    Args:
        logits: z, [B, C].
        targets: [B] int64, or probabilities [B, C]; no gradient flows into them.
        smoothing: share of the uniform distribution, in [0, 1].

    Returns:
        Scalar in nats, at least the entropy of q.

    Source: Szegedy et al. 2016 (arXiv 1512.00567), section 7.
    """
    return F.cross_entropy(logits, targets.detach(), label_smoothing=smoothing)


class LabelSmoothing(Method):
    """Total = `smoothed_cross_entropy`. A recipe that smooths or mixes labels does so first."""

    @dataclass
    class Config:
        """Keys of the method's YAML file."""

        smoothing: float = setting(lambda value: 0 < value < 1, "a number above 0 and below 1")

    uses_stages = False
    role = "control"
    soft_labels = True
    needs_teacher = False
    invariants = ("batch_order", "logit_shift")
    requires = Requires()

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total` and `ce`, the cross-entropy without this smoothing, which is not minimised."""
        total = smoothed_cross_entropy(student.logits, batch.targets, self.config.smoothing)
        return LossOutput({"total": total, "ce": cross_entropy(student.logits, batch)}, student.logits)
