"""Execution of networks outside of kdbench's own classes: what they take, and ONNX Runtime as a function."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kdbench.data import Dataset
from kdbench.data.batches import plain_batches
from kdbench.data.source import Split
from kdbench.models.onnx_graph import INPUT, session_of
from kdbench.system.signals import raise_if_requested
from kdbench.train.evaluate import evaluation_batch

Execute = Callable[[Tensor], Tensor]
"""Returns the logits [N, C] of normalised images [N, C, H, W], both float32, contiguous and on the CPU."""


def onnx_execution(graph: bytes, threads: int) -> Execute:
    """Return a function that executes an ONNX graph. Errors: see `session_of`."""
    session = session_of(graph, threads)
    return lambda images: torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])


def batches_of(dataset: Dataset, split: Split) -> Iterator[Tensor]:
    """Yield the normalised images of a split in order, as an `Execute` takes them.

    Raises:
        Interrupted: a stop was requested meanwhile.
    """
    size = evaluation_batch("cpu", dataset.spec.input_shape)
    for batch in plain_batches(dataset, split, size, channels_last=False):
        raise_if_requested()
        yield batch.float().cpu().contiguous()
