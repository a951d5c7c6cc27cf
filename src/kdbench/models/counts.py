"""Counts of a network's weights: those that are not zero, and the share of zeros."""

import numpy as np
from torch import nn

from kdbench.models.compressed import QuantizedNetwork, weighted_layers, without_masks
from kdbench.models.network import Network
from kdbench.models.onnx_graph import extra


def count_weights(network: Network) -> tuple[int, float]:
    """Return the number of parameters that are not zero, and the share of zeros among the weights of its layers.

    Layers are convolutions and linear layers, without their biases. Of an 8-bit network the integers of the graph
    count, in which batch norm is folded into convolutions.

    Args:
        network: trained network.
    """
    if isinstance(network.body, QuantizedNetwork):
        return count_integers(network.body.content)
    body = without_masks(network.plain_copy())
    weights = [module.weight for _, module in weighted_layers(body) if isinstance(module.weight, nn.Parameter)]
    total, zeros = sum(w.numel() for w in weights), sum(int((w == 0).sum()) for w in weights)
    return sum(int((p != 0).sum()) for p in body.parameters()), zeros / total if total else 0.0


def count_integers(graph: bytes) -> tuple[int, float]:
    """Return the numbers of `count_weights` for a graph with 8-bit weights and what stays in 32 bits."""
    with extra("the weights of an ONNX graph", "onnx"):
        import onnx
        from onnx.numpy_helper import to_array
    model = onnx.load_from_string(graph).graph
    quantisations = [node for node in model.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    scales = {name for node in quantisations for name in node.input[1:]}
    arrays = [to_array(tensor) for tensor in model.initializer if tensor.name not in scales]
    weights = [array for array in arrays if array.dtype == np.int8]
    others = [array for array in arrays if array.dtype in (np.int32, np.float32, np.uint8)]  # int64: shapes and axes
    total, nonzero = sum(w.size for w in weights), sum(int(np.count_nonzero(w)) for w in weights)
    return nonzero + sum(int(np.count_nonzero(a)) for a in others), 1 - nonzero / total if total else 0.0
