"""Data sets as uint8 tensors on the device, their splits, and the batches of an epoch."""

from kdbench.data.batches import Batch, Batches
from kdbench.data.dataset import Dataset, load
from kdbench.data.source import Split

__all__ = ["Batch", "Batches", "Dataset", "Split", "load"]
