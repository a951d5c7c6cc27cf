"""The learning rate of each step: the one place that computes it."""

import math

from kdbench.config.recipe import RecipeConfig


class Schedule:
    """Learning rate of a recipe.

    It changes once per epoch or once per step, as `schedule_per` says. In the first `warmup_epochs` it rises from
    `warmup_lr` to `lr`, linearly; one_cycle rises along a cosine. After them:

    - cosine: from `lr` to `min_lr` after the last epoch (Loshchilov and Hutter 2017, arXiv 1608.03983, equation 5);
    - multistep: `lr`, times `gamma` at each epoch of `milestones`;
    - constant: `lr`;
    - one_cycle: from `lr` to `min_lr` at the last step (Smith and Topin 2018, arXiv 1708.07120, with constant
      momentum), as torch's OneCycleLR without `cycle_momentum`.

    Args:
        recipe: the recipe.
        steps_per_epoch: number of batches of an epoch.
    """

    def __init__(self, recipe: RecipeConfig, steps_per_epoch: int) -> None:
        self.recipe = recipe
        self.per_step = recipe.schedule_per == "step"
        self.steps = steps_per_epoch if self.per_step else 1
        self.total = recipe.epochs * self.steps
        self.warmup = round(recipe.warmup_epochs * self.steps)

    def at(self, epoch: int, step: int = 0) -> float:
        """Return the learning rate of a step of an epoch, both counted from 0."""
        recipe = self.recipe
        now = epoch * self.steps + (step if self.per_step else 0)
        if recipe.schedule == "one_cycle":
            top = max(self.warmup - 1, 0)
            if now < top:
                return between(recipe.warmup_lr, recipe.lr, now, top)
            return between(recipe.lr, recipe.min_lr, now - top, max(self.total - 1 - top, 1))
        if now < self.warmup:
            return recipe.warmup_lr + (recipe.lr - recipe.warmup_lr) * now / self.warmup
        if recipe.schedule == "cosine":
            return between(recipe.lr, recipe.min_lr, now - self.warmup, self.total - self.warmup)
        if recipe.schedule == "multistep":
            return recipe.lr * recipe.gamma ** sum(milestone <= epoch for milestone in recipe.milestones)
        return recipe.lr


def between(start: float, end: float, done: int, of: int) -> float:
    """Return a value on the half cosine from start (nothing done) to end (all of it)."""
    return end + (start - end) * (1 + math.cos(math.pi * done / of)) / 2
