"""Networks as plain modules for other tools: normalised images in, logits out, nothing of kdbench inside."""

import copy
from typing import Any

from torch import Tensor, nn

from kdbench.models.compressed import without_masks
from kdbench.models.network import Network


class Plain(nn.Module):
    """Network that returns its logits alone.

    Args:
        network: network, whose body is used as it is.
        method: module with `predict(output) -> logits`, or None for the network's own logits.
    """

    def __init__(self, network: Network, method: Any) -> None:
        super().__init__()
        self.network = network
        self.method = method

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, C] float32 of normalised images [N, C, H, W]."""
        output = self.network(images)
        logits = self.method.predict(output) if self.method is not None else output.logits
        return logits.float()


def plain_module(network: Network, method: Any = None) -> nn.Module:
    """Return a copy of a network that takes normalised images and returns logits, on the CPU, in evaluation mode.

    Masked weights become plain ones. Where the network returns its logits alone, it is the architecture's own module,
    so that the names of its weights are the architecture's own.

    Args:
        network: trained network.
        method: method that takes part in predictions, or None.
    """
    if method is None and network.logits is None and not network.stages:
        module: nn.Module = network.plain_copy()
    else:
        module = Plain(copy.deepcopy(network), copy.deepcopy(method))
    return without_masks(module.cpu()).eval().requires_grad_(False)
