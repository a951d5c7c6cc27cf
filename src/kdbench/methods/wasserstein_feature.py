"""Wasserstein distillation of features (WKD-F): the student's maps match means and deviations of the teacher's."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

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
    ce_plus_kd,
    full_precision,
)
from kdbench.methods.pairing import StagePairs, check_pairs, conv_bn_relu, match_size, stage_names
from kdbench.models import Output


@full_precision
def wasserstein_features(
    student_maps: Sequence[Tensor], teacher_maps: Sequence[Tensor], mean_weight: float, grid: int
) -> Tensor:
    """Return the squared 2-Wasserstein distance of diagonal Gaussians, fitted to the cells of maps.

        sum over stages of mean over B and the grid x grid cells of
            mean_weight * sum_c (mu_s - mu_t)^2 + sum_c (sigma_s - sigma_t)^2,
        mu = mean and sigma = sqrt(unbiased variance + 1e-5) over the positions of a cell

    Where height and width differ, the larger map is reduced with adaptive average pooling.

    Args:
        student_maps: one [B, C, H, W] per stage, already projected to the teacher's C.
        teacher_maps: one [B, C, H', W'] per stage; no gradient flows into them.
        mean_weight: weight of the means, at least 0; 1 gives the distance itself.
        grid: number of cells along height and along width, which divides both.

    Returns:
        Scalar, at least 0; 0 means equal means and deviations.

    Raises:
        ValueError: no stages, different numbers of them, or a grid that does not divide a map into cells of at least
            two positions.

    Source: Lv et al. 2024 (arXiv 2412.08139).
    """
    check_pairs(student_maps, teacher_maps)
    terms = []
    for student, teacher in zip(student_maps, (t.detach() for t in teacher_maps), strict=True):
        student, teacher = match_size(student, teacher)
        height, width = student.shape[2:]
        if problem := grid_problem(grid, height, width):
            raise ValueError(f"grid is {grid}; {problem}")
        (mean_s, std_s), (mean_t, std_t) = cell_statistics(student, grid), cell_statistics(teacher, grid)
        means = (mean_s - mean_t).square().sum(1).mean()
        deviations = (std_s - std_t).square().sum(1).mean()
        terms.append(mean_weight * means + deviations)
    return torch.stack(terms).sum()


def cell_statistics(maps: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation [B, C, grid, grid] of the cells of maps [B, C, H, W]."""
    batch, channels, height, width = maps.shape
    cells = maps.reshape(batch, channels, grid, height // grid, grid, width // grid)
    variance, mean = torch.var_mean(cells, dim=(3, 5), correction=1)
    return mean, torch.sqrt(variance + 1e-5)  # without the constant, the slope at constant maps is infinite


def grid_problem(grid: int, height: int, width: int) -> str:
    """Return why a map cannot be divided into grid x grid cells, or an empty text."""
    if grid < 1 or height % grid or width % grid:
        return f"it must divide height and width of the maps, {height} x {width}"
    if height * width // grid**2 < 2:
        return f"a deviation needs cells of at least two positions, and the maps are {height} x {width}"
    return ""


def cosine_decay(progress: Progress, start: int) -> Tensor:
    """Return (1 + cos(pi (epoch - start) / (epochs - start))) / 2 after epoch `start`, and 1 up to it.

    The current epoch is counted from 1, so that the value of the last epoch is 0. It is 1 throughout a training of at
    most `start` epochs.
    """
    past = (progress.epoch + 1 - start).clamp(min=0) / max(progress.epochs - start, 1)
    return (1 + torch.cos(math.pi * past)) / 2


class WassersteinFeatureDistillation(Method):
    """Total = ce_weight * CE + kd_weight * `cosine_decay` * `wasserstein_features`, with a trained projector."""

    @dataclass
    class Config(LossWeights):
        """Keys of the method's YAML file."""

        mean_weight: float = number(0)
        grid: int = whole(1)
        decay_from: int = whole(0)
        pairs: dict[str, str] | None = stage_names()

    role = "distilled"
    soft_labels = True
    needs_teacher = True
    invariants = ("zero_for_identical", "batch_order")

    def __init__(self, config: Config, context: MethodContext) -> None:
        super().__init__(config, context)
        self.pairs = StagePairs(config.pairs, context, "last", projection=conv_bn_relu)
        for pair in self.pairs.pairs:
            if problem := grid_problem(config.grid, *pair.size):
                raise ConfigError(
                    f"method.grid is {config.grid}; {problem} for the pair {{{pair.student}: {pair.teacher}}}",
                    code="out_of_range",
                    key="method.grid",
                )
        self.requires = self.pairs.requires()

    def forward(
        self, student: Output, teachers: Sequence[TeacherOutput], batch: Batch, progress: Progress
    ) -> LossOutput:
        """Return the terms `total`, `ce` and `kd`; both losses before their weights and the decay."""
        own, targets = self.pairs(student, teachers[0])
        kd = wasserstein_features(own, targets, self.config.mean_weight, self.config.grid)
        return ce_plus_kd(self.config, student, batch, kd, cosine_decay(progress, self.config.decay_from))
