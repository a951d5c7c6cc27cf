"""The moving average of the weights: its formula, and where it stands in for the weights."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from kdbench.config import RunConfig
from kdbench.data import Batches
from kdbench.runner.build import Parts, build_learner, build_parts
from kdbench.runner.run import resolve_run
from kdbench.train.average import AveragedWeights
from kdbench.train.evaluate import predict
from kdbench.train.learner import Learner
from kdbench.train.loop import fit, train_epoch
from kdbench.train.steps import EagerSteps

TAKEN, SKIPPED = torch.tensor(0.0), torch.tensor(1.0)


def weight(*values: float) -> nn.Module:
    """Return a module of one weight vector."""
    module = nn.Linear(len(values), 1, bias=False)
    module.weight.data.copy_(torch.tensor([values]))
    return module


@pytest.mark.parametrize("decay", [0.5, 0.999])
def test_the_average_is_that_of_the_formula(decay: float) -> None:
    module = weight(1.0, -2.0)
    average = AveragedWeights([module], decay)
    expected = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    for step in range(1, 30):
        now = torch.tensor([[float(step), 0.5 * step - 3]])
        module.weight.data.copy_(now)
        average.update(TAKEN)
        kept = min(decay, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * now.double()
        assert torch.allclose(average.averages[0].double(), expected, rtol=1e-5, atol=1e-6)


def test_the_first_average_by_hand() -> None:
    module = weight(1.0)
    average = AveragedWeights([module], 0.999)
    module.weight.data.fill_(12.0)
    average.update(TAKEN)
    assert float(average.averages[0]) == pytest.approx(2 / 11 * 1 + 9 / 11 * 12)


def test_a_skipped_step_changes_and_counts_nothing() -> None:
    module = weight(1.0, 2.0)
    average = AveragedWeights([module], 0.9)
    average.update(TAKEN)
    before = copy.deepcopy(average.state_dict())
    module.weight.data.add_(5.0)
    average.update(SKIPPED)
    assert torch.equal(average.averages[0], before["averages"][0])
    assert int(average.steps) == 1


def test_the_average_stands_in_for_the_weights_and_they_return_bit_for_bit() -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = AveragedWeights([module], 0.9)
    for parameter in module.parameters():
        parameter.data.add_(torch.rand_like(parameter))
    average.update(TAKEN)
    before, pointers = copy.deepcopy(module.state_dict()), [p.data_ptr() for p in module.parameters()]
    with average.in_place():
        for held, value in zip(average.weights, average.averages, strict=True):
            assert torch.equal(held, value)
        assert not torch.equal(module[0].weight, before["0.weight"])
        raised = copy.deepcopy(module.state_dict())
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
    assert [p.data_ptr() for p in module.parameters()] == pointers
    with pytest.raises(ValueError, match="inside"), average.in_place():
        raise ValueError("inside")
    assert all(torch.equal(module.state_dict()[name], value) for name, value in before.items())
    with average.in_place():
        assert all(torch.equal(module.state_dict()[name], value) for name, value in raised.items())


def test_a_tensor_that_two_modules_share_is_averaged_once() -> None:
    first, second = weight(1.0), weight(2.0)
    second.weight = first.weight
    assert len(AveragedWeights([first, second], 0.9).averages) == 1


# In a run

EMA = ("method=ce", "recipe.ema=0.9", "recipe.epochs=2", "recipe.batch_size=16")
Make = Callable[..., tuple[Learner, Parts]]


@pytest.fixture
def make(small: Callable[..., RunConfig]) -> Make:
    """Build a learner with its data and batches."""

    def make_learner(*overrides: str) -> tuple[Learner, Parts]:
        config, _ = resolve_run(small(*EMA, *overrides))
        parts = build_parts(config)
        return build_learner(config, parts), parts

    return make_learner


def averages_of(learner: Learner) -> dict[str, Tensor]:
    """Return the averages of a learner's student by name."""
    assert learner.average
    named = {**dict(learner.student.named_parameters()), **dict(learner.student.named_buffers())}
    by_place = {
        held.data_ptr(): value for held, value in zip(learner.average.weights, learner.average.averages, strict=True)
    }
    return {name: by_place[t.data_ptr()] for name, t in named.items() if t.is_floating_point()}


