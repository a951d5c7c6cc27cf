"""Scale-decoupled distillation (SDD): logits of regions of the last map, of whole and parts, at several scales."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from kdbench.methods.base import full_precision


@full_precision
def scale_decoupled_kd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    complementary_weight: float,
) -> Tensor:
    """Return the KL divergence of the predictions of regions, with another weight for complementary regions.

        mean over B and R of w * T^2 * KL(p_t, p_s),    p = softmax(z / T)

    w is `complementary_weight` where the teacher's arg max is the label in exactly one of the region and the whole
    map, else 1.

    Args:
        student_logits: [B, R, C]; region 0 is the whole map (`pool_regions`).
        teacher_logits: [B, R, C]; no gradient flows into them.
        labels: [B] int64.
        temperature: T, above 0.
        complementary_weight: at least 0; 1 gives the same weight to all regions.

    Returns:
        Scalar in nats, at least 0; 0 means identical distributions.

    Raises:
        ValueError: logits that are not [B, R, C].

    Source: Wei et al., CVPR 2024 (arXiv 2403.13512). As in the authors' code and unlike the paper, the regions are
    averaged, and two different wrong classes are not complementary.
    """
    teacher_logits = teacher_logits.detach()
    weights = region_weights(student_logits, teacher_logits, labels, complementary_weight)
    log_s = F.log_softmax(student_logits / temperature, dim=2)
    log_t = F.log_softmax(teacher_logits / temperature, dim=2)
    return temperature**2 * (weights * kl_divergence(log_s, log_t)).mean()


@full_precision
def scale_decoupled_dkd(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float,
    beta: float,
    complementary_weight: float,
) -> Tensor:
    """Return `scale_decoupled_kd` with the two parts of decoupled KD in place of the KL divergence.

        mean over B and R of w * T^2 * (alpha * TCKD + beta * NCKD)

    TCKD is the KL divergence of the probabilities of label and rest at temperature T, NCKD that of the softmax over
    the classes other than the label.

    Args:
        student_logits: [B, R, C]; region 0 is the whole map (`pool_regions`).
        teacher_logits: [B, R, C]; no gradient flows into them.
        labels: [B] int64.
        temperature: T, above 0.
        alpha: weight of TCKD, at least 0 (not the weight of CE or KD).
        beta: weight of NCKD, at least 0.
        complementary_weight: weight w of complementary regions; see `scale_decoupled_kd`.

    Returns:
        Scalar in nats, at least 0; 0 means identical distributions.

    Raises:
        ValueError: logits that are not [B, R, C].

    Source: Wei et al., CVPR 2024 (arXiv 2403.13512); Zhao et al. 2022 (arXiv 2203.08679).
    """
    teacher_logits = teacher_logits.detach()
    weights = region_weights(student_logits, teacher_logits, labels, complementary_weight)
    target, others = decoupled_terms(student_logits / temperature, teacher_logits / temperature, labels)
    return temperature**2 * (weights * (alpha * target + beta * others)).mean()


def pool_regions(maps: Tensor, scales: Sequence[int]) -> Tensor:
    """Return the mean of each region of maps, in the order in which the losses expect regions.

    Applied to them, the classifier gives the regions' logits. Each scale is pooled from the map itself: pooling a
    finer scale's means differs where the map's side is no multiple of it.

    Args:
        maps: [B, D, H, W], the last maps.
        scales: numbers m of cells along height and width, ascending from 1 (the whole map).

    Returns:
        [B, R, D], R the sum of m^2: the whole map, then the cells of each finer scale, row by row.

    Raises:
        ValueError: scales that do not ascend from 1.
    """
    if not scales or scales[0] != 1 or sorted(set(scales)) != list(scales):
        raise ValueError(f"scales are {list(scales)}; they must ascend from 1, such as [1, 2, 4]")
    return torch.cat([F.adaptive_avg_pool2d(maps, scale).flatten(2) for scale in scales], dim=2).transpose(1, 2)


def region_weights(student: Tensor, teacher: Tensor, labels: Tensor, complementary_weight: float) -> Tensor:
    """Return the weight [B, R] of each region: see `scale_decoupled_kd`."""
    if student.ndim != 3 or student.shape != teacher.shape:
        raise ValueError(
            f"student_logits are {list(student.shape)} and teacher_logits {list(teacher.shape)}; both must be [B, R, C]"
        )
    right = teacher.argmax(2) == labels[:, None]
    return torch.where(right != right[:, :1], complementary_weight, 1.0).to(student.dtype)


def decoupled_terms(student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return TCKD and NCKD [B, R] of logits [B, R, C] that are divided by the temperature."""
    label = labels[:, None, None].expand(*student.shape[:2], 1)
    binary, others = [], []
    for logits in (student, teacher):
        rest = remove_class(logits, labels)
        pair = torch.cat([logits.gather(2, label), rest.logsumexp(2, keepdim=True)], dim=2)
        binary.append(F.log_softmax(pair, dim=2))
        others.append(F.log_softmax(rest, dim=2))
    return kl_divergence(*binary), kl_divergence(*others)


def remove_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Return logits [B, R, C - 1] without the label's class."""
    columns = torch.arange(logits.shape[2] - 1, device=logits.device)
    kept = columns + (columns >= labels[:, None]).to(columns.dtype)
    return logits.gather(2, kept[:, None].expand(-1, logits.shape[1], -1))


def kl_divergence(log_student: Tensor, log_teacher: Tensor) -> Tensor:
    """Return KL(p_t, p_s) of log probabilities over the last dimension."""
    return (log_teacher.exp() * (log_teacher - log_student)).sum(-1)
