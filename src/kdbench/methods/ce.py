"""Cross-entropy alone: the baseline."""

from collections.abc import Sequence

from kdbench.data.batches import Batch
from kdbench.methods.base import LossOutput, Method, Progress, Requires, TeacherOutput, cross_entropy
from kdbench.models import Output


class CrossEntropy(Method):
    """Total = CE with the labels."""

    uses_stages = False
    role = "baseline"
    soft_labels = True
    needs_teacher = False
    requires = Requires()

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total` and `ce`, which are the same."""
        ce = cross_entropy(student.logits, batch)
        return LossOutput({"total": ce, "ce": ce}, student.logits)
