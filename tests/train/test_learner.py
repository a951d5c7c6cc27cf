"""One learner's step: what it leaves as it was when its loss is not finite, and its own random numbers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from kdbench.config import RunConfig
from kdbench.data import Batches
from kdbench.runner.build import build_learner, build_parts
from kdbench.runner.run import resolve_run
from kdbench.train.learner import Learner
from kdbench.train.loop import fit
from kdbench.train.schedule import Schedule

Make = Callable[..., tuple[Learner, Batches]]


@pytest.fixture
def make(small: Callable[..., RunConfig]) -> Make:
    """Return a learner in its first epoch, and its batches."""

    def make_learner(*overrides: str) -> tuple[Learner, Batches]:
        config, _ = resolve_run(small("method=ce", *overrides))
        parts = build_parts(config)
        learner = build_learner(config, parts)
        learner.begin_epoch()
        return learner, parts.batches

    return make_learner


def values(module: torch.nn.Module) -> dict[str, Tensor]:
    """Return copies of a module's weights and buffers."""
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], value) for name, value in second.items())


def test_a_skipped_step_leaves_weights_and_running_statistics_as_they_were(make: Make) -> None:
    learner, batches = make("recipe.on_nonfinite=skip")
    batch = next(batches.epoch(0))
    before = values(learner.student)
    learner.train_step(batch._replace(images=batch.images * torch.nan), None)
    assert same(before, values(learner.student))
    learner.train_step(batch, None)
    mean = "body.bn1.running_mean"
    assert not torch.equal(learner.student.state_dict()[mean], before[mean])
    assert int(learner.sums.skipped) == 1


@pytest.mark.parametrize("skip", [False, True])
def test_gradient_scaling_takes_no_bad_step_though_its_gradients_are_finite(make: Make, skip: bool) -> None:
    """The scaler of the CPU stands for that of a GPU."""
    learner, batches = make(f"recipe.on_nonfinite={'skip' if skip else 'stop'}")
    learner.scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=8.0)
    learner.sums.ends_at_once = False  # as on a device that runs ahead of the host
    extra = iter((torch.inf, 1.0))
    learner.method.register_forward_hook(
        lambda _, __, returned: returned._replace(terms={**returned.terms, "extra": torch.tensor(next(extra))})
    )
    first, second, *_ = batches.epoch(0)
    before = dict(learner.student.named_parameters())
    before = {name: value.detach().clone() for name, value in before.items()}

    def weights_moved() -> bool:
        return not same(before, {name: value.detach() for name, value in learner.student.named_parameters()})

    learner.train_step(first, None)
    assert not weights_moved()
    learner.train_step(second, None)
    assert weights_moved() == skip


def test_finish_step_gets_the_steps_that_gradient_scaling_skips(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, batches = make()
    learner.scaler = torch.amp.GradScaler("cpu", enabled=True, init_scale=8.0)
    learner.sums.norms_may_overflow = True
    skipped: list[float] = []
    monkeypatch.setattr(learner.method, "finish_step", lambda flag: skipped.append(float(flag)))
    first, second, *_ = batches.epoch(0)
    before = values(learner.student)
    overflow = learner.student.body.fc.bias.register_hook(lambda gradient: gradient * torch.inf)
    learner.train_step(first, None)
    assert all(torch.equal(before[name], value) for name, value in learner.student.named_parameters())
    overflow.remove()
    learner.train_step(second, None)
    assert skipped == [1.0, 0.0]


SCHEDULES = (
    ("recipe.schedule_per=step", "recipe.warmup_epochs=0.5"),
    ("recipe.schedule=multistep", "recipe.milestones=[1]", "recipe.optimizer=adam"),
    ("recipe.schedule=one_cycle", "recipe.schedule_per=step", "recipe.warmup_epochs=1", "recipe.optimizer=adamw"),
)


@pytest.mark.parametrize("overrides", SCHEDULES)
def test_each_step_takes_the_learning_rate_of_its_epoch_and_step(make: Make, overrides: tuple[str, ...]) -> None:
    learner, batches = make("recipe.epochs=2", "recipe.batch_size=30", *overrides)
    taken: list[list[float]] = []
    learner.optimizer.register_step_pre_hook(
        lambda optimizer, *_: taken.append([float(group["lr"]) for group in optimizer.param_groups])
    )
    fit([learner], batches, 2)
    schedule = Schedule(learner.recipe, 3)
    expected = [schedule.at(epoch, step) for epoch in range(2) for step in range(3)]
    assert taken == [[rate] for rate in expected]
    assert len(set(expected)) == (2 if learner.recipe.schedule_per == "epoch" else 6)
    assert [row["lr"] for row in learner.rows] == expected[::3]


def test_each_learner_draws_its_own_random_numbers_also_after_a_resume(small: Callable[..., RunConfig]) -> None:
    def seeded(**seeds: int) -> Learner:
        config, _ = resolve_run(small("method=ce", *(f"{name}={seed}" for name, seed in seeds.items())))
        return build_learner(config, build_parts(config))

    def drawn(learner: Learner) -> Tensor:
        with learner.rng_scope():
            return torch.rand(3)

    one, other = seeded(data_seed=5), seeded(data_seed=5)
    first, second = drawn(one), drawn(one)
    assert torch.equal(drawn(other), first)
    torch.rand(7)
    resumed = seeded(data_seed=6)
    assert not torch.equal(drawn(resumed), first)
    resumed.load_state_dict(other.state_dict())
    assert torch.equal(drawn(resumed), second)
