"""Optimiser, schedule and clipping, against PyTorch's own and against the equations."""

from collections.abc import Sequence

import pytest
import torch

from kdbench.config import RecipeConfig
from kdbench.train.optim import build_optimizer, clip_gradients
from kdbench.train.schedule import Schedule
from tests.conftest import composed_once


def recipe(*overrides: str) -> RecipeConfig:
    return composed_once("method=ce", *overrides).recipe


def optimizer_of(config: RecipeConfig, parameters: Sequence[torch.nn.Parameter]) -> torch.optim.Optimizer:
    return build_optimizer(config, torch.tensor(config.lr, dtype=torch.float64), parameters)


def test_the_schedule_is_pytorchs_cosine_per_epoch() -> None:
    config = recipe()
    optimizer = optimizer_of(config, [torch.nn.Parameter(torch.zeros(1))])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=config.epochs, eta_min=config.min_lr)
    for epoch in range(config.epochs):
        assert Schedule(config, 1).at(epoch) == pytest.approx(float(schedule.get_last_lr()[0]), rel=1e-9)
        optimizer.step()
        schedule.step()
    assert Schedule(config, 1).at(config.epochs) == pytest.approx(1e-4)


def test_the_fused_step_equals_the_equations() -> None:
    config = recipe("recipe.lr=0.1")
    generator = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(7, generator=generator).double(), torch.randn(5, 7, generator=generator).double()
    parameter = torch.nn.Parameter(start.clone())
    optimizer = optimizer_of(config, [parameter])
    expected, velocity = start.clone(), torch.zeros(7, dtype=torch.float64)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
        # Sutskever et al. 2013, as PyTorch writes it, with weight decay in the gradient.
        decayed = gradient + 5e-4 * expected
        velocity = 0.9 * velocity + decayed if velocity.any() else decayed
        expected = expected - 0.1 * (decayed + 0.9 * velocity)
        assert torch.allclose(parameter.detach(), expected, rtol=1e-12)


def test_clipping_returns_the_norm_before_and_bounds_the_norm_after() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    for p, values in zip(parameters, ([3.0, 0.0], [0.0, 4.0]), strict=True):
        p.grad = torch.tensor(values)
    assert float(clip_gradients(parameters, 1.0)) == pytest.approx(5)
    assert float(clip_gradients(parameters, None)) == pytest.approx(1, rel=1e-5)
    assert parameters[0].grad[0] == pytest.approx(0.6, rel=1e-5)


def test_a_blocked_optimiser_takes_no_step() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = optimizer_of(recipe(), [parameter])
    parameter.grad = torch.full((3,), torch.nan)
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones(3))


def test_a_blocked_first_step_leaves_the_momentum_at_zero() -> None:
    config = recipe("recipe.weight_decay=0")
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = optimizer_of(config, [parameter])
    optimizer.found_inf = torch.ones(())
    parameter.grad = torch.full((3,), torch.inf)
    optimizer.step()
    optimizer.found_inf = torch.zeros(())
    parameter.grad = torch.full((3,), 0.5)
    optimizer.step()
    assert torch.allclose(parameter.detach(), torch.full((3,), 1 - 0.1 * (0.5 + 0.9 * 0.5)))
