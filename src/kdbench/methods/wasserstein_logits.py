"""Wasserstein distillation of logits (WKD-L): transport between predictions, with a cost between classes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
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
    Requires,
    TeacherOutput,
    at_least_float32,
    ce_plus_kd,
    full_precision,
)
from kdbench.methods.pairing import StagePairs, as_map, flat_shape, map_shape, stage_names
from kdbench.methods.wasserstein_feature import cosine_decay
from kdbench.models import Network, Output

EPSILON = 1e-8
"""Constant of the cost and of the denominators, as in the authors' code: it is part of the value."""


@full_precision
def wasserstein_logits_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    cost: Tensor,
    temperature: float,
    weight: float | Tensor,
    regularization: float,
    iterations: int,
) -> Tensor:
    """Return a cross-entropy on the label's class, plus the transport cost between the other classes' probabilities.

        mean_B of -p_t[y] log p_s[y]  +  weight * mean_B of sum(plan * M),    p = softmax(z) in the first part

    plan is an entropic transport plan from the student's softmax p at temperature T over the C - 1 classes other than
    the label to the teacher's, q:

        M = max(cost, 0) + 1e-8,  K = exp(-M / regularization),  u = 1 / (C - 1),
        `iterations` times: v = q / (K' u + 1e-8), then u = p / (K v + 1e-8);    plan = diag(u) K diag(v)

    Gradient flows through all iterations. There is no factor T^2.

    Args:
        student_logits: [B, C].
        teacher_logits: [B, C]; no gradient flows into them.
        labels: [B] int64, y.
        cost: [C, C], cost of moving probability from the row's class to the column's, such as `category_cost`; no
            gradient flows into it.
        temperature: T of the transport, above 0.
        weight: weight of the transport alone, at least 0; a number, or a scalar on the device.
        regularization: strength of the entropic regularisation, in units of the cost; above 0.
        iterations: number of iterations, at least 1. The published 10 do not converge and are part of the value.

    Returns:
        Scalar, at least 0; it is not 0 for identical logits.

    Raises:
        ValueError: a cost that is not [C, C], or no iterations.

    Source: Lv et al. 2024 (arXiv 2412.08139), with constants and order of updates of the authors' code.
    """
    classes = student_logits.shape[1]
    if cost.shape != (classes, classes):
        raise ValueError(f"cost is {list(cost.shape)} and there are {classes} classes; it must be [C, C]")
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; it must be at least 1")
    teacher_logits = teacher_logits.detach()
    cost = cost.detach().to(student_logits.dtype)
    label = labels[:, None]
    others = torch.arange(classes, device=student_logits.device) != label
    target_s = F.log_softmax(student_logits, dim=1).gather(1, label)
    target_t = F.softmax(teacher_logits, dim=1).gather(1, label)
    transport = transport_cost(
        F.softmax((student_logits / temperature).masked_fill(~others, -torch.inf), dim=1),
        F.softmax((teacher_logits / temperature).masked_fill(~others, -torch.inf), dim=1),
        others,
        cost,
        regularization,
        iterations,
    )
    return -(target_t * target_s).mean() + weight * transport.mean()


def transport_cost(
    p: Tensor, q: Tensor, others: Tensor, cost: Tensor, regularization: float, iterations: int
) -> Tensor:
    """Return the cost [B] of moving p to q [B, C], which are 0 except for the classes `others` [B, C].

    As u and v are 0 for the label's class, it takes no part: its row and column need not be removed from the cost, and
    all images share one kernel. See `wasserstein_logits_kd`.
    """
    moved = cost.clamp(min=0) + EPSILON
    kernel = torch.exp(-moved / regularization)
    u = others.to(p.dtype) / others.sum(1, keepdim=True)
    for _ in range(iterations):
        v = q / (u @ kernel + EPSILON)
        u = p / (v @ kernel.T + EPSILON)
    return ((u @ (kernel * moved)) * v).sum(1)


@torch.no_grad()
def category_cost(class_features: Tensor | Sequence[Tensor], sharpen: float) -> Tensor:
    """Return the cost of moving probability between classes: small where their features are similar.

        cost_ij = 1 - exp(-sharpen * (1 - CKA_ij)),
        CKA_ij = norm_F(Y' X)^2 / (norm_F(X' X) norm_F(Y' Y)) of the centred features X of class i and Y of class j

    CKA compares the k-th sample of one class with the k-th of the other, so the value depends on the order of the
    samples within a class: build it without shuffling and without augmentation (`group_by_class`).

    Args:
        class_features: [C, n, d], or a list of C tensors [n, d]: n samples of each class.
        sharpen: at least 0; larger values bring the cost of all pairs nearer to 1.

    Returns:
        [C, C], symmetric, in [0, 1) up to rounding, 0 on the diagonal. The CKA of constant features counts as 0.

    Raises:
        ValueError: features that are not [n, d] of the same n and d for all classes.

    Source: Lv et al. 2024 (arXiv 2412.08139); linear CKA: Kornblith et al. 2019 (arXiv 1905.00414).
    """
    shapes = {tuple(features.shape) for features in class_features}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(
            f"class_features have the shapes {sorted(shapes)}; each must be [n, d], the same for all classes"
        )
    with torch.autocast(class_features[0].device.type, enabled=False):
        classes = len(class_features)
        lower = class_features[0].new_zeros(classes, classes, dtype=at_least_float32(class_features[0]).dtype)
        for i in range(classes):
            x = centred(class_features[i])  # centred class by class: the features of all images may be large
            for j in range(i + 1):
                lower[i, j] = (centred(class_features[j]).T @ x).square().sum()
        similarity = lower + lower.tril(-1).T
        norm = similarity.diagonal().sqrt()
        cka = similarity / (norm[:, None] * norm).clamp(min=torch.finfo(norm.dtype).tiny)
        return -torch.expm1(-sharpen * (1 - cka))


