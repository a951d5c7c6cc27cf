"""Cross-entropy alone: the baseline."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from kdbench.data.batches import Batch
from kdbench.methods.base import START, Method, Progress, Requires, TeacherOutput, at_least_float32
from kdbench.models import Output


class CrossEntropy(Method):
    """Total = CE with the labels."""

    uses_stages = False
    role = "baseline"
    soft_labels = True
    needs_teacher = False
    requires = Requires()

    def forward(
        self,
        student: Output,
        teacher: TeacherOutput | None,
        batch: Batch,
        peers: Sequence[Output] = (),
        progress: Progress = START,
    ) -> dict[str, Tensor]:
        """Return the terms `total` and `ce`, which are the same."""
        ce = F.cross_entropy(at_least_float32(student.logits), batch.targets)
        return {"total": ce, "ce": ce}
