"""Optimiser of a recipe."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from kdbench.config import RecipeConfig
from kdbench.system.device import kind_of

STATE_TENSORS = {"sgd": 1, "adam": 2, "adamw": 2}
"""Tensors that an optimiser keeps per weight."""


def build_optimizer(recipe: RecipeConfig, lr: Tensor, *groups: Sequence[Parameter]) -> torch.optim.Optimizer:
    """Return the recipe's optimiser over groups of parameters, with one learning rate.

    Args:
        recipe: optimiser with its keys, and weight decay.
        lr: scalar tensor that holds the learning rate, on the device of the parameters.
        groups: parameters; empty groups are left out. Where the recipe leaves vectors out of weight decay, each group
            becomes two.
    """
    param_groups: list[dict[str, Any]] = []
    for group in groups:
        parts = [(group, recipe.weight_decay)]
        if not recipe.decay_all:
            parts = [([p for p in group if p.ndim > 1], recipe.weight_decay), ([p for p in group if p.ndim <= 1], 0.0)]
        param_groups += [{"params": list(part), "weight_decay": decay} for part, decay in parts if part]
    # Fused: one pass over the weights, and a flag on the device can stop it from stepping.
    if recipe.optimizer != "sgd":
        kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
        beta1, beta2 = recipe.betas
        capturable = kind_of(str(lr.device)) == "cuda"
        adam = kind(param_groups, lr=lr, betas=(beta1, beta2), eps=recipe.eps, fused=True, capturable=capturable)
        vars(adam)["_warned_capturable_if_run_uncaptured"] = True  # the first steps of a batch size are eager
        return adam
    optimizer = torch.optim.SGD(param_groups, lr=lr, momentum=recipe.momentum, nesterov=recipe.nesterov, fused=True)
    if recipe.momentum:
        # The fused step would allocate them at its first call, and leave them unfilled if it is stopped from stepping.
        for parameter in (p for group in groups for p in group):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def load_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Restore an optimiser's state, of any kind, on the device and in the memory format of its parameters."""
    own = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state))
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group.update(settings)  # the tensor of the learning rate, and what depends on the device
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            # The fused step walks memory, so the buffers must be laid out as the weights are here.
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.ndim:
                kept[name] = torch.zeros_like(parameter).copy_(value)


def state_tensors(recipe: RecipeConfig) -> int:
    """Return the number of tensors that a recipe's optimiser keeps per weight."""
    return 0 if recipe.optimizer == "sgd" and not recipe.momentum else STATE_TENSORS[recipe.optimizer]


def clip_gradients(parameters: Sequence[Parameter], max_norm: float | None) -> Tensor:
    """Scale gradients so that their common L2 norm is at most `max_norm`; return the norm before, a scalar tensor."""
    # An unbounded clip still measures the norm, and multiplies by exactly 1.
    return torch.nn.utils.clip_grad_norm_(parameters, math.inf if max_norm is None else max_norm)