def centred(features: Tensor) -> Tensor:
    """Return features [n, d] less their mean, in float32 or wider."""
    wide = at_least_float32(features)
    return wide - wide.mean(0)


def group_by_class(batches: Iterable[Tensor], labels: Tensor, num_classes: int) -> Tensor:
    """Return the features [C, n, d] of each class, in the order in which they come.

    Args:
        batches: features of N images batch by batch: [B, d], or maps [B, d, H, W], each position of which is a sample.
        labels: [N] int64.
        num_classes: C.

    Returns:
        [C, n, d], on the device of the features; n is that of the smallest class, and further images of the others are
        left out.

    Raises:
        ValueError: a class without images.
    """
    labels = labels.cpu()
    counts = torch.bincount(labels, minlength=num_classes)
    smallest = int(counts.min())
    if smallest == 0:
        raise ValueError(f"class {int(counts.argmin())} has no images; the cost needs features of each class")
    rank = torch.empty_like(labels)  # number of earlier images of the same class
    rank[labels.argsort(stable=True)] = torch.cat([torch.arange(int(count)) for count in counts])
    grouped, start = torch.empty(0), 0
    for features in batches:
        samples = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features[:, None]
        if not start:  # filled in place: the features of all images may be large
            grouped = samples.new_empty(num_classes, smallest, *samples.shape[1:])
        rows = torch.arange(start, start + len(samples))
        rows = rows[rank[rows] < smallest]
        of_class, place, own = (values.to(samples.device) for values in (labels[rows], rank[rows], rows - start))
        grouped[of_class, place] = samples[own]
        start += len(samples)
    assert start == len(labels), f"features of {start} images, labels of {len(labels)}"
    return grouped.flatten(1, 2)


class WassersteinLogitDistillation(Method):
    """Total = ce_weight * CE + kd_weight * `wasserstein_logits_kd`, whose `weight` has the factor `cosine_decay`.

    The cost between classes is `category_cost` of the teacher's features of all training images, at every position of
    one stage. It is computed when the run starts, and these features are then on the device, 4 bytes for each image,
    position and channel.
    """

    @dataclass
    class Config(LossWeights):
        """Keys of the method's YAML file."""

        weight: float = number(0)
        temperature: float = number(0, 1000, above=True)
        regularization: float = number(0, above=True)
        iterations: int = whole(1)
        sharpen: float = number(0)
        decay_from: int = whole(0)
        pairs: dict[str, str] | None = stage_names()

    role = "distilled"
    needs_teacher = True
    invariants = ("batch_order", "logit_shift")
    requires = Requires(teacher_logits=True)
    cost: Tensor

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        classes = context.data.num_classes
        missing = torch.bincount(context.labels, minlength=classes) == 0
        if len(context.labels) and bool(missing.any()):
            raise ConfigError(
                f"class {int(missing.nonzero()[0])} has no training images, and this method needs the teacher's "
                "features of every class; use other data, or another method",
                code="invalid_data",
                key="data",
            )
        self.stage = StagePairs(config.pairs, context, "last", kind="embeddings").only().teacher
        shape = context.teacher.shapes[self.stage]
        self.shape = map_shape(shape) or flat_shape(shape)
        self.requires = Requires(teacher_logits=True, teacher_setup_stages=(self.stage,))
        self.labels, self.images = context.labels, context.images
        self.register_buffer("cost", torch.zeros(classes, classes))

    def bind_teachers(self, networks: Sequence[Network]) -> None:
        """Compute the cost between classes."""
        if len(self.labels):
            maps = (self.maps_of(images, networks[0]) for images in self.images())
            self.cost.copy_(category_cost(group_by_class(maps, self.labels, len(self.cost)), self.config.sharpen))

    @torch.no_grad()
    def maps_of(self, images: Tensor, network: Network) -> Tensor:
        """Return the features of images as maps, in float32 as far as the network's weights are."""
        narrow = next((p.dtype for p in network.parameters() if p.dtype in (torch.float16, torch.bfloat16)), None)
        with torch.autocast(images.device.type, dtype=narrow, enabled=narrow is not None):
            features = network(images).features[self.stage]
        return at_least_float32(as_map(features, self.shape))

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce` and `kd`; both losses before their weights, the latter after the decay."""
        config = self.config
        kd = wasserstein_logits_kd(
            student.logits,
            teachers[0].get_logits(),
            batch.labels,
            self.cost,
            config.temperature,
            config.weight * cosine_decay(progress, config.decay_from),
            config.regularization,
            config.iterations,
        )
        return ce_plus_kd(config, student, batch, kd)
