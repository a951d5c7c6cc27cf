"""Optimiser, schedule and clipping, against PyTorch's own and against the equations."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.config import RecipeConfig
from kdbench.train.optim import build_optimizer, clip_gradients, load_optimizer, state_tensors
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


# Every optimiser

OPTIMIZERS: dict[str, tuple[tuple[str, ...], Any]] = {
    "adam": (("optimizer=adam", "betas=[0.8,0.99]", "eps=1e-6"), torch.optim.Adam),
    "adamw": (("optimizer=adamw", "betas=[0.8,0.99]", "eps=1e-6"), torch.optim.AdamW),
    "nesterov": (("optimizer=sgd",), torch.optim.SGD),
    "momentum": (("optimizer=sgd", "nesterov=false"), torch.optim.SGD),
    "plain": (("optimizer=sgd", "nesterov=false", "momentum=0"), torch.optim.SGD),
}
"""Keys of a recipe, and PyTorch's class."""


def recipe_of(name: str, *more: str) -> RecipeConfig:
    """Return a recipe with an optimiser of the table, at a learning rate and decay with which each key matters."""
    settings = ("lr=0.03", "weight_decay=0.2", *OPTIMIZERS[name][0], *more)
    return recipe(*(f"recipe.{setting}" for setting in settings))


def keys_of(config: RecipeConfig, name: str) -> dict[str, Any]:
    """Return the arguments of PyTorch's optimiser."""
    if name.startswith("adam"):
        return {"lr": config.lr, "betas": tuple(config.betas), "eps": config.eps}
    return {"lr": config.lr, "momentum": config.momentum, "nesterov": config.nesterov}


def tensors(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


SHAPES = ((4, 3), (4,), (2, 3, 3, 3), ())
"""A matrix, a vector, convolution weights and a scalar."""


def parameters_of() -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(value) for value in tensors(0, *SHAPES)]


def take_step(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.nn.Parameter], seed: int) -> None:
    for parameter, gradient in zip(parameters, tensors(seed, *SHAPES), strict=True):
        parameter.grad = gradient.to(parameter)
    optimizer.step()


@pytest.mark.parametrize("decay_all", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_are_those_of_the_unfused_optimiser(name: str, decay_all: bool) -> None:
    config = recipe_of(name, f"decay_all={str(decay_all).lower()}")
    own, expected = parameters_of(), parameters_of()
    optimizer = optimizer_of(config, own)
    decays = [config.weight_decay if decay_all or p.ndim > 1 else 0.0 for p in expected]
    reference = OPTIMIZERS[name][1](
        [{"params": [p], "weight_decay": decay} for p, decay in zip(expected, decays, strict=True)],
        **keys_of(config, name),
        foreach=False,
        fused=False,
    )
    for step in range(1, 7):
        take_step(optimizer, own, step)
        take_step(reference, expected, step)
        for parameter, value in zip(own, expected, strict=True):
            assert torch.allclose(parameter, value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_decay_of_all_parameters_vectors_have_none_and_matrices_do(name: str) -> None:
    parameters = parameters_of()
    optimizer = build_optimizer(recipe_of(name, "decay_all=false"), torch.tensor(0.03), parameters[:1], parameters[1:])
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert [decay[id(p)] for p in parameters] == [0.2, 0.0, 0.2, 0.0]
    assert all(group["params"] for group in optimizer.param_groups)
    assert len({id(group["lr"]) for group in optimizer.param_groups}) == 1


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_blocked_step_changes_neither_weights_nor_state(name: str, steps_before: int) -> None:
    def trained(blocked: bool) -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
        parameters = parameters_of()
        optimizer = optimizer_of(recipe_of(name), parameters)
        blocked = vars(optimizer)["found_inf"] = torch.zeros(())
        for step in range(steps_before):
            take_step(optimizer, parameters, step)
        if blocked:
            before = [parameter.detach().clone() for parameter in parameters]
            blocked.fill_(1)
            for parameter in parameters:
                parameter.grad = torch.full_like(parameter, torch.nan)
            optimizer.step()
            assert all(torch.equal(p, value) for p, value in zip(parameters, before, strict=True))
            blocked.fill_(0)
        take_step(optimizer, parameters, 7)
        return parameters, optimizer

    (own, optimizer), (expected, reference) = trained(blocked=True), trained(blocked=False)
    for parameter, other in zip(own, expected, strict=True):
        assert torch.equal(parameter, other)
        assert optimizer.state[parameter].keys() == reference.state[other].keys()
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(value, reference.state[other][key]), key


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_loaded_state_has_the_memory_format_of_the_weights_and_continues_to_the_same_numbers(name: str) -> None:
    def weights(memory_format: torch.memory_format) -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(tensors(0, (2, 3, 3, 3))[0].contiguous(memory_format=memory_format))]

    def step(optimizer: torch.optim.Optimizer, parameters: list[torch.nn.Parameter], seed: int) -> None:
        parameters[0].grad = torch.empty_like(parameters[0]).copy_(tensors(seed, (2, 3, 3, 3))[0])
        optimizer.step()

    config = recipe_of(name)
    first, other = weights(torch.contiguous_format), weights(torch.channels_last)
    optimizer, loaded = optimizer_of(config, first), optimizer_of(config, other)
    for seed in (1, 2):
        step(optimizer, first, seed)
    other[0].data.copy_(first[0].data)
    load_optimizer(loaded, copy.deepcopy(optimizer.state_dict()))
    kept = [value for value in loaded.state[other[0]].values() if value is not None and value.ndim]
    assert len(kept) == state_tensors(config)
    assert all(value.stride() == other[0].stride() for value in kept)
    step(optimizer, first, 3)
    step(loaded, other, 3)
    assert torch.equal(first[0], other[0])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_loaded_optimiser_keeps_its_tensor_of_the_learning_rate(name: str) -> None:
    config, parameters = recipe_of(name), parameters_of()
    lr = torch.tensor(config.lr, dtype=torch.float64)
    optimizer = build_optimizer(config, lr, parameters[:2], parameters[2:])
    take_step(optimizer, parameters, 1)
    state = copy.deepcopy(optimizer.state_dict())
    lr.fill_(0.5)
    load_optimizer(optimizer, state)
    assert all(group["lr"] is lr for group in optimizer.param_groups)
    assert float(lr) == 0.5
    lr.fill_(0.0)
    before = [parameter.detach().clone() for parameter in parameters]
    take_step(optimizer, parameters, 2)
    assert all(torch.equal(p, value) for p, value in zip(parameters, before, strict=True))
