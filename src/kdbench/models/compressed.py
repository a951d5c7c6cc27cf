"""Networks that were compressed, built anew from their configs: masked, narrowed, factorised, quantised.

Each builder takes `base`, what builds the network before: a section with `_target_`, its arguments and
`_partial_: true`. The networks have the paths of their base, so that its stages stay valid.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]  # missing in the stub
from torch.nn.utils import parametrize

from kdbench.config.sections import ModelConfig
from kdbench.models.builders import call_builder
from kdbench.models.network import LogitsKey, Network, StageSource
from kdbench.models.onnx_graph import check_self_contained, run_graph
from kdbench.system.random import seeded

FLOATS = {"fp16": torch.float16, "bf16": torch.bfloat16}
"""Types of `half_precision`."""
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
"""Layers whose weights are compressed."""

MASKED = f"{__name__}.masked"
"""Import path of the builder of masked networks."""

Base = partial[Any]
"""Builder of the network before, with its arguments."""


def base_of(model: ModelConfig) -> dict[str, Any]:
    """Return the argument `base` for a network."""
    return {"_target_": model.target, **model.arguments, "_partial_": True}


def build_base(base: Base, num_classes: int) -> nn.Module:
    """Return a fresh network of the argument `base`.

    Raises:
        ValueError: it has layers whose sizes its first images decide.
    """
    body = call_builder(base.func, base.keywords, num_classes)
    lazy = [name for name, p in body.named_parameters() if isinstance(p, UninitializedTensorMixin)]
    if lazy:
        raise ValueError(f"{lazy[0]} is lazy; a network can be compressed where its layers are given their sizes")
    return body


def weighted_layers(body: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield path and module of each convolution and linear layer, each once."""
    return ((path, module) for path, module in body.named_modules() if isinstance(module, WEIGHTED))


# Masks


class Mask(nn.Module):
    """Parametrisation that multiplies a weight by zeros and ones, so that training keeps the zeros."""

    mask: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", torch.ones_like(weight, dtype=torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def masked(base: Base, num_classes: int) -> nn.Module:
    """Return a network with a mask on the weights of every convolution and linear layer; the masks are buffers."""
    body = build_base(base, num_classes)
    for _, module in list(weighted_layers(body)):
        parametrize.register_parametrization(module, "weight", Mask(module.weight))
    return body


def without_masks(body: nn.Module) -> nn.Module:
    """Make the parametrised weights of a network plain ones, masked ones among them, in place, and return it.

    `remove_parametrizations` of torch would change the class that the network shares with its copies.
    """
    for module in [module for module in body.modules() if parametrize.is_parametrized(module)]:
        parametrized: Any = module
        values = {name: getattr(module, name).detach().clone() for name in parametrized.parametrizations}
        plain = parametrize.type_before_parametrizations(module)  # it reads the parametrisations
        del parametrized.parametrizations
        module.__class__ = plain
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value))
    return body


# Fewer channels


def narrowed(base: Base, layers: Mapping[str, Mapping[str, Any]], num_classes: int) -> nn.Module:
    """Return a network whose layers have other sizes than those of its base.

    Args:
        base: builder of the network before.
        layers: by path of a module the attributes that differ, such as `out_channels: 8`, and the shapes of its own
            parameters and buffers that differ, such as `weight: [8, 16, 3, 3]`.
        num_classes: outputs of the last layer.

    Raises:
        ValueError: a module has no such attribute, parameter or buffer, or a value is of another kind.
    """
    body = build_base(base, num_classes)
    for path, sizes in layers.items():
        module = body.get_submodule(path)
        for name, value in sizes.items():
            set_size(module, f"{path}.{name}", name, value)
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    return body


def set_size(module: nn.Module, path: str, name: str, value: Any) -> None:
    """Set an attribute of a module that is a whole number or several, or the shape of a parameter or buffer."""
    own = module._parameters.get(name, module._buffers.get(name))
    if own is not None:
        tensor = own.detach().new_zeros([int(size) for size in value])
        if name in module._parameters:
            module._parameters[name] = nn.Parameter(nn.init.normal_(tensor, std=0.02), own.requires_grad)
        else:
            module._buffers[name] = tensor
        return
    known = vars(module).get(name)
    if isinstance(known, tuple) and isinstance(value, list) and all(type(size) is int for size in value):
        setattr(module, name, tuple(value))
    elif type(known) is int and type(value) is int:
        setattr(module, name, value)
    else:
        raise ValueError(f"{path}={value!r}: the layer has no such size")


# Factors


