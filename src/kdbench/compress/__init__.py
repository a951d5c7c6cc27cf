"""Compressions of trained networks: what is removed or rounded. Export and measurement: `kdbench.deploy`."""

from kdbench.compress.base import Compressed, Compression, Subject, fault_of_order

__all__ = ["Compressed", "Compression", "Subject", "fault_of_order"]
