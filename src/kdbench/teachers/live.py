"""A teacher's output for a batch: by a forward pass, or from the logit cache."""

import torch
from torch import Tensor

from kdbench.config import RuntimeConfig
from kdbench.data.batches import Batch
from kdbench.data.source import Split
from kdbench.methods.base import Requires, TeacherOutput
from kdbench.models import Network
from kdbench.system.device import autocast


class LiveTeacher:
    """Teacher that computes what methods require, in evaluation mode and without gradient.

    Args:
        network: network on its device, with the stages that `requires` names; best with fused batch norm.
        requires: outputs that are handed on.
        runtime: resolved runtime.
    """

    def __init__(self, network: Network, requires: Requires, runtime: RuntimeConfig) -> None:
        self.network = network.eval()
        self.requires = requires
        self.runtime = runtime

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TeacherOutput:
        with autocast(self.runtime):
            output = self.network(batch.images)
        return TeacherOutput(output.logits, output.features).select(self.requires)


class CachedTeacher:
    """Teacher whose logits are read from a logit cache (`kdbench.teachers.cache`).

    Args:
        logits: [N, V, C] float32, on the device of the batches or on the CPU if that is theirs.
        train: the N images in the order of the cache's rows.
    """

    def __init__(self, logits: Tensor, train: Split) -> None:
        self.logits = logits
        self.row_of = inverse(train.indices)

    def __call__(self, batch: Batch) -> TeacherOutput:
        return TeacherOutput(self.logits[self.row_of[batch.indices], batch.views], {})


def inverse(values: Tensor) -> Tensor:
    """Return the position of each of some distinct whole numbers, [max + 1] int64: inverse(values)[values[i]] is i."""
    invalid = len(values)  # indexing with it raises, should a number be looked up that is not there
    places = torch.full((int(values.max()) + 1,), invalid, device=values.device)
    places[values] = torch.arange(len(values), device=values.device)
    return places
