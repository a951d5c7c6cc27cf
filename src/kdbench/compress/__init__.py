"""Compressions of trained networks: what is removed or rounded. Export and measurement: `kdbench.deploy`."""

from kdbench.compress.base import Compressed, Compression, Subject

__all__ = ["Compressed", "Compression", "Subject"]
