"""The reference trainer that kdbench is compared to, as studies of distillation usually write it.

PIL transforms in worker processes, float32, images as N, C, H, W, a step that reads every term's value, and a teacher
that computes every batch anew, without fused batch norm.
"""

from collections.abc import Generator, Iterable, Iterator
from typing import Generic, TypeVar

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from kdbench.config import RecipeConfig, RuntimeConfig
from kdbench.data.batches import Batch, in_memory_format
from kdbench.data.dataset import Dataset
from kdbench.methods.base import Method, Progress, TeacherOutput
from kdbench.models import Network
from kdbench.system.device import autocast
from kdbench.train.learner import TeacherSource

T = TypeVar("T")


class PilImages(torch.utils.data.Dataset[tuple[Tensor, int, int]]):
    """A training set one image at a time, augmented by torchvision.

    Args:
        dataset: data set.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.images = dataset.train.images.cpu().numpy()
        self.labels = dataset.train.labels.tolist()
        self.indices = dataset.train.indices.tolist()
        views = dataset.views
        augmentation = [
            *([transforms.RandomCrop(dataset.spec.input_shape[1:], padding=views.padding)] if views.padding else []),
            *([transforms.RandomHorizontalFlip()] if views.flip else []),
        ]
        normalise = transforms.Normalize(dataset.mean.tolist(), dataset.std.tolist())
        self.transform = transforms.Compose([*augmentation, transforms.ToTensor(), normalise])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int, int]:
        return self.transform(Image.fromarray(self.images[row])), self.labels[row], self.indices[row]


class Prefetched(Generic[T]):
    """Items of an iterator that prefetches; `discard` drops what was prefetched.

    Args:
        items: the items, without end.
        prefetched: number of items that may be prefetched.
    """

    def __init__(self, items: Iterator[T], prefetched: int) -> None:
        self.items = items
        self.prefetched = prefetched
        self.ready: list[T] = []

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return self.ready.pop() if self.ready else next(self.items)

    def discard(self) -> None:
        """Drop the items that were prefetched, and have one item ready."""
        self.ready.clear()
        for _ in range(self.prefetched):
            next(self.items)
        self.ready.append(next(self.items))


def without_end(loader: Iterable[T]) -> Generator[T, None, None]:
    """Yield the items of a loader, epoch after epoch."""
    while True:
        yield from loader


class PilBatches:
    """Batches from worker processes, for every arm that takes them; the processes start with the first batch.

    Args:
        dataset: data set; its training images are used.
        batch_size: size of every batch; the rest at the end of an epoch is dropped.
        device: device of the batches.
        workers: number of processes.
    """

    def __init__(self, dataset: Dataset, batch_size: int, device: str, workers: int) -> None:
        self.device = device
        self.view = dataset.views.identity
        loader = DataLoader(
            PilImages(dataset), batch_size, shuffle=True, num_workers=workers, drop_last=True,
            pin_memory=device != "cpu", persistent_workers=workers > 0,
        )  # fmt: skip
        self.endless = without_end(loader)
        self.loaded = Prefetched(self.endless, 2 * workers)

    def batches(self, channels_last: bool) -> Iterator[Batch]:
        """Yield batches without end."""
        for loaded in self.loaded:
            images, labels, indices = (values.to(self.device, non_blocking=True) for values in loaded)
            views = torch.full_like(labels, self.view)  # a transform does not return its choice
            yield Batch(in_memory_format(images, channels_last), labels, indices, views)

    def discard_prefetched(self) -> None:
        """Drop the batches that the workers made while another arm was measured, and have one batch ready."""
        self.loaded.discard()

    def close(self) -> None:
        """Stop the worker processes."""
        # They end with the last reference to the loader, which is the generator's. The garbage collector would break
        # the loader's queues first, and then wait five seconds for each process.
        self.endless.close()


class ReferenceTrainer:
    """Forward pass, loss, backward pass, clipping, SGD, then the value of every term on the host, step by step.

    Args:
        student: network on its device.
        method: method on the same device.
        recipe: optimiser and clipping.
        runtime: resolved runtime.
    """

    def __init__(self, student: Network, method: Method, recipe: RecipeConfig, runtime: RuntimeConfig) -> None:
        self.student = student.train()
        self.method = method.train()
        self.recipe = recipe
        self.runtime = runtime
        self.parameters = [*student.parameters(), *method.parameters()]
        self.optimizer = torch.optim.SGD(
            self.parameters, lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov,
            weight_decay=recipe.weight_decay,
        )  # fmt: skip
        self.progress = Progress(torch.zeros((), device=runtime.device), recipe.epochs)
        self.sums: dict[str, float] = {}

    def train(self, batches: Iterable[Batch], teacher: TeacherSource) -> None:
        """Train on batches, with a teacher's output for each."""
        for batch in batches:
            self.step(batch, teacher(batch))

    def step(self, batch: Batch, teacher_output: TeacherOutput | None) -> None:
        """Train on one batch."""
        self.optimizer.zero_grad()
        with autocast(self.runtime):
            output = self.student(batch.images)
            teachers = [teacher_output.select(self.method.requires)] if teacher_output else []
            terms, _ = self.method(output, teachers, batch, self.progress)
        terms["total"].backward()
        if self.recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_norm)
        self.optimizer.step()
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + term.item() * len(batch.labels)
        correct = (output.logits.argmax(dim=1) == batch.labels).sum().item()
        self.sums["correct"] = self.sums.get("correct", 0.0) + correct
