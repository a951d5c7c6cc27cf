"""The exponential moving average (EMA) of weights: updated after each step, and evaluated in their place."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class AveragedWeights:
    """The moving average of the weights and of the finite floating-point buffers of modules.

        average <- d * average + (1 - d) * weights,    d = min(decay, (1 + t) / (10 + t))

    after step t, counted from 1: in the first steps the average follows the weights closely, since it begins at the
    random ones. Only steps that the optimiser takes are counted. The average has no weight decay and no gradient.

    Args:
        modules: student and method.
        decay: share of the average that a step keeps, in [0.5, 1).
        without: ids of tensors that are not averaged, such as memory banks.

    Source: Polyak and Juditsky 1992; the ramp is that of TensorFlow's ExponentialMovingAverage with `num_updates`.
    """

    def __init__(self, modules: Sequence[nn.Module], decay: float, without: Collection[int] = ()) -> None:
        self.decay = decay
        tensors = {id(t): t for module in modules for t in (*module.parameters(), *module.buffers())}
        # A buffer that is not finite, such as a mask of minus infinity, has no average.
        averaged = (
            t.detach()
            for number, t in tensors.items()
            if number not in without and t.is_floating_point() and bool(t.isfinite().all())
        )
        self.weights = list(averaged)
        self.averages = [weight.clone() for weight in self.weights]
        self.steps = torch.zeros((), device=self.weights[0].device)

    @torch.no_grad()
    def update(self, skipped: Tensor) -> None:
        """Move the average towards the weights, in place.

        Args:
            skipped: scalar float32 on the device: 1 if the optimiser did not take the step, else 0.
        """
        self.steps += 1 - skipped
        share = (9 / (10 + self.steps)).clamp_min(1 - self.decay) * (1 - skipped)
        moves = torch._foreach_sub(self.weights, self.averages)
        torch._foreach_mul_(moves, share)
        torch._foreach_add_(self.averages, moves)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Put the average into the modules while the block runs."""
        own = [weight.clone() for weight in self.weights]
        torch._foreach_copy_(self.weights, self.averages)
        try:
            yield
        finally:
            torch._foreach_copy_(self.weights, own)

    def state_dict(self) -> dict[str, Any]:
        """Return the average and the number of steps."""
        return {"averages": self.averages, "steps": self.steps}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the average."""
        for average, value in zip(self.averages, state["averages"], strict=True):
            average.copy_(value)
        self.steps.copy_(state["steps"])