def factorized(base: Base, ranks: Mapping[str, int], num_classes: int) -> nn.Module:
    """Return a network in which layers are replaced by two of lower rank.

    Args:
        base: builder of the network before.
        ranks: rank by path of the layer.
        num_classes: outputs of the last layer.

    Raises:
        ValueError: a path is no convolution or linear layer.
    """
    body = build_base(base, num_classes)
    for path, rank in ranks.items():
        layer = body.get_submodule(path)
        if type(layer) not in (nn.Conv2d, nn.Linear) or getattr(layer, "groups", 1) != 1:
            raise ValueError(f"ranks.{path}: it is no linear layer and no convolution of one group")
        body.set_submodule(path, factors(layer, rank))
    return body


def factors(layer: Any, rank: int) -> nn.Sequential:
    """Return two fresh layers of the shapes of a factorised one: the first to `rank` channels, the second from them."""
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        return nn.Sequential(
            nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=bias)
        )
    first = nn.Conv2d(
        layer.in_channels, rank, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
        bias=False, padding_mode=layer.padding_mode,
    )  # fmt: skip
    return nn.Sequential(first, nn.Conv2d(rank, layer.out_channels, 1, bias=bias))


# Number formats


def half_precision(base: Base, dtype: str, num_classes: int) -> nn.Module:
    """Return a network that stores and computes everything in half precision; images and logits are float32.

    Args:
        base: builder of the network before.
        dtype: one of `FLOATS`.
        num_classes: outputs of the last layer.
    """
    body = build_base(base, num_classes).to(FLOATS[dtype]).requires_grad_(False)
    body.register_forward_pre_hook(ToType(FLOATS[dtype]))
    body.register_forward_hook(FromType())
    return body


class ToType:
    """Hook before a forward pass: converts the images."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0].to(self.dtype), *inputs[1:])


class FromType:
    """Hook after a forward pass: converts what the network returns to float32."""

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> Any:
        return as_float(output)


def as_float(value: Any) -> Any:
    """Return what a network returned with its tensors in float32: a tensor, or lists, tuples and mappings of some."""
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return {name: as_float(inner) for name, inner in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(as_float, value))
    return type(value)(map(as_float, value)) if isinstance(value, list | tuple) else value


def quantized(base: Base, num_bytes: int, logits_of_base: Any, num_classes: int) -> nn.Module:
    """Return a network that is an ONNX graph with 8-bit weights and activations.

    Args:
        base: builder of the network before.
        num_bytes: size of the graph, which is the content of the weights file.
        logits_of_base: place of the logits in what the base returns: null, a text, a list, or {module: PATH}.
        num_classes: outputs of the last layer.
    """
    with seeded(0):
        return QuantizedNetwork(build_base(base, num_classes), num_bytes, logits_source(logits_of_base))


def logits_source(place: Any) -> StageSource | LogitsKey:
    """Return the place of the logits as `Network` takes it."""
    if isinstance(place, Mapping):
        return StageSource("output", str(place["module"]))
    return tuple(map(str, place)) if isinstance(place, Sequence) and not isinstance(place, str) else place


class QuantizedNetwork(nn.Module):
    """A network that ONNX Runtime computes. Its only weights are the bytes of the graph.

    Without a graph, as when it is built, it computes its base with weights from seed 0: sizes and multiply-accumulates
    are those of the base.

    Args:
        base: network before, fresh.
        num_bytes: size of the graph.
        logits: place of the logits in what the base returns.
    """

    graph: Tensor

    def __init__(self, base: nn.Module, num_bytes: int, logits: StageSource | LogitsKey) -> None:
        super().__init__()
        self.register_buffer("graph", torch.zeros(num_bytes, dtype=torch.uint8))
        self.content = b""
        """The graph as bytes, once it was loaded."""
        self.base = Network(base.requires_grad_(False), {}, logits, "")
        self.register_state_dict_post_hook(keep_graph)
        self.register_load_state_dict_pre_hook(add_base)
        self.register_load_state_dict_post_hook(read_graph)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [N, C] float32 of normalised images [N, C, H, W]."""
        return run_graph(self.content, images) if self.content else self.base(images).logits


def keep_graph(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Remove the weights of the base from a state dict."""
    for name in [name for name in state if name.startswith(f"{prefix}base.")]:
        del state[name]


def add_base(module: QuantizedNetwork, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Add the weights of the base to a state dict that is being loaded."""
    state.update({f"{prefix}base.{name}": value for name, value in module.base.state_dict().items()})


def read_graph(module: QuantizedNetwork, _: Any) -> None:
    """Keep the bytes of a graph that was loaded."""
    module.content = module.graph.cpu().numpy().tobytes() if bool(module.graph.any()) else b""
    if module.content:
        check_self_contained(module.content)
