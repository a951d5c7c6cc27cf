"""How a teacher answers a batch: by a forward pass, or from a table of what it says of every view of every image."""

import torch
from torch import Tensor

from kdbench.config import RuntimeConfig
from kdbench.data.batches import Batch
from kdbench.data.source import Split
from kdbench.methods.method import Knowledge, Needs
from kdbench.models import Network
from kdbench.runtime import autocast


class LiveTeacher:
    """Computes what a method needs to know, in evaluation mode and without gradient.

    Args:
        network: On its device, with the stages that `needs` names; best folded (`kdbench.models.folded`).
        needs: Nothing more is handed on.
        runtime: Resolved.
    """

    def __init__(self, network: Network, needs: Needs, runtime: RuntimeConfig) -> None:
        self.network = network.eval()
        self.needs = needs
        self.runtime = runtime

    @torch.no_grad()
    def __call__(self, batch: Batch) -> Knowledge:
        with autocast(self.runtime):
            output = self.network(batch.images)
        return Knowledge(output.logits if self.needs.teacher_logits else None, output.features)


class TabulatedTeacher:
    """Looks up logits that were computed once (`kdbench.tables`).

    Args:
        logits: [N, V, C] float32, on the device of the batches or on the CPU if that is theirs.
        train: The N images in the order of the table's rows.
        views: [V] int64, which views the columns are.
    """

    def __init__(self, logits: Tensor, train: Split, views: Tensor) -> None:
        self.logits = logits
        self.row_of, self.column_of = inverse(train.indices), inverse(views.to(train.indices.device))

    def __call__(self, batch: Batch) -> Knowledge:
        return Knowledge(self.logits[self.row_of[batch.indices], self.column_of[batch.views]], {})


def no_teacher(batch: Batch) -> None:
    """What a method learns from that has no teacher."""


def inverse(values: Tensor) -> Tensor:
    """Where each of some different whole numbers stands: inverse(values)[values[i]] is i. [max + 1] int64."""
    nowhere = len(values)  # an index that raises, should anybody ask for a number that is not there
    places = torch.full((int(values.max()) + 1,), nowhere, device=values.device)
    places[values] = torch.arange(len(values), device=values.device)
    return places
