"""Contrastive representation distillation (CRD): an image's embedding identifies its teacher embedding among others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdbench.config.schema import number, whole
from kdbench.data.batches import Batch
from kdbench.errors import ConfigError
from kdbench.methods.base import (
    LossOutput,
    LossWeights,
    Method,
    MethodContext,
    Progress,
    TeacherOutput,
    at_least_float32,
    ce_plus_kd,
    full_precision,
)
from kdbench.methods.pairing import StagePairs, stage_names
from kdbench.methods.rows import rows_of_indices
from kdbench.methods.vectors import unit_vectors
from kdbench.models import Output


@full_precision
def noise_contrastive(scores: Tensor, log_normalizer: Tensor | float, num_images: int) -> Tensor:
    """Return the noise-contrastive loss of one positive and m negatives per image.

        -mean_B (log D(x_0) + sum over j in 1..m of log(1 - D(x_j))),    D(x) = x / (x + m / N),    x = exp(score) / Z

    Args:
        scores: [B, 1 + m]: inner products divided by the temperature, the positive first.
        log_normalizer: log Z.
        num_images: N, number of images from which negatives are drawn: 1 / N is the probability of each.

    Returns:
        Scalar in nats, at least 0: a sum over the negatives, not a mean.

    Source: Tian et al. 2020 (arXiv 1910.10699), equations 10 and 19; Z and N as in the authors' code.
    """
    negatives = scores.shape[1] - 1
    # D(x) is the sigmoid of log x - log(m / N). No exponential of a score is formed, so nothing overflows or becomes
    # log(0), and the authors' 1e-7 in the denominators is not needed.
    odds = scores - (log_normalizer + math.log(negatives / num_images))
    return -(F.logsigmoid(odds[:, 0]) + F.logsigmoid(-odds[:, 1:]).sum(1)).mean()


@full_precision
def bank_scores(anchors: Tensor, bank: Tensor, columns: Tensor, temperature: float) -> Tensor:
    """Return the inner products of embeddings with some rows of a memory bank, divided by a temperature.

    The products with the whole bank are one matrix product; gathering them is far cheaper than gathering
    B * (1 + m) vectors of the bank.

    Args:
        anchors: [B, D].
        bank: [N, D].
        columns: [B, 1 + m] int64: rows of the bank for each anchor.
        temperature: divisor, above 0.

    Returns:
        [B, 1 + m].
    """
    return (anchors / temperature @ bank.T).gather(1, columns)


def estimate_log_normalizer(scores: Tensor, num_images: int) -> Tensor:
    """Return log Z, a scalar without gradient: Z is num_images times the mean of exp(scores)."""
    return scores.detach().flatten().logsumexp(0) + math.log(num_images / scores.numel())


class PendingUpdate(NamedTuple):
    """State after a step, if the optimiser takes it."""

    rows: Tensor
    """[B] int64: rows of the batch's images in the banks."""
    student: Tensor
    """[B, D]: embeddings of the batch, of unit length."""
    teacher: Tensor
    log_normalizers: Tensor
    """[2]: log Z of the student's and of the teacher's anchors."""


