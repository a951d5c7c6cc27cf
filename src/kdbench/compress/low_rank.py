"""Low-rank factors: convolutions and linear layers become two layers each, by singular value decomposition."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.compress.base import Compressed, Compression, Subject
from kdbench.config.schema import number, optional, setting
from kdbench.errors import ConfigError
from kdbench.models.compressed import base_of, factorized, factors

TARGET = f"{factorized.__module__}.{factorized.__qualname__}"


class LowRank(Compression):
    """Truncated SVD of each weight as a matrix [outputs, inputs x kernel] (Zhang et al. 2015, arXiv 1505.06798).

    A convolution becomes one of the same kernel to `rank` channels and a 1x1 convolution from them.
    """

    @dataclass
    class Config:
        energy: float | None = optional(number(0, 1, above=True))
        """Share of a weight's squared singular values that its factors keep; null where `rank` is given."""
        rank: float | None = optional(
            setting(lambda v: 0 < v <= 1 or (v > 1 and v == int(v)), "a share in (0, 1], or a whole number above 1")
        )
        """Rank of the factors: a share of the full rank, or a number of channels; null where `energy` is given."""
        only_smaller: bool = setting()
        """Layers whose factors have as many weights as the layer or more stay as they are."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        if (self.config.energy is None) == (self.config.rank is None):
            raise ConfigError(
                f"low_rank.energy is {self.config.energy} and low_rank.rank is {self.config.rank}; give one of the two "
                "and null for the other",
                code="mismatch",
                key="low_rank.energy",
            )

    def apply(self, subject: Subject) -> Compressed:
        body, ranks = subject.body, dict[str, int]()
        for path, layer in list(body.named_modules()):
            if not is_factorizable(layer):
                continue
            with torch.no_grad():
                left, values, right = torch.linalg.svd(layer.weight.flatten(1).double(), full_matrices=False)
            rank = self.rank_of(values)
            if self.config.only_smaller and rank * (left.shape[0] + right.shape[1]) >= left.shape[0] * right.shape[1]:
                continue
            ranks[path] = rank
            body.set_submodule(path, filled(layer, left[:, :rank], values[:rank], right[:rank]))
        if not ranks:
            raise ConfigError(
                f"low_rank leaves every layer of {subject.model.name} as it is, since no factors have fewer weights; "
                "give a smaller low_rank.energy or low_rank.rank",
                code="nothing_removed",
                key="low_rank.energy" if self.config.rank is None else "low_rank.rank",
            )
        arguments = {"base": base_of(subject.model), "ranks": ranks}
        return Compressed(dataclasses.replace(subject.model, target=TARGET, arguments=arguments), body.state_dict())

    def rank_of(self, values: Tensor) -> int:
        """Return the rank for singular values in falling order."""
        full = len(values)
        if self.config.rank is not None:
            return max(1, round(self.config.rank * full)) if self.config.rank <= 1 else min(full, int(self.config.rank))
        kept = values.square().cumsum(0)
        return min(full, int((kept < self.config.energy * kept[-1]).sum()) + 1) if self.config.energy < 1 else full


def is_factorizable(layer: nn.Module) -> bool:
    """Return whether a layer is a linear one or a convolution of one group."""
    return type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1)


def filled(layer: Any, left: Tensor, values: Tensor, right: Tensor) -> nn.Sequential:
    """Return the factors of a layer with their weights; the roots of the singular values go to both."""
    pair: Any = factors(layer, len(values))
    first, second = pair
    roots = values.sqrt()
    with torch.no_grad():
        first.weight.copy_((roots[:, None] * right).reshape(first.weight.shape))
        second.weight.copy_((left * roots).reshape(second.weight.shape))
        if layer.bias is not None:
            second.bias.copy_(layer.bias)
    return pair.eval()
