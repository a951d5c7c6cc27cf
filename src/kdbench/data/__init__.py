"""Data sets as uint8 tensors on the device, their splits, and the batches an epoch is made of."""

from kdbench.data.batches import Batch, Batches
from kdbench.data.dataset import Dataset, load
from kdbench.data.source import Split

__all__ = ["Batch", "Batches", "Dataset", "Split", "load"]
