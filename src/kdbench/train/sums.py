"""Sums over the steps of an epoch, kept on the device so that no step waits for the host."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdbench.errors import RunError
from kdbench.system.device import widest_float

GRAD_NORM = "grad_norm"
COUNTS = ("steps", "images", "correct", "norm_steps", "skipped", "overflows", "failed_step")
TENSORS = (*COUNTS, "totals", "failed_values")


class NonFiniteError(RunError):
    """A loss term, or the norm of the gradients, that is not finite.

    Args:
        epoch: epoch, counted from 1.
        step: step of the epoch, counted from 1.
        values: loss terms and `grad_norm` of the step.
        cause: name of the value that is not finite.
        consequence: what follows for the run, in words.
    """

    def __init__(self, epoch: int, step: int, values: Mapping[str, float], cause: str, consequence: str) -> None:
        listed = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        super().__init__(
            f"epoch {epoch}, step {step}: {cause} is {values[cause]} ({listed}); {consequence}. "
            "Lower recipe.lr or the method's weights, or use runtime.precision=fp32",
            code="not_finite",
            key="recipe.lr",
        )
        self.epoch = epoch
        self.step = step
        self.values = dict(values)


class EpochSums:
    """Sums of loss terms, gradient norms and correct predictions, and the check for values that are not finite.

    They are updated in place, so that a captured step updates them too when it is replayed.

    The first step with a term that is not finite is recorded, and the optimiser is stopped, on the device, from taking
    it; also from taking any later one, unless bad steps are to be skipped. On the CPU the run ends at that step; on a
    GPU when the sums of the epoch are read, with the same message.

    Args:
        device: device of the sums.
        norms_may_overflow: whether gradient scaling is on; the scaler then handles gradients that are not finite, and
            they are counted.
        limit: number of bad steps of a run that may be skipped before it ends; 0 ends it at the first.
        before: number of steps skipped in earlier epochs.
    """

    def __init__(self, device: str, norms_may_overflow: bool = False, limit: int = 0, before: int = 0) -> None:
        self.device = device
        self.ends_at_once = device == "cpu"
        self.norms_may_overflow = norms_may_overflow
        self.limit = limit
        self.before = before
        self.names: tuple[str, ...] = ()
        self.batch_size = 0
        self.batch_correct = torch.zeros((), dtype=torch.int64, device=device)
        self.steps, self.images, self.correct, self.norm_steps, self.skipped, self.overflows, self.failed_step = (
            torch.zeros((), dtype=torch.int64, device=device) for _ in COUNTS
        )
        self.totals = torch.zeros(0, dtype=widest_float(device), device=device)
        self.failed_values = torch.zeros_like(self.totals)

    def begin(self, before: int) -> None:
        """Start an epoch.

        Args:
            before: number of steps skipped in earlier epochs.
        """
        self.before = before
        for name in TENSORS:
            getattr(self, name).zero_()

    def add_predictions(self, logits: Tensor, labels: Tensor) -> None:
        """Count the correct predictions of a batch. `add_terms` of the same step adds them."""
        self.batch_size = len(labels)
        self.batch_correct = (logits.argmax(dim=1) == labels).sum()

    def add_terms(self, terms: Mapping[str, Tensor], grad_norm: Tensor, epoch: int) -> Tensor:
        """Add the loss terms (means over the batch) and the gradient norm of a step.

        Returns:
            Scalar float32 on the device: 1 if the optimiser must not take this step, else 0.

        Raises:
            NonFiniteError: on the CPU, at the step itself.
        """
        self.steps += 1
        values = torch.stack([value.detach().to(self.totals.dtype) for value in (*terms.values(), grad_norm)])
        if not self.names:
            self.names = (*terms, GRAD_NORM)
            self.totals, self.failed_values = torch.zeros_like(values), torch.zeros_like(values)
        finite = values.isfinite()
        bad = ~(finite[:-1] if self.norms_may_overflow else finite).all()
        good = ~bad
        self.images += good * self.batch_size
        self.correct += good * self.batch_correct
        self.norm_steps += good & finite[-1]
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
        """Return the mean of each term over the images, `grad_norm` over the finite steps, and `train_acc`.

        Skipped steps count in none of them.

        Raises:
            NonFiniteError: a step was not finite, more of them than the limit allows, or none at all was.
        """
        self.raise_if_failed(epoch)
        if int(self.steps) > 1 and int(self.skipped) == int(self.steps):
            raise self.failure(epoch, "no step of the epoch was finite, and this is the first")
        images = max(1, int(self.images))
        totals = dict(zip(self.names, self.totals.tolist(), strict=True))
        grad_norm = totals.pop(GRAD_NORM) / max(1, int(self.norm_steps))
        means = {name: total / images for name, total in totals.items()}
        return means | {"train_acc": int(self.correct) / images, GRAD_NORM: grad_norm}

    def raise_if_failed(self, epoch: int) -> None:
        """Raise if a step of this epoch ends the run. Waits for a GPU."""
        if self.before + int(self.skipped) <= self.limit:
            return
        consequence = "stopped before the optimiser's step"
        if self.limit:
            consequence = f"more than recipe.nonfinite_limit={self.limit} such steps; this is the first of the epoch"
        raise self.failure(epoch, consequence)

    def failure(self, epoch: int, consequence: str) -> NonFiniteError:
        """Return the error of the first step that was not finite in this epoch."""
        values = dict(zip(self.names, self.failed_values.tolist(), strict=True))
        watched = list(values)[:-1] if self.norms_may_overflow else list(values)
        # "total" is bad whenever one of its parts is: name the part.
        bad = [name for name in watched if not math.isfinite(values[name])]
        cause = next((name for name in bad if name != "total"), "total")
        return NonFiniteError(epoch, int(self.failed_step), values, cause, consequence)

    def state_dict(self) -> dict[str, Any]:
        """Return the state in the middle of an epoch."""
        return {name: getattr(self, name) for name in TENSORS} | {"names": list(self.names)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state in the middle of an epoch."""
        for name in TENSORS:
            setattr(self, name, state[name].to(getattr(self, name), copy=True))
        self.names = tuple(state["names"])
