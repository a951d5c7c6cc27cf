"""What a network says of a split."""

import torch
from torch import Tensor

from kdbench.config import RuntimeConfig
from kdbench.data.batches import plain_batches
from kdbench.data.dataset import Dataset
from kdbench.data.source import Split
from kdbench.errors import RunError
from kdbench.methods.method import Method
from kdbench.models import Network
from kdbench.runtime import autocast
from kdbench.stopping import leave_if_asked

EVALUATION_BATCH = {"cpu": 128, "cuda": 1000}
"""Images a forward pass, per kind of device: as many as make it fast (docs/performance.md)."""


@torch.no_grad()
def predict(
    network: Network, dataset: Dataset, split: Split, runtime: RuntimeConfig, method: Method | None = None
) -> Tensor:
    """Logits [N, C] float32, on the CPU, of a split's images in order. The network is left in its mode.

    Raises:
        Interrupted: the process was asked to stop meanwhile.
    """
    modules = [module for module in (network, method) if module is not None]
    were_training = [module.training for module in modules]
    for module in modules:
        module.eval()
    parts, batch_size = [], EVALUATION_BATCH[split.labels.device.type]
    with autocast(runtime):
        for images in plain_batches(dataset, split, batch_size, runtime.channels_last):
            leave_if_asked()
            output = network(images)
            parts.append((method.predict(output) if method else output.logits).float())
    for module, was_training in zip(modules, were_training, strict=True):
        module.train(was_training)
    return torch.cat(parts).cpu()


def finite(logits: Tensor, epoch: int) -> Tensor:
    """The same logits, which a result may be computed from.

    Raises:
        RunError: weights of an epoch whose every loss was finite can still overflow in evaluation.
    """
    if not bool(logits.isfinite().all()):
        raise RunError(
            f"epoch {epoch}: the weights give logits that are not finite. "
            "Lower recipe.lr or the method's weights, or use runtime.precision=fp32"
        )
    return logits
