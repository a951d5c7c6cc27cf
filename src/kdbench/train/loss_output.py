"""Check of what a method returns for a batch."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from kdbench.errors import RunError
from kdbench.methods.base import LossOutput, Method

COLUMNS = {
    "epoch", "lr", "train_loss", "train_acc", "val_loss", "val_acc", "grad_norm", "images_per_second", "seconds"
}  # fmt: skip
"""Columns of metrics.csv, beside one per loss term."""


def check_output(returned: Any, method: Method, shape: tuple[int, ...]) -> LossOutput:
    """Return what a method returned, checked to be what `Method.forward` promises.

    Args:
        returned: what its `forward` returned.
        method: the method.
        shape: [B, C] of the batch's logits.

    Raises:
        RunError: it is no `LossOutput`; its terms are no tensors, lack `total`, or have a name that is taken; the total
            has no gradient; or the logits have another shape.
    """
    terms, logits = returned if isinstance(returned, LossOutput) else (None, None)
    if not isinstance(returned, LossOutput):
        found = f"a {type(returned).__name__}"
    elif not isinstance(logits, Tensor):
        found = f"logits of type {type(logits).__name__}"
    elif tuple(logits.shape) != tuple(shape):
        found = f"logits {list(logits.shape)} for a batch whose logits are {list(shape)}"
    elif not isinstance(terms, Mapping):
        found = f"terms of type {type(terms).__name__}"
    elif others := [name for name, value in terms.items() if not isinstance(value, Tensor)]:
        found = f"{others[0]!r} as a {type(terms[others[0]]).__name__}"
    elif taken := COLUMNS & terms.keys():
        found = f"a term {min(taken)!r}, which is another column of metrics.csv"
    elif "total" not in terms:
        found = f"the terms {', '.join(terms)}"
    elif terms["total"].ndim:
        found = f"a total of shape {list(terms['total'].shape)}"
    elif not terms["total"].requires_grad:
        found = "a total without a gradient (or no weight of the student is trained)"
    else:
        return returned
    raise RunError(
        f"{type(method).__name__}.forward returned {found}; it must return LossOutput(terms, logits), of "
        "kdbench.methods: terms is a dict of scalar tensors, among them 'total', which depends on the student",
        code="invalid_terms",
        key="method",
    )
