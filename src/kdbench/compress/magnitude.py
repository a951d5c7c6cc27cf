"""Unstructured pruning: the smallest weights of the whole network become zero."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, prune

from kdbench.compress.base import Compressed, Compression, Subject
from kdbench.config.schema import setting
from kdbench.errors import ConfigError
from kdbench.models.compressed import MASKED, Mask, base_of, weighted_layers, without_masks


class Magnitude(Compression):
    """Global magnitude pruning (Han et al. 2015, arXiv 1506.02626) by `torch.nn.utils.prune`.

    Weights of convolutions and linear layers, compared over all layers. Masks keep the zeros when the network is
    trained further. Weights that are masked already count.
    """

    @dataclass
    class Config:
        sparsity: float = setting(lambda value: 0 < value < 1, "a number above 0 and below 1")
        """Share of the weights that become zero."""

    masks = True
    after_masks = True

    def apply(self, subject: Subject) -> Compressed:
        for path, module in weighted_layers(subject.body):
            if any(type(part) is not Mask for part in own_parametrizations(module)):
                raise ConfigError(
                    f"compress=magnitude cannot mask {path} of {subject.model.name}, whose weight is computed from "
                    "other parameters, such as by weight norm",
                    code="not_compressible",
                    key="magnitude",
                )
        body = without_masks(subject.body)
        layers = list(weighted_layers(body))
        before = {path: module.weight.detach().clone() for path, module in layers}
        weights = [(module, "weight") for _, module in layers]
        prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=self.config.sparsity)
        state = {name: tensor for name, tensor in body.state_dict().items() if not name.endswith(("_orig", "_mask"))}
        for path, module in layers:
            place = f"{path}.parametrizations.weight" if path else "parametrizations.weight"
            state[f"{place}.original"] = before[path] * module.weight_mask
            state[f"{place}.0.mask"] = module.weight_mask.to(torch.bool)
        already = subject.model.target == MASKED
        model = subject.model
        if not already:
            model = dataclasses.replace(model, target=MASKED, arguments={"base": base_of(model)})
        return Compressed(model, state)


def own_parametrizations(module: Any) -> list[nn.Module]:
    """Return the functions that compute the weight of a layer from other parameters."""
    return list(module.parametrizations.weight) if parametrize.is_parametrized(module, "weight") else []
