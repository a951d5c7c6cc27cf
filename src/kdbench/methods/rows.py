"""Rows of state that a method keeps for each training image."""

import torch
from torch import Tensor


def rows_of_indices(indices: Tensor) -> Tensor:
    """Return a table from an image's index in the original set (`Batch.indices`) to its row.

    Args:
        indices: [N] int64: index of the image of each row; may be empty.

    Returns:
        [largest index + 1] int64. Other indices lead to the row N, so that reading a table of N rows is an error.
    """
    length = int(indices.max()) + 1 if len(indices) else 0
    rows = torch.full((length,), len(indices), dtype=torch.int64)
    rows[indices] = torch.arange(len(indices))
    return rows
