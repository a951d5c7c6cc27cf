"""What an epoch adds up to, kept on the device so that no step waits for the host."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdbench.errors import RunError

GRAD_NORM = "grad_norm"
COUNTS = ("steps", "images", "right", "norms", "skipped", "overflows", "failed_step")
TENSORS = (*COUNTS, "totals", "failed_values")


class NonFiniteError(RunError):
    """A step's loss, or the norm of its gradients, is not finite.

    Args:
        epoch: Counted from 1.
        step: Of the epoch, counted from 1.
        values: Loss terms and `grad_norm` of the step.
        culprit: The one that is to blame.
        ended: What became of the run, and why.
    """

    def __init__(self, epoch: int, step: int, values: Mapping[str, float], culprit: str, ended: str) -> None:
        listed = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        super().__init__(
            f"epoch {epoch}, step {step}: {culprit} is {values[culprit]} ({listed}); {ended}. "
            "Lower recipe.lr or the method's weights, or use runtime.precision=fp32"
        )
        self.epoch = epoch
        self.step = step
        self.values = dict(values)


class EpochSums:
    """Sums of loss terms, gradient norms and right answers, and the watch over what is not finite.

    They are added to in place, so that a step which a GPU has recorded adds to them too when it is replayed.

    The first step with a term that is not finite is remembered, and the optimiser is told, on the device, not to take
    it; nor any after it, unless bad steps are to be skipped. On the CPU the run ends at that step; on a GPU when the
    epoch's sums are read, with the same words.

    Args:
        device: Where the sums live.
        norms_may_overflow: With gradient scaling a gradient that is not finite is the scaler's affair, and counted.
        limit: How many bad steps of a run may be skipped before it ends; 0: it ends at the first.
        before: How many of them earlier epochs have skipped.
    """

    def __init__(self, device: str, norms_may_overflow: bool = False, limit: int = 0, before: int = 0) -> None:
        self.device = device
        self.ends_at_once = device == "cpu"
        self.norms_may_overflow = norms_may_overflow
        self.limit = limit
        self.before = before
        self.names: tuple[str, ...] = ()
        self.batch_size = 0
        self.batch_right = torch.zeros((), dtype=torch.int64, device=device)
        self.steps, self.images, self.right, self.norms, self.skipped, self.overflows, self.failed_step = (
            torch.zeros((), dtype=torch.int64, device=device) for _ in COUNTS
        )
        self.totals = torch.zeros(0, dtype=torch.float64, device=device)
        self.failed_values = torch.zeros(0, dtype=torch.float64, device=device)

    def begin(self, before: int) -> None:
        """Begin an epoch, earlier ones of which have skipped so many steps."""
        self.before = before
        for name in TENSORS:
            getattr(self, name).zero_()

    def add_predictions(self, logits: Tensor, labels: Tensor) -> None:
        self.batch_size = len(labels)
        self.batch_right = (logits.detach().argmax(dim=1) == labels).sum()

    def add_terms(self, terms: Mapping[str, Tensor], grad_norm: Tensor, epoch: int) -> Tensor:
        """Add the terms (means over the batch whose predictions were added last) and the norm of a step.

        Returns:
            Scalar float32 on the device: 1 if the optimiser must not take this step, else 0.

        Raises:
            NonFiniteError: on the CPU, at the step itself.
        """
        self.steps += 1
        values = torch.stack([value.detach().double() for value in (*terms.values(), grad_norm)])
        if not self.names:
            self.names = (*terms, GRAD_NORM)
            self.totals, self.failed_values = torch.zeros_like(values), torch.zeros_like(values)
        finite = values.isfinite()
        bad = ~(finite[:-1] if self.norms_may_overflow else finite).all()
        good = ~bad
        self.images += good * self.batch_size
        self.right += good * self.batch_right
        self.norms += good & finite[-1]
        self.overflows += good & ~finite[-1]
        # A loss is a mean over its batch, a norm belongs to the step.
        self.totals[:-1] += torch.where(good, values[:-1] * self.batch_size, 0.0)
        self.totals[-1] += torch.where(good & finite[-1], values[-1], 0.0)
        self.skipped += bad
        first = bad & (self.failed_step == 0)
        self.failed_step.copy_(torch.where(first, self.steps, self.failed_step))
        self.failed_values.copy_(torch.where(first, values, self.failed_values))
        if self.ends_at_once:
            self.raise_if_failed(epoch)
        return (bad if self.limit else self.failed_step > 0).float()

    def means(self, epoch: int) -> dict[str, float]:
        """Mean of each term over the epoch's images, mean `grad_norm` over its finite steps, and `train_acc`.

        Steps that were skipped count in none of them.

        Raises:
            NonFiniteError: some step was not finite, or more of them than are bearable.
        """
        self.raise_if_failed(epoch)
        images = max(1, int(self.images))
        totals = dict(zip(self.names, self.totals.tolist(), strict=True))
        grad_norm = totals.pop(GRAD_NORM) / max(1, int(self.norms))
        means = {name: total / images for name, total in totals.items()}
        return means | {"train_acc": int(self.right) / images, GRAD_NORM: grad_norm}

    def raise_if_failed(self, epoch: int) -> None:
        """Waits for a GPU."""
        if self.before + int(self.skipped) <= self.limit:
            return
        values = dict(zip(self.names, self.failed_values.tolist(), strict=True))
        watched = list(values)[:-1] if self.norms_may_overflow else list(values)
        # "total" is bad whenever one of its parts is: name the part.
        bad = [name for name in watched if not math.isfinite(values[name])]
        culprit = next((name for name in bad if name != "total"), "total")
        ended = "stopped before the optimiser's step"
        if self.limit:
            ended = f"more than recipe.nonfinite_limit={self.limit} such steps, the first one of this epoch here"
        raise NonFiniteError(epoch, int(self.failed_step), values, culprit, ended)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in TENSORS} | {"names": list(self.names)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name in TENSORS:
            setattr(self, name, state[name].to(self.device, copy=True))
        self.names = tuple(state["names"])
