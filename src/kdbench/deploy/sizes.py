"""Size of a network on disk."""

import gzip

from safetensors.torch import save
from torch import nn

from kdbench.models.weights import storable


def plain_weights(module: nn.Module) -> bytes:
    """Return the weights of a plain module as a safetensors file, without metadata."""
    return save(storable(module.state_dict()))


def compressed_size(content: bytes) -> int:
    """Return the size of a file in bytes after gzip at its highest level."""
    return len(gzip.compress(content, compresslevel=9, mtime=0))
