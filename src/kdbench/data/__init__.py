"""Data sets as uint8 tensors on the device, their splits, and the batches of an epoch."""

from kdbench.data.base import ImageData
from kdbench.data.batches import Batch, Batches
from kdbench.data.dataset import Dataset, load, spec_of
from kdbench.data.source import DataSpec, Source, Split

__all__ = ["Batch", "Batches", "DataSpec", "Dataset", "ImageData", "Source", "Split", "load", "spec_of"]
