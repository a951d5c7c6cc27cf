"""Networks for inference only: batch norm fused into the convolutions, weights in the precision that is used."""

import copy
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from kdbench.models.network import Network


def fuse_batch_norm(network: Network, dtype: torch.dtype | None = None, read: Collection[str] = ()) -> Network:
    """Return a copy that computes the same as `network` in evaluation mode, with fewer operations. It cannot train.

    In evaluation mode batch norm scales and shifts channels by constants, and the convolution before it can do the
    same. A convolution whose own output is read elsewhere too, for example as a stage, keeps its batch norm.

    Args:
        network: the network, left unchanged.
        dtype: type to which autocast would convert the weights of convolutions and linear layers at every call; they
            are stored in it, which gives the same bits. None keeps float32.
        read: nodes that may be read as stages, by any method. What is fused, and so how outputs are rounded, then does
            not depend on which of them is read.

    Returns:
        A network on the same device and in the same memory format, with other values in its weights.
    """
    source: Any = copy.deepcopy(network.body).eval()
    # torchvision's module has a graph per mode; a plain one holds the graph for evaluation only.
    body = fx.GraphModule(source, source.graph)
    modules = dict(body.named_modules())
    calls = Counter(str(node.target) for node in body.graph.nodes if node.op == "call_module")
    for node in list(body.graph.nodes):
        convolution = convolution_before(node, modules, calls)
        if convolution is not None and is_read(str(convolution.target), str(node.target), read):
            continue
        if convolution is not None:
            target = str(convolution.target)
            modules[target] = fuse_conv_bn_eval(modules[target], modules[str(node.target)])
            body.set_submodule(target, modules[target])
            node.replace_all_uses_with(convolution)
            body.graph.erase_node(node)
    body.delete_all_unused_submodules()
    body.recompile()
    for module in body.modules():
        if dtype is not None and isinstance(module, nn.Conv2d | nn.Linear):
            module.to(dtype)
    return Network(body.requires_grad_(False), network.logits, network.stages, network.architecture).eval()


def is_read(convolution: str, norm: str, read: Collection[str]) -> bool:
    """Return whether a node is the convolution, or a module that ends with it and without the batch norm."""

    def within(module: str, node: str) -> bool:
        return module == node or module.startswith(f"{node}.")

    return any(within(convolution, node) and not within(norm, node) for node in read)


def convolution_before(node: fx.Node, modules: Mapping[str, nn.Module], calls: Counter[str]) -> fx.Node | None:
    """Return the convolution into which the batch norm of `node` can be fused, if there is one."""
    if node.op != "call_module" or not isinstance(modules[str(node.target)], nn.BatchNorm2d):
        return None
    before = node.args[0]
    if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
        return None
    norm, convolution = modules[str(node.target)], modules[str(before.target)]
    fixed = norm.running_mean is not None  # otherwise it normalises with batch statistics, in evaluation mode too
    called_once = calls[str(node.target)] == calls[str(before.target)] == 1
    return before if isinstance(convolution, nn.Conv2d) and fixed and called_once else None
