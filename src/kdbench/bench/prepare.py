"""Cases before they are measured: composed, resolved, and with the arms that differ in them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from kdbench.bench.arms import ALONE, ARMS, KDBENCH_EAGER, Arm
from kdbench.bench.cases import DATA, Case
from kdbench.config import RunConfig, compose
from kdbench.data.dataset import resolve_data
from kdbench.errors import ConfigError, nearest
from kdbench.methods.base import Requires
from kdbench.runner.build import check_parts
from kdbench.sweep.overrides import expand
from kdbench.system.device import autocast_dtype, resolve_runtime
from kdbench.teachers.cache import can_answer


@dataclass(frozen=True)
class Prepared:
    """A case that can be measured."""

    case: Case
    config: RunConfig
    """The config of the case, resolved."""
    arms: tuple[Arm, ...]


def cases_of(overrides: Sequence[str]) -> list[Case]:
    """Return a case per combination of values.

    Raises:
        ConfigError: an override cannot be read.
    """
    return [Case(tuple(job)) for job in expand(overrides)]


def prepare(case: Case) -> Prepared:
    """Return a case with its config and arms.

    Raises:
        ConfigError: its keys, its device or its arms cannot be used.
    """
    names = [arm.name for arm in ARMS]
    for name in case.arms:
        if name not in names:
            raise ConfigError(f"--arms names {name!r}; {nearest(name, names)}", code="unknown_option", key="--arms")
    data = () if any(override.startswith("data=") for override in case.overrides) else DATA
    config = compose([*data, *case.overrides])
    config = dataclasses.replace(config, runtime=resolve_runtime(config.runtime))
    config = dataclasses.replace(config, data=resolve_data(config.data, config.runtime.device))
    recipe, extra = config.recipe, config.recipe.augmentation()
    if recipe.accumulate > 1:
        extra = f"recipe.accumulate={recipe.accumulate}"
    for key in ("ema", "label_smoothing"):
        if getattr(recipe, key):
            extra = f"recipe.{key}={getattr(recipe, key)}"
    if recipe.optimizer != "sgd":
        extra = f"recipe.optimizer={recipe.optimizer}"
    if extra:
        raise ConfigError(
            f"{extra}: kdbench-bench compares with a reference trainer that has SGD, crop and flip alone; use a recipe "
            "such as recipe=paper",
            code="mismatch",
            key="recipe",
        )
    images = config.data.params.num_train
    if images < config.recipe.batch_size:
        raise ConfigError(
            f"recipe.batch_size is {config.recipe.batch_size}, more than data.num_train={images}; "
            "only whole batches are measured",
            code="out_of_range",
            key="recipe.batch_size",
        )
    differing = differing_arms(config, check_parts(config)[2].requires)
    for name in case.arms:
        if name not in [arm.name for arm in differing]:
            raise ConfigError(
                f"--arms names {name}, which is no arm of {case.title} "
                f"({config.method.name}, {config.runtime.precision}); its arms: "
                f"{', '.join(arm.name for arm in differing)}",
                code="mismatch",
                key="--arms",
            )
    return Prepared(case, config, tuple(arm for arm in differing if not case.arms or arm.name in case.arms))


def differing_arms(config: RunConfig, requires: Requires) -> list[Arm]:
    """Return the arms that differ in a configuration.

    Without a teacher its arms are left out, in float32 the one of the precision, on the CPU the one without graphs, and
    the logit cache where the method reads feature maps.
    """
    precision, fused = next(a for a in ALONE if a.precision), next(a for a in ALONE if a.teacher == "fused")

    def differs(arm: Arm) -> bool:
        if arm == precision:
            return autocast_dtype(config.runtime) is not None
        if arm == KDBENCH_EAGER:
            return config.runtime.device != "cpu"
        if arm.teacher == "cache":
            return can_answer(requires, config.recipe)
        return arm != fused or config.teacher is not None

    return [arm for arm in ARMS if differs(arm)]
