"""Logits of a network on a split."""

import torch
from torch import Tensor

from kdbench.config import RuntimeConfig
from kdbench.data.batches import plain_batches
from kdbench.data.dataset import Dataset
from kdbench.data.source import Split
from kdbench.errors import RunError
from kdbench.methods.base import Method
from kdbench.models import Network
from kdbench.system.device import autocast, kind_of
from kdbench.system.random import seeded
from kdbench.system.signals import raise_if_requested
from kdbench.system.world import World

EVALUATION_BATCH = {"cpu": 128, "cuda": 1000, "mps": 1000}
"""Images of 32 x 32 of a forward pass per kind of device, as many as make it fast (docs/performance.md; for mps not
measured)."""
FEWEST = 16
"""Images of a forward pass, however large they are."""


def evaluation_batch(device: str, image_shape: tuple[int, int, int]) -> int:
    """Return the number of images of a forward pass: as many pixels as those of `EVALUATION_BATCH`, and no more images.

    Args:
        device: cpu, cuda:0, ...
        image_shape: C, H, W of an image.
    """
    most = EVALUATION_BATCH[kind_of(device)]
    return max(FEWEST, min(most, most * 32 * 32 // (image_shape[1] * image_shape[2])))


@torch.no_grad()
def predict(
    network: Network,
    dataset: Dataset,
    split: Split,
    runtime: RuntimeConfig,
    method: Method | None = None,
    world: World | None = None,
) -> Tensor:
    """Return the logits [N, C] float32, on the CPU, of a split's images in order. The network's mode is restored.

    Args:
        network: the network, on its device.
        dataset: data set of the split, for its normalisation.
        split: the images.
        runtime: resolved runtime.
        method: method whose `predict` gives the logits; None takes the network's own.
        world: processes that each compute some of the batches; None computes all of them here.

    Raises:
        Interrupted: a stop was requested meanwhile; several processes leave together after it.
    """
    modules = [module for module in (network, method) if module is not None]
    were_training = [module.training for module in modules]
    for module in modules:
        module.eval()
    batch_size = evaluation_batch(dataset.device, dataset.spec.input_shape)
    logits = torch.zeros(len(split), dataset.spec.num_classes, device=dataset.device)
    with autocast(runtime), seeded(0):  # for networks that draw random numbers in evaluation mode too
        for number, images in enumerate(plain_batches(dataset, split, batch_size, runtime.channels_last)):
            if world is None:
                raise_if_requested()
            elif number % world.size != world.rank:
                continue
            output = network(images)
            start = number * batch_size
            logits[start : start + len(images)] = (method.predict(output) if method else output.logits).float()
    for module, was_training in zip(modules, were_training, strict=True):
        module.train(was_training)
    return (world.add(logits) if world else logits).cpu()


def check_finite(logits: Tensor, epoch: int) -> Tensor:
    """Return the logits, if all are finite: weights of an epoch whose every loss was finite can still overflow.

    Raises:
        RunError: some are not.
    """
    if not bool(logits.isfinite().all()):
        raise RunError(
            f"epoch {epoch}: the weights give logits that are not finite. "
            "Lower recipe.lr or the method's weights, or use runtime.precision=fp32",
            code="not_finite",
            key="recipe.lr",
        )
    return logits
