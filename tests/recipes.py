"""Recipes that cover each optimiser, schedule and augmentation: tests of resume, lockstep and captures share them."""

from typing import Any

from tests.conftest import rest_wide

VIT = (
    "optimizer=adamw", "lr=5e-4", "weight_decay=0.05", "schedule_per=step", "min_lr=1e-5", "warmup_epochs=0.5",
    "clip_norm=null", "label_smoothing=0.1", "mixup=0.8", "cutmix=1.0", "policy=rand_augment", "erasing=0.25",
    "ema=0.99", "decay_all=false",
)  # fmt: skip
CRD = ("lr=0.05", "nesterov=false", "schedule=multistep", "milestones=[1]", "clip_norm=null")

RECIPES: dict[str, tuple[str, ...]] = {
    "vit": VIT,
    "adam_one_cycle_accumulate_2": (
        "optimizer=adam", "lr=1e-3", "min_lr=1e-5", "schedule=one_cycle", "schedule_per=step", "warmup_epochs=1",
        "accumulate=2", "policy=trivial_augment", "cutmix=1.0",
    ),
    "ema_skip_warmup_per_epoch": ("ema=0.9", "on_nonfinite=skip", "warmup_epochs=1", "erasing=0.5", "mixup=0.2"),
    "crd": CRD,
    "adam": ("optimizer=adam", "lr=1e-3"),
    "adamw_decay_of_matrices_alone": ("optimizer=adamw", "lr=1e-3", "decay_all=false"),
    "sgd_without_momentum": ("nesterov=false", "momentum=0", "decay_all=false"),
    "multistep_per_step": ("schedule=multistep", "milestones=[1]", "schedule_per=step", "warmup_epochs=0.75"),
    "constant": ("schedule=constant",),
    "one_cycle": ("schedule=one_cycle", "schedule_per=step", "warmup_epochs=0.5"),
    "warmup_per_step": ("warmup_epochs=1.3", "schedule_per=step"),
    "label_smoothing": ("label_smoothing=0.1",),
    "mixup": ("mixup=0.2",),
    "cutmix": ("cutmix=1.0",),
    "mixup_and_cutmix": ("mixup=0.8", "cutmix=1.0"),
    "rand_augment": ("policy=rand_augment", "policy_magnitude=14"),
    "trivial_augment": ("policy=trivial_augment",),
    "erasing": ("erasing=0.5",),
    "ema": ("ema=0.99",),
    "accumulate_2": ("accumulate=2",),
    "accumulate_3_with_everything": (*VIT, "accumulate=3"),
}  # fmt: skip
"""Keys of a recipe beside those of the small runs, by a name for the test."""


def overrides(recipe: str) -> tuple[str, ...]:
    """Return the overrides of a recipe of the table."""
    return tuple(f"recipe.{setting}" for setting in RECIPES[recipe])


def every_recipe(every_day: int = 3) -> list[Any]:
    """Parameters: every recipe by name. All but the first, which combine most settings, are slow tests."""
    return rest_wide(RECIPES, every_day)
