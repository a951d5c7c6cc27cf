"""What an epoch adds up to, kept on the device so that no step waits for the host."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kdbench.errors import RunError

GRAD_NORM = "grad_norm"


class EpochSums:
    """Sums of loss terms, gradient norms and right answers, and the watch over what is not finite.

    The first step with a term that is not finite is remembered, and from then on the optimiser is told, on the device,
    not to step. On the CPU the run stops at that step; on a GPU when the epoch's sums are read, with the same words.

    Args:
        device: Where the sums live.
        norms_may_overflow: With gradient scaling a gradient that is not finite is the scaler's affair.
    """

    def __init__(self, device: str, norms_may_overflow: bool = False) -> None:
        self.device = device
        self.norms_may_overflow = norms_may_overflow
        self.names: tuple[str, ...] = ()
        self.images = 0
        self.steps = 0
        self.batch_size = 0
        self.right = torch.zeros((), dtype=torch.int64, device=device)
        self.totals = torch.zeros(0, dtype=torch.float64, device=device)
        self.finite_steps = torch.zeros(0, dtype=torch.float64, device=device)
        self.failed_step = torch.zeros((), dtype=torch.int64, device=device)
        self.failed_values = torch.zeros(0, dtype=torch.float64, device=device)

    def add_predictions(self, logits: Tensor, labels: Tensor) -> None:
        self.batch_size = len(labels)
        self.images += self.batch_size
        self.right += (logits.detach().argmax(dim=1) == labels).sum()

    def add_terms(self, terms: Mapping[str, Tensor], grad_norm: Tensor, epoch: int) -> Tensor:
        """Add the terms (means over the batch whose predictions were added last) and the norm of a step.

        Returns:
            Scalar float32 on the device: 1 if this step or one before it was not finite, else 0.

        Raises:
            RunError: on the CPU, at the step itself.
        """
        self.steps += 1
        values = torch.stack([value.detach().double() for value in (*terms.values(), grad_norm)])
        if not self.names:
            self.names = (*terms, GRAD_NORM)
            self.totals, self.finite_steps, self.failed_values = (torch.zeros_like(values) for _ in range(3))
        finite = values.isfinite()
        self.finite_steps += finite
        # A loss is a mean over its batch, a norm belongs to the step.
        self.totals[:-1] += values[:-1] * self.batch_size
        self.totals[-1] += torch.where(finite[-1], values[-1], 0.0)
        bad = ~(finite[:-1] if self.norms_may_overflow else finite).all()
        first = bad & (self.failed_step == 0)
        self.failed_step = torch.where(first, self.steps, self.failed_step)
        self.failed_values = torch.where(first, values, self.failed_values)
        if self.device == "cpu":
            self.raise_if_failed(epoch)
        return (self.failed_step > 0).float()

    def means(self, epoch: int) -> dict[str, float]:
        """Mean of each term over the epoch's images, mean `grad_norm` over its finite steps, and `train_acc`.

        Raises:
            RunError: some step was not finite.
        """
        self.raise_if_failed(epoch)
        totals = dict(zip(self.names, self.totals.tolist(), strict=True))
        grad_norm = totals.pop(GRAD_NORM) / max(1.0, float(self.finite_steps[-1]))
        means = {name: total / self.images for name, total in totals.items()}
        return means | {"train_acc": int(self.right) / self.images, GRAD_NORM: grad_norm}

    def raise_if_failed(self, epoch: int) -> None:
        step = int(self.failed_step)
        if step == 0:
            return
        values = dict(zip(self.names, self.failed_values.tolist(), strict=True))
        watched = list(values)[:-1] if self.norms_may_overflow else list(values)
        # "total" is bad whenever one of its parts is: name the part.
        bad = [name for name in watched if not torch.tensor(values[name]).isfinite()]
        culprit = next((name for name in bad if name != "total"), "total")
        listed = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        raise RunError(
            f"epoch {epoch}, step {step}: {culprit} is {values[culprit]} ({listed}); stopped before the optimiser's "
            "step. Lower recipe.lr or the method's weights, or use runtime.precision=fp32"
        )
