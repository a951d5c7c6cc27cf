"""Networks for inference only: batch norm fused into the convolutions, weights in the precision that is used."""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kdbench.models.network import Network
from kdbench.models.record import ForwardRecord


def fuse_batch_norm(network: Network, dtype: torch.dtype | None = None) -> Network:
    """Return a copy that computes the same as `network` in evaluation mode, with fewer operations. It cannot train.

    In evaluation mode batch norm scales and shifts channels by constants, and the convolution before it can do the
    same. A convolution whose own output is read elsewhere too, for example as a stage, keeps its batch norm.

    Args:
        network: the network, left unchanged.
        dtype: type to which autocast would convert the weights of convolutions and linear layers at every call; they
            are stored in it, which gives the same bits. None keeps float32.

    Returns:
        A network on the same device and in the same memory format, with other values in its weights; the network itself
        where torch cannot copy it.
    """
    try:
        body = fused(network.plain_copy().eval(), network.fusable)
    except RuntimeError:  # old-style weight norm: torch cannot copy the tensors that it computes
        return network.requires_grad_(False).eval()
    for module in body.modules():
        if dtype is not None and type(module) in (nn.Conv2d, nn.Linear):
            module.to(dtype)
    return network.with_body(body.requires_grad_(False)).eval()


def fused(body: Any, pairs: Collection[tuple[str, str]]) -> nn.Module:
    """Return a module in evaluation mode after its convolutions took over the batch norms of `pairs`, in place."""
    for convolution, norm in pairs:
        body.set_submodule(convolution, fuse_conv_bn_eval(body.get_submodule(convolution), body.get_submodule(norm)))
        body.set_submodule(norm, nn.Identity())
    return body


def find_fusable(body: nn.Module, record: ForwardRecord, stages: Collection[int]) -> Iterator[tuple[str, str]]:
    """Yield the paths of each convolution and the batch norm that can be fused into it.

    Args:
        body: network in evaluation mode.
        record: record of one forward pass of it.
        stages: ids of the tensors that may be read as stages, by any method. What is fused, and so how outputs are
            rounded, then does not depend on which of them is read.
    """
    shared = [path for path, module in body.named_modules(remove_duplicate=False) if record.paths.get(module) != path]
    made_by = {id(calls[0].output): path for path, calls in record.calls.items() if is_plain(body, path, nn.Conv2d)}
    for norm, calls in record.calls.items():
        if not is_plain(body, norm, nn.BatchNorm2d) or len(calls) != 1:
            continue
        read = calls[0].inputs[0] if calls[0].inputs else None
        convolution = made_by.get(id(read))
        if convolution is None or len(record.calls[convolution]) != 1 or {convolution, norm} & set(shared):
            continue
        weight = body.get_submodule(convolution).weight
        only_reader = record.readers[id(read)] == {norm} and record.readers[id(weight)] == {convolution}
        only_reader &= id(read) not in stages
        if only_reader and body.get_submodule(norm).running_mean is not None:  # otherwise it normalises with the batch
            made_by[id(calls[0].output)] = convolution  # another batch norm may follow
            yield convolution, norm


def is_plain(body: nn.Module, path: str, kind: type[nn.Module]) -> bool:
    """Return whether a module is of exactly one class, and no hook or parametrisation changes what it computes."""
    module = body.get_submodule(path)
    changed = module._forward_hooks or module._forward_pre_hooks or hasattr(module, "parametrizations")
    return type(module) is kind and not changed
