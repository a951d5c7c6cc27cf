"""Optimiser and schedule of a recipe."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import Parameter

from kdbench.config import RecipeConfig


def build_optimizer(recipe: RecipeConfig, lr: Tensor, *groups: Sequence[Parameter]) -> torch.optim.SGD:
    """Return SGD over groups of parameters with one learning rate and the recipe's weight decay.

    Args:
        recipe: momentum, Nesterov and weight decay.
        lr: scalar tensor that holds the learning rate.
        groups: parameters; empty groups are left out.
    """
    optimizer = torch.optim.SGD(
        [{"params": group} for group in groups if group],
        lr=lr,
        momentum=recipe.momentum,
        nesterov=recipe.nesterov,
        weight_decay=recipe.weight_decay,
        fused=True,  # one pass over the weights, and a flag on the device can stop it from stepping
    )
    if recipe.momentum:
        # The fused step would allocate them at its first call, and leave them unfilled if it is stopped from stepping.
        for parameter in (p for group in groups for p in group):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def learning_rate(recipe: RecipeConfig, epoch: int) -> float:
    """Return the learning rate of an epoch, counted from 0: cosine from `lr` to `min_lr` after the last epoch.

    Source: Loshchilov and Hutter 2017 (arXiv 1608.03983), equation 5, stepped once per epoch.
    """
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * (1 + math.cos(math.pi * epoch / recipe.epochs)) / 2


def clip_gradients(parameters: Sequence[Parameter], max_norm: float | None) -> Tensor:
    """Scale gradients so that their common L2 norm is at most `max_norm`; return the norm before, a scalar tensor."""
    # An unbounded clip still measures the norm, and multiplies by exactly 1.
    return torch.nn.utils.clip_grad_norm_(parameters, math.inf if max_norm is None else max_norm)