def take_steps(learner: Learner, batches: Batches, number: int, epoch: int = 0, start: int = 0) -> None:
    plans = [plan for _, plan in zip(range(number), batches.plan(epoch, start), strict=False)]
    train_epoch([learner], EagerSteps(batches), plans, epoch, start)


def test_the_average_holds_no_weight_of_the_optimiser(make: Make) -> None:
    learner, _ = make()
    assert learner.average
    optimised = {id(p) for group in learner.optimizer.param_groups for p in group["params"]}
    assert not any(id(value) in optimised or value.requires_grad for value in learner.average.averages)
    places = {value.data_ptr() for value in learner.average.averages}
    assert not places & {p.data_ptr() for p in learner.student.parameters()}


def test_running_statistics_are_averaged(make: Make) -> None:
    learner, parts = make()
    name = "body.bn1.running_mean"
    expected = learner.student.state_dict()[name].clone()
    learner.begin_epoch()
    for step in range(3):
        take_steps(learner, parts.batches, 1, 0, step)
        kept = (2 + step) / (11 + step)
        expected = kept * expected + (1 - kept) * learner.student.state_dict()[name]
        assert torch.allclose(averages_of(learner)[name], expected, atol=1e-6)
    assert not torch.equal(expected, learner.student.state_dict()[name])


def test_validation_and_the_best_weights_are_those_of_the_average(make: Make) -> None:
    learner, parts = make()
    fit([learner], parts.batches, 1)
    assert learner.best
    averages = averages_of(learner)
    raw = learner.student.state_dict()
    for name, value in learner.best["weights"].items():
        if value.is_floating_point():
            assert torch.equal(value, averages[f"body.{name}"])
    assert not torch.equal(learner.best["weights"]["conv1.weight"], raw["body.conv1.weight"])
    raw_logits = predict(learner.student, parts.dataset, parts.dataset.val, learner.runtime, learner.method)
    assert not torch.equal(raw_logits, learner.best["val_logits"])
    with learner.averaged():
        logits = predict(learner.student, parts.dataset, parts.dataset.val, learner.runtime, learner.method)
    assert torch.equal(logits, learner.best["val_logits"])


def test_the_average_changes_no_training(make: Make) -> None:
    (with_average, parts), (without, others) = make(), make("recipe.ema=null")
    fit([with_average], parts.batches, 2)
    fit([without], others.batches, 2)
    assert without.average is None
    expected = without.student.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in with_average.student.state_dict().items())


def test_a_restored_average_continues_to_the_same_bits(make: Make) -> None:
    (whole, parts), (first, _), (resumed, _) = make(), make(), make()
    for learner, steps in ((whole, 4), (first, 2)):
        learner.begin_epoch()
        take_steps(learner, parts.batches, steps)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed.begin_epoch()
    take_steps(resumed, parts.batches, 2, 0, 2)
    assert whole.average
    assert resumed.average
    assert int(resumed.average.steps) == 4
    for value, expected in zip(resumed.average.averages, whole.average.averages, strict=True):
        assert torch.equal(value, expected)


def test_a_step_that_is_left_out_changes_no_average(make: Make) -> None:
    learner, parts = make("recipe.on_nonfinite=skip")
    learner.begin_epoch()
    batch = next(parts.batches.epoch(0))
    learner.train_step(batch, None)
    assert learner.average
    before = copy.deepcopy(learner.average.state_dict())
    learner.train_step(batch._replace(images=batch.images * torch.nan), None)
    assert all(torch.equal(a, b) for a, b in zip(learner.average.averages, before["averages"], strict=True))
    assert int(learner.average.steps) == int(before["steps"]) == 1


def test_a_buffer_that_is_not_finite_stays_as_it_is() -> None:
    module = torch.nn.Linear(2, 2)
    module.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    average = AveragedWeights([module], 0.9)
    average.update(torch.zeros(()))
    with average.in_place():
        assert torch.equal(module.mask, torch.tensor([0.0, -torch.inf]))
        assert bool(module.weight.isfinite().all())
