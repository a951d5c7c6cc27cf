"""Networks by name; each returns `Output(logits, features)`."""

from kdbench.models.fuse import fuse_batch_norm
from kdbench.models.network import ModelSummary, Network, Output, build, summarize

__all__ = ["ModelSummary", "Network", "Output", "build", "fuse_batch_norm", "summarize"]
