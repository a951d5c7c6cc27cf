"""The ONNX graph of a finished run's network."""

from kdbench.data.source import DataSpec
from kdbench.methods.base import Method
from kdbench.models import Network
from kdbench.models.compressed import QuantizedNetwork
from kdbench.models.onnx_graph import to_onnx
from kdbench.models.plain import plain_module


def graph_of(network: Network, method: Method | None, spec: DataSpec) -> bytes:
    """Return a network as an ONNX graph: that of an 8-bit network as it is, any other exported.

    Args:
        network: trained network.
        method: its method, where that takes part in predictions.
        spec: shape of the images.

    Raises:
        ConfigError: see `to_onnx`.
    """
    if isinstance(network.body, QuantizedNetwork):
        return network.body.content
    return to_onnx(plain_module(network, method), spec.input_shape)
