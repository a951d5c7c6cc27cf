"""Data sets as uint8 tensors on the device, their splits, and the batches an epoch is made of."""

from kdbench.data.batches import Batch, Batches
from kdbench.data.dataset import Dataset, Split, load

__all__ = ["Batch", "Batches", "Dataset", "Split", "load"]
