"""Networks by name; each returns `Output(logits, features)`."""

from kdbench.models.build import build
from kdbench.models.describe import ModelSummary, summarize
from kdbench.models.fuse import fuse_batch_norm
from kdbench.models.network import Network, Output
from kdbench.models.pretrained import load_pretrained

__all__ = ["ModelSummary", "Network", "Output", "build", "fuse_batch_norm", "load_pretrained", "summarize"]
