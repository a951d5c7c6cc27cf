"""Vectors of unit length, for losses that compare directions."""

import torch
from torch import Tensor


def unit_vectors(values: Tensor) -> Tensor:
    """Return vectors along the last dimension divided by their length; vectors of zeros stay zeros without gradient.

    Networks with ReLU can give an embedding of zeros. `F.normalize` multiplies its gradient by 1e12.

    Args:
        values: [..., D], float32 or wider.
    """
    squared = values.square().sum(-1, keepdim=True)
    positive = squared > 0
    return torch.where(positive, values / torch.where(positive, squared, 1.0).sqrt(), 0.0)
