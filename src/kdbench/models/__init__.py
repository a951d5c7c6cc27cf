"""Networks by name, every one of which answers `Output(logits, features)`."""

from kdbench.models.fold import folded
from kdbench.models.network import Description, Network, Output, build, describe

__all__ = ["Description", "Network", "Output", "build", "describe", "folded"]
