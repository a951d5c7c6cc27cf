"""Learning rates of each schedule, against those of PyTorch's schedulers."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from kdbench.config import RecipeConfig
from kdbench.config.recipe import check_recipe
from kdbench.errors import ConfigError
from kdbench.train.schedule import Schedule
from tests.conftest import composed_once

EPOCHS, STEPS = 9, 5
LR, MIN_LR, WARMUP_LR = 0.2, 1e-3, 1e-5
PER = ("epoch", "step")

Make = Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler]


def recipe(**keys: Any) -> RecipeConfig:
    """Return a recipe that the config allows."""
    base = composed_once("method=ce").recipe
    given_keys: dict[str, Any] = {"epochs": EPOCHS, "lr": LR, "min_lr": MIN_LR, "warmup_lr": WARMUP_LR} | keys
    made = dataclasses.replace(base, **given_keys)
    check_recipe(made, "recipe")
    return made


def rates(config: RecipeConfig) -> Iterator[float]:
    """Yield the learning rate of each step, or of each epoch where it changes once per epoch."""
    schedule = Schedule(config, STEPS)
    for epoch in range(config.epochs):
        if schedule.per_step:
            yield from (schedule.at(epoch, step) for step in range(STEPS))
        else:
            yield schedule.at(epoch)


def torchs_rates(make: Make, count: int) -> list[float]:
    """Return the learning rates of a scheduler."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler = make(optimizer)
    found = [float(optimizer.param_groups[0]["lr"])]
    for _ in range(count - 1):
        optimizer.step()
        scheduler.step()
        found.append(float(optimizer.param_groups[0]["lr"]))
    return found


def length(per: str) -> int:
    """Return the number of learning rates of a training."""
    return EPOCHS * (STEPS if per == "step" else 1)


def assert_rates(config: RecipeConfig, make: Make) -> None:
    own = list(rates(config))
    assert own == pytest.approx(torchs_rates(make, len(own)), rel=1e-9)


@pytest.mark.parametrize("per", PER)
def test_cosine_is_cosine_annealing(per: str) -> None:
    assert_rates(
        recipe(schedule="cosine", schedule_per=per),
        lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, length(per), MIN_LR),
    )


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("warmup", [1, 3])
def test_cosine_after_a_warmup_is_a_linear_rise_then_cosine_annealing(per: str, warmup: int) -> None:
    rise = warmup * (STEPS if per == "step" else 1)

    def make(optimizer: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        parts: list[lr_scheduler.LRScheduler] = [
            lr_scheduler.LinearLR(optimizer, WARMUP_LR / LR, 1.0, rise),
            lr_scheduler.CosineAnnealingLR(optimizer, length(per) - rise, MIN_LR),
        ]
        return lr_scheduler.SequentialLR(optimizer, parts, [rise])

    assert_rates(recipe(schedule="cosine", schedule_per=per, warmup_epochs=warmup), make)


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("milestones", [[1], [3, 5, 8], [2, 3]])
def test_multistep_is_that_of_pytorch(per: str, milestones: list[int]) -> None:
    factor = STEPS if per == "step" else 1
    assert_rates(
        recipe(schedule="multistep", schedule_per=per, milestones=milestones, gamma=0.3),
        lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [factor * epoch for epoch in milestones], 0.3),
    )


@pytest.mark.parametrize("per", PER)
def test_constant_is_that_of_pytorch(per: str) -> None:
    assert_rates(
        recipe(schedule="constant", schedule_per=per), lambda optimizer: lr_scheduler.ConstantLR(optimizer, 1.0, 1)
    )


@pytest.mark.parametrize("per", PER)
@pytest.mark.parametrize("warmup", [2, 4])
def test_one_cycle_is_that_of_pytorch_without_momentum(per: str, warmup: int) -> None:
    assert_rates(
        recipe(schedule="one_cycle", schedule_per=per, warmup_epochs=warmup),
        lambda optimizer: lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=LR,
            total_steps=length(per),
            pct_start=warmup / EPOCHS,
            div_factor=LR / WARMUP_LR,
            final_div_factor=WARMUP_LR / MIN_LR,
            cycle_momentum=False,
            anneal_strategy="cos",
        ),
    )


