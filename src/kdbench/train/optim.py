"""Optimiser and schedule of a recipe."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from kdbench.config import RecipeConfig


def build_optimizer(recipe: RecipeConfig, lr: Tensor, *groups: Sequence[Parameter]) -> torch.optim.SGD:
    """SGD over groups of parameters that have the learning rate `lr` (a scalar) and the recipe's weight decay."""
    optimizer = torch.optim.SGD(
        [{"params": group} for group in groups if group],
        lr=lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=True,  # one pass over the weights, and it can be told on the device not to step
    )
    if recipe.momentum:
        # Left to itself, the fused step allocates them at its first call and leaves them unfilled if told not to step.
        for parameter in (p for group in groups for p in group):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def learning_rate(recipe: RecipeConfig, epoch: int) -> float:
    """The learning rate of an epoch, counted from 0: cosine from `lr`, reaching `min_lr` after the last epoch.

    Source: Loshchilov and Hutter 2017 (arXiv 1608.03983), equation 5, stepped once per epoch.
    """
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2


def clip_gradients(parameters: Sequence[Parameter], max_norm: float | None) -> Tensor:
    """Scale gradients so that their common L2 norm is at most `max_norm`; returns the norm before, a scalar tensor."""
    # An unbounded clip still measures the norm, and multiplies by exactly 1.
    return torch.nn.utils.clip_grad_norm_(parameters, math.inf if max_norm is None else max_norm)