class ContrastiveDistillation(Method):
    """Total = ce_weight * CE + kd_weight * (`noise_contrastive` of the student's + of the teacher's anchors).

    Student and teacher each have a trained linear embedding, normalised to unit length, and a memory bank with one
    vector per training image. An anchor of one side is compared with the bank of the other: the row of the same image
    is its positive, rows of images of other classes are its negatives. Negatives are drawn independently and
    uniformly with replacement; the authors draw them without. Z of each side comes from the first batch and stays.
    After a step the rows of the batch become momentum * row + (1 - momentum) * embedding, normalised.

    The scores take memory for 2 * B * N numbers, the banks for 2 * N * D.
    """

    student_bank: Tensor
    teacher_bank: Tensor
    log_normalizers: Tensor
    normalized: Tensor
    row_of: Tensor
    class_starts: Tensor
    class_sizes: Tensor

    @dataclass
    class Config(LossWeights):
        """Keys of the method's YAML file."""

        negatives: int = whole(1)
        width: int = whole(1)
        temperature: float = number(0, 1000, above=True)
        momentum: float = number(0, 1)
        pairs: dict[str, str] | None = stage_names()

    role = "distilled"
    needs_teacher = True
    invariants = ("batch_order",)
    deferred = (
        "student_bank",
        "teacher_bank",
        "log_normalizers",
        "normalized",
        "row_of",
        "class_starts",
        "class_sizes",
    )

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        self.pairs = StagePairs(config.pairs, context, "pooled", kind="embeddings")
        pair = self.pairs.only()
        self.student_embedding = nn.Linear(pair.student_shape[0], config.width)
        self.teacher_embedding = nn.Linear(pair.teacher_shape[0], config.width)
        self.requires = self.pairs.requires(whole_batch=True)
        self.num_images = len(context.labels)
        sizes = torch.bincount(context.labels, minlength=context.data.num_classes)
        check_negatives(config.negatives, sizes)
        # Rows of the banks are ordered by class: the negatives of a class are all rows but one block.
        order = context.labels.argsort(stable=True)
        self.register_buffer("row_of", rows_of_indices(context.indices[order]), persistent=False)
        self.register_buffer("class_starts", sizes.cumsum(0) - sizes, persistent=False)
        self.register_buffer("class_sizes", sizes, persistent=False)
        bound = 1 / math.sqrt(config.width / 3)
        for name in ("student_bank", "teacher_bank"):
            uniform = torch.rand(self.num_images, config.width, generator=context.generator)
            self.register_buffer(name, bound * (2 * uniform - 1))
        self.register_buffer("log_normalizers", torch.zeros(2))
        self.register_buffer("normalized", torch.tensor(False))
        self.pending: PendingUpdate | None = None

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce` and `kd`; both losses before their weights."""
        (own,), (target,) = self.pairs(student, teachers[0])
        of_student = unit_vectors(at_least_float32(self.student_embedding(own)))
        of_teacher = unit_vectors(at_least_float32(self.teacher_embedding(target.detach())))
        rows = self.row_of[batch.indices]
        columns = torch.cat([rows[:, None], self.draw_negatives(batch.labels)], dim=1)
        scores = [
            bank_scores(of_student, self.teacher_bank, columns, self.config.temperature),
            bank_scores(of_teacher, self.student_bank, columns, self.config.temperature),
        ]
        estimates = torch.stack([estimate_log_normalizer(values, self.num_images) for values in scores])
        log_normalizers = torch.where(self.normalized, self.log_normalizers, estimates)
        kd = noise_contrastive(scores[0], log_normalizers[0], self.num_images) + noise_contrastive(
            scores[1], log_normalizers[1], self.num_images
        )
        self.pending = PendingUpdate(rows, of_student.detach(), of_teacher.detach(), log_normalizers)
        return ce_plus_kd(self.config, student, batch, kd)

    def draw_negatives(self, labels: Tensor) -> Tensor:
        """Return rows of images of other classes [B, negatives] int64 for labels [B]."""
        sizes, starts = self.class_sizes[labels][:, None], self.class_starts[labels][:, None]
        # The remainder makes some rows more probable than others by at most a factor of 1 + N / 2^31. No larger range:
        # MPS draws 32 bits.
        drawn = torch.randint(2**31 - 1, (len(labels), self.config.negatives), device=labels.device)
        others = drawn % (self.num_images - sizes)
        return others + torch.where(others >= starts, sizes, 0)

    @torch.no_grad()
    def finish_step(self, skipped: Tensor) -> None:
        """Update the rows of the batch in both banks, and keep Z, unless the step was skipped."""
        assert self.pending is not None, "finish_step was called without forward"
        rows, of_student, of_teacher, log_normalizers = self.pending
        momentum, taken = self.config.momentum, skipped == 0
        for bank, embeddings in ((self.student_bank, of_student), (self.teacher_bank, of_teacher)):
            before = bank[rows]
            after = unit_vectors(momentum * before + (1 - momentum) * embeddings)
            bank.index_copy_(0, rows, torch.where(taken, after, before))
        self.log_normalizers.copy_(torch.where(taken, log_normalizers, self.log_normalizers))
        self.normalized.logical_or_(taken)
        self.pending = None


def check_negatives(negatives: int, class_sizes: Tensor) -> None:
    """Check that every class has enough images of other classes to draw negatives from.

    Args:
        negatives: number of negatives per image.
        class_sizes: [C] int64: numbers of training images; all 0 where none are known.

    Raises:
        ConfigError: a class has fewer.
    """
    images, largest = int(class_sizes.sum()), int(class_sizes.argmax())
    fewest = images - int(class_sizes[largest])
    if images and fewest < negatives:
        raise ConfigError(
            f"method.negatives is {negatives}, and only {fewest} of the {images} training images are not of class "
            f"{largest}; use at most {fewest}",
            code="too_few_images",
            key="method.negatives",
        )