ENDS = [
    ({"schedule": "cosine"}, "epoch", LR, None),
    ({"schedule": "cosine", "warmup_epochs": 2}, "epoch", WARMUP_LR, None),
    ({"schedule": "multistep", "milestones": [8], "gamma": 0.5}, "step", LR, LR / 2),
    ({"schedule": "constant"}, "step", LR, LR),
    ({"schedule": "constant", "warmup_epochs": 0.2}, "step", WARMUP_LR, LR),
    ({"schedule": "one_cycle", "warmup_epochs": 3}, "epoch", WARMUP_LR, MIN_LR),
    ({"schedule": "one_cycle", "warmup_epochs": 2.5}, "step", WARMUP_LR, MIN_LR),
]


@pytest.mark.parametrize(("keys", "per", "first", "last"), ENDS)
def test_the_first_and_the_last_rate_are_those_of_the_recipe(
    keys: dict[str, Any], per: str, first: float, last: float | None
) -> None:
    own = list(rates(recipe(schedule_per=per, **keys)))
    assert own[0] == pytest.approx(first)
    if last is not None:
        assert own[-1] == pytest.approx(last)
    assert max(own) == pytest.approx(LR)


@pytest.mark.parametrize("per", PER)
def test_the_rate_after_the_last_epoch_of_cosine_is_the_lowest(per: str) -> None:
    schedule = Schedule(recipe(schedule="cosine", schedule_per=per), STEPS)
    assert schedule.at(EPOCHS) == pytest.approx(MIN_LR)
    assert schedule.at(EPOCHS - 1, STEPS - 1) > MIN_LR


def test_a_warmup_of_a_part_of_an_epoch_ends_at_the_nearest_step() -> None:
    own = list(rates(recipe(schedule="constant", schedule_per="step", warmup_epochs=1.5)))
    assert own[:8] == pytest.approx([WARMUP_LR + (LR - WARMUP_LR) * step / 8 for step in range(8)])
    assert own[8:] == [LR] * (len(own) - 8)


def test_a_warmup_shorter_than_half_a_step_is_none() -> None:
    own = list(rates(recipe(schedule="cosine", schedule_per="step", warmup_epochs=0.05)))
    assert own == list(rates(recipe(schedule="cosine", schedule_per="step")))


@st.composite
def recipes(draw: st.DrawFn) -> tuple[RecipeConfig, int]:
    """Draw a recipe that the config allows, and a number of steps per epoch."""
    epochs, steps = draw(st.integers(1, 12)), draw(st.integers(1, 7))
    lr = draw(st.floats(1e-4, 10))
    per = draw(st.sampled_from(PER))
    whole = st.integers(0, epochs - 1).map(float)
    keys: dict[str, Any] = {
        "epochs": epochs,
        "lr": lr,
        "min_lr": lr * draw(st.floats(0, 1)),
        "warmup_lr": lr * draw(st.floats(1e-6, 1)),
        "warmup_epochs": draw(whole if per == "epoch" else st.floats(0, epochs, exclude_max=True)),
        "schedule": draw(st.sampled_from(["cosine", "multistep", "constant", "one_cycle"])),
        "schedule_per": per,
        "milestones": sorted(draw(st.sets(st.integers(1, max(1, epochs - 1)), min_size=1))),
        "gamma": draw(st.floats(0.01, 1)),
    }
    made = dataclasses.replace(composed_once("method=ce").recipe, **keys)
    return made, steps


@settings(deadline=None, max_examples=200)
@given(recipes())
def test_the_rate_rises_to_its_highest_value_then_never_rises_and_stays_in_range(
    drawn: tuple[RecipeConfig, int],
) -> None:
    config, steps = drawn
    try:
        check_recipe(config, "recipe")
    except ConfigError:
        reject()
    schedule = Schedule(config, steps)
    own = [schedule.at(epoch, step) for epoch in range(config.epochs) for step in range(steps)]
    lowest = min(config.min_lr, config.warmup_lr)
    if config.schedule == "multistep":
        lowest = min(config.warmup_lr, config.lr * config.gamma ** len(config.milestones))
    tolerance = 1e-12 * config.lr
    assert lowest - tolerance <= min(own)
    assert max(own) <= config.lr + tolerance
    top = own.index(max(own))
    assert all(b >= a - tolerance for a, b in itertools.pairwise(own[: top + 1]))
    assert all(b <= a + tolerance for a, b in itertools.pairwise(own[top:]))
    changes = sum(a != b for a, b in itertools.pairwise(own))
    assert changes <= (config.epochs - 1 if config.schedule_per == "epoch" else len(own) - 1)
