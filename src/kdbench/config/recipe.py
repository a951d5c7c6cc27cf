"""The recipe of a training: its keys, their ranges, and the rules between them."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from kdbench.config.schema import added, as_yaml, number, one_of, optional, setting, whole
from kdbench.errors import ConfigError

KEYS_OF_OPTIMIZER = {"sgd": ("momentum", "nesterov"), "adam": ("betas", "eps"), "adamw": ("betas", "eps")}
"""The optimisers, each with the keys that it alone uses."""
KEYS_OF_SCHEDULE = {
    "cosine": ("min_lr",), "multistep": ("milestones", "gamma"), "constant": (), "one_cycle": ("min_lr",)
}  # fmt: skip
"""The schedules, each with the keys that it alone uses."""
BATCH_KEYS = (
    "batch_size", "label_smoothing", "mixup", "cutmix", "policy", "policy_ops", "policy_magnitude", "erasing"
)  # fmt: skip
"""Keys of a recipe that determine its batches, which runs in lockstep share."""


@dataclass
class RecipeConfig:
    """Recipe of a training: length, optimiser, schedule, regularisation and checks."""

    epochs: int = whole(1)
    batch_size: int = whole(2)
    lr: float = number(0, above=True)
    min_lr: float = number(0)
    momentum: float = number(0, 1)
    nesterov: bool = MISSING
    weight_decay: float = number(0)
    clip_norm: float | None = optional(number(0, above=True))
    clip_projections: bool = MISSING
    on_nonfinite: str = one_of("stop", "skip", neutral="stop")
    nonfinite_limit: int = whole(1, identity=False)  # it ends runs and changes the numbers of none
    optimizer: str = added(one_of(*KEYS_OF_OPTIMIZER), "sgd")
    betas: list[float] = added(
        setting(lambda v: len(v) == 2 and all(0 <= x < 1 for x in v), "two numbers from 0 to below 1"), (0.9, 0.999)
    )
    eps: float = added(number(0, above=True), 1e-8)
    decay_all: bool = added(setting(), True)
    schedule: str = added(one_of(*KEYS_OF_SCHEDULE), "cosine")
    schedule_per: str = added(one_of("epoch", "step"), "epoch")
    milestones: list[int] = added(
        setting(lambda v: all(x >= 1 for x in v) and sorted(set(v)) == v, "ascending epochs such as [150,180,210]"), ()
    )
    gamma: float = added(number(0, 1, above=True), 0.1)
    warmup_epochs: float = added(number(0), 0.0)
    warmup_lr: float = added(number(0, above=True), 1e-6)
    accumulate: int = added(whole(1), 1)
    ema: float | None = added(optional(setting(lambda v: 0.5 <= v < 1, "a number from 0.5 to below 1")), None)
    label_smoothing: float = added(setting(lambda v: 0 <= v < 1, "a number from 0 to below 1"), 0.0)
    mixup: float = added(number(0, 100), 0.0)
    cutmix: float = added(number(0, 100), 0.0)
    policy: str | None = added(optional(one_of("rand_augment", "trivial_augment")), None)
    policy_ops: int = added(setting(lambda v: 1 <= v <= 14, "a whole number from 1 to 14"), 2)
    policy_magnitude: int = added(setting(lambda v: 0 <= v <= 30, "a whole number from 0 to 30"), 9)
    erasing: float = added(number(0, 1), 0.0)

    def unused(self) -> dict[str, str]:
        """Return the keys that change nothing beside the others, each with the reason."""
        reasons = {}
        for key, keys_of in (("optimizer", KEYS_OF_OPTIMIZER), ("schedule", KEYS_OF_SCHEDULE)):
            chosen = getattr(self, key)
            for name in dict.fromkeys(name for keys in keys_of.values() for name in keys):
                if name not in keys_of[chosen]:
                    users = " and ".join(other for other, keys in keys_of.items() if name in keys)
                    reasons[name] = f"it is a key of {key}={users}, and {key} is {chosen}"
        if not self.warmup_epochs:
            reasons["warmup_lr"] = "warmup_epochs is 0"
        if not self.warmup_epochs and self.schedule in ("constant", "multistep"):
            reasons["schedule_per"] = f"schedule={self.schedule} changes the learning rate between epochs alone"
        if not self.weight_decay:
            reasons["decay_all"] = "weight_decay is 0"
        if self.policy != "rand_augment":
            text = f"it is a key of policy=rand_augment, and policy is {self.policy or 'null'}"
            reasons |= {"policy_ops": text, "policy_magnitude": text}
        return reasons

    def settings(self) -> dict[str, Any]:
        """Return the keys with their values, without those that change nothing: unused, or added later and neutral."""
        unused = self.unused()
        return {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in unused and not (is_added(f) and getattr(self, f.name) == f.metadata["neutral"])
        }

    @property
    def mixes(self) -> bool:
        """True if images are mixed, with their labels."""
        return self.mixup > 0 or self.cutmix > 0

    def augmentation(self) -> str:
        """Return the first setting that makes an image no view of a training image, or an empty text."""
        given = ((name, getattr(self, name)) for name in ("policy", "mixup", "cutmix", "erasing"))
        return next((f"recipe.{name}={value}" for name, value in given if value), "")


def is_added(f: "dataclasses.Field[Any]") -> bool:
    """Return whether a field is one that configs of earlier versions lack."""
    return f.default is not MISSING or f.default_factory is not dataclasses.MISSING


def check_recipe(recipe: RecipeConfig, path: str) -> None:
    """Check the rules between the keys of a recipe.

    Args:
        recipe: the recipe.
        path: where it stands in the config.

    Raises:
        ConfigError: two keys do not fit together.
    """

    def refuse(key: str, text: str) -> ConfigError:
        value = getattr(recipe, key)
        said = f"{value:g}" if isinstance(value, float) else as_yaml(value)
        return ConfigError(f"{path}.{key} is {said}; {text}", code="out_of_range", key=f"{path}.{key}")

    if recipe.min_lr > recipe.lr and "min_lr" not in recipe.unused():
        raise refuse("min_lr", f"it must be at most {path}.lr, {recipe.lr:g}")
    if recipe.optimizer == "sgd" and recipe.nesterov and recipe.momentum == 0:
        raise refuse("momentum", f"{path}.nesterov=true does not allow it; use nesterov=false")
    if recipe.ema is not None and recipe.weight_decay >= 0.5:
        raise refuse(
            "weight_decay",
            f"that is no decay of weights beside {path}.ema={recipe.ema:g}, which is that of the average; it must be "
            "below 0.5 here, such as 5e-4",
        )
    if recipe.schedule == "multistep" and not recipe.milestones:
        raise refuse("milestones", f"{path}.schedule=multistep needs at least one epoch, such as [150,180,210]")
    if recipe.schedule == "multistep" and recipe.milestones[-1] >= recipe.epochs:
        scale = recipe.epochs / (recipe.milestones[-1] * 8 / 7)
        fitting = sorted({min(max(1, round(epoch * scale)), recipe.epochs - 1) for epoch in recipe.milestones})
        remedy = f", such as {path}.milestones=[{','.join(map(str, fitting))}]" if recipe.epochs > 1 else ""
        remedy = remedy or f", or use {path}.schedule=constant"
        raise refuse(
            "milestones", f"the schedule is longer than {path}.epochs={recipe.epochs}: give epochs below{remedy}"
        )
    if recipe.warmup_epochs >= recipe.epochs:
        raise refuse("warmup_epochs", f"it must be below {path}.epochs={recipe.epochs}")
    if recipe.warmup_epochs % 1 and recipe.schedule_per == "epoch":
        raise refuse(
            "warmup_epochs",
            f"it must be whole with {path}.schedule_per=epoch; a part of an epoch needs schedule_per=step",
        )
    if recipe.warmup_epochs and recipe.warmup_lr > recipe.lr:
        raise refuse("warmup_lr", f"it must be at most {path}.lr, {recipe.lr:g}")
    least = 2 if recipe.schedule_per == "epoch" else 0
    if recipe.schedule == "one_cycle" and (not recipe.warmup_epochs or recipe.warmup_epochs < least):
        text = f"{path}.schedule=one_cycle rises in these epochs, so it must be "
        raise refuse("warmup_epochs", text + (f"at least {least} with schedule_per=epoch" if least else "above 0"))
    if recipe.schedule == "multistep" and recipe.warmup_epochs > recipe.milestones[0]:
        raise refuse("warmup_epochs", f"it must be at most the first of {path}.milestones, {recipe.milestones[0]}")
    if recipe.accumulate > recipe.batch_size // 2:
        raise refuse("accumulate", f"a part of {path}.batch_size={recipe.batch_size} needs two images or more")
