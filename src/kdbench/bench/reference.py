"""The trainer that kdbench is measured against, as studies of distillation usually write it.

PIL transforms in worker processes, float32, images as N, C, H, W, a step that asks for every term's value, and a
teacher that computes every batch anew, batch norm and all.
"""

from collections.abc import Iterable, Iterator

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision import transforms

from kdbench.config import RecipeConfig, RuntimeConfig
from kdbench.data.batches import Batch, in_memory_format
from kdbench.data.dataset import Dataset
from kdbench.data.views import IDENTITY_VIEW
from kdbench.methods.method import Knowledge, Method
from kdbench.models import Network
from kdbench.runtime import autocast
from kdbench.train.steps import Answers


class PilImages(torch.utils.data.Dataset[tuple[Tensor, int, int]]):
    """A training set one image at a time, augmented by torchvision."""

    def __init__(self, dataset: Dataset, augment: bool) -> None:
        self.images = dataset.train.images.cpu().numpy()
        self.labels = dataset.train.labels.tolist()
        self.indices = dataset.train.indices.tolist()
        augmentation = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if augment else []
        normalise = transforms.Normalize(dataset.mean.tolist(), dataset.std.tolist())
        self.transform = transforms.Compose([*augmentation, transforms.ToTensor(), normalise])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int, int]:
        return self.transform(Image.fromarray(self.images[row])), self.labels[row], self.indices[row]


class PilBatches:
    """Batches from worker processes, for every arm that takes them; begun with the first batch.

    Args:
        dataset: Its training images.
        batch_size: Of every batch; what is left at the end of an epoch is dropped.
        augment: Crop and flip.
        device: Where the batches go.
        workers: Processes.
    """

    def __init__(self, dataset: Dataset, batch_size: int, augment: bool, device: str, workers: int) -> None:
        self.device = device
        self.prefetched = 2 * workers
        self.loader = DataLoader(
            PilImages(dataset, augment), batch_size, shuffle=True, num_workers=workers, drop_last=True,
            pin_memory=device != "cpu", persistent_workers=workers > 0,
        )  # fmt: skip
        self.loaded = self.endless()
        self.ready: list[tuple[Tensor, Tensor, Tensor]] = []

    def endless(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        while True:
            yield from self.loader

    def batches(self, channels_last: bool) -> Iterator[Batch]:
        """Without end."""
        while True:
            loaded = self.ready.pop() if self.ready else next(self.loaded)
            images, labels, indices = (values.to(self.device, non_blocking=True) for values in loaded)
            views = torch.full_like(labels, IDENTITY_VIEW)  # a transform does not say which it chose
            yield Batch(in_memory_format(images, channels_last), labels, indices, views)

    def begin_anew(self) -> None:
        """Forget what the workers made while somebody else was measured, and have one batch ready."""
        self.ready.clear()
        for _ in range(self.prefetched):
            next(self.loaded)
        self.ready.append(next(self.loaded))


class ReferenceTrainer:
    """Forward, loss, backward, clipping, SGD, then the value of every term on the host, step by step."""

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
        self.sums: dict[str, float] = {}

    def train(self, batches: Iterable[Batch], teacher: Answers) -> None:
        for batch in batches:
            self.step(batch, teacher(batch))

    def step(self, batch: Batch, knowledge: Knowledge | None) -> None:
        self.optimizer.zero_grad()
        with autocast(self.runtime):
            output = self.student(batch.images)
            terms = self.method(output, knowledge, batch)
        terms["total"].backward()
        if self.recipe.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip_norm)
        self.optimizer.step()
        for name, term in terms.items():
            self.sums[name] = self.sums.get(name, 0.0) + term.item() * len(batch.labels)
        right = (output.logits.argmax(dim=1) == batch.labels).sum().item()
        self.sums["right"] = self.sums.get("right", 0.0) + right
