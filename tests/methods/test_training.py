"""What every method must do when it is trained: found from conf/, so that a new method is tested by being there."""

import copy

import pytest
import torch

from kdbench.config import CONF_DIR
from kdbench.data import Batches
from kdbench.models import build
from kdbench.parts import prepare
from kdbench.runtime import placed
from kdbench.teaching import LiveTeacher, no_teacher
from kdbench.train.evaluate import predict
from kdbench.train.group import Group, Pupil
from kdbench.train.learner import Learner
from kdbench.train.loop import train_epoch
from kdbench.train.steps import Steps
from tests.conftest import composed

METHODS = sorted(file.stem for file in (CONF_DIR / "method").glob("*.yaml"))
WITH_TEACHER = [name for name in METHODS if composed(f"method={name}").method.target.needs_teacher]


class Setup:
    """A learner, its batches and a random teacher, without any run directory."""

    def __init__(self, config):
        self.config = config
        parts = prepare(config)
        self.dataset = parts.dataset
        self.learner = Learner(parts.student, parts.method, config.recipe, config.runtime)
        self.batches = Batches(parts.dataset, config.recipe.batch_size, config.data_seed, True, True)
        self.teacher = no_teacher
        if config.teacher:
            torch.manual_seed(99)
            network = build(config.teacher.model, 10, parts.method.needs.teacher_stages)
            self.teacher = LiveTeacher(placed(network, config.runtime), parts.method.needs, config.runtime)

    def epoch(self):
        self.learner.begin_epoch()
        steps = Steps(self.batches, {self.learner: self.teacher})
        train_epoch(Group([Pupil(self.learner)]), steps, self.learner.position, self.batches.plan(self.learner.epoch))
        self.learner.end_epoch(self.dataset)
        return self.learner.student.body.state_dict()


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def setup(small):
    def make(*overrides):
        config = small(*overrides)
        config.runtime.threads = 2
        return Setup(config)

    return make


@pytest.mark.parametrize("method", METHODS)
def test_two_steps_change_every_parameter(setup, method):
    run = setup(f"method={method}")
    parameters = [*run.learner.student.parameters(), *run.learner.method.parameters()]
    before = [p.detach().clone() for p in parameters]
    run.epoch()
    assert run.learner.rows[0].keys() >= {"epoch", "train_loss", "ce", "train_acc", "val_acc", "grad_norm"}
    assert all(not torch.equal(p, b) for p, b in zip(parameters, before, strict=True))


@pytest.mark.parametrize("method", METHODS)
def test_equal_seeds_give_equal_weights_bit_for_bit(setup, method):
    first, second, other = (setup(f"method={method}", f"seed={seed}").epoch() for seed in (3, 3, 4))
    assert same(first, second)
    assert not same(first, other)


@pytest.mark.parametrize("method", METHODS)
def test_students_start_from_the_same_weights_whatever_the_method(setup, method):
    alone, taught = (setup(f"method={name}").learner.student.body.state_dict() for name in ("ce", method))
    assert same(alone, taught)


@pytest.mark.parametrize("method", WITH_TEACHER)
def test_without_kd_weight_the_weights_are_those_of_ce(setup, method):
    # Projections enter the common norm, so clipping is off.
    no_kd = ("method.alpha=null", "method.ce_weight=1", "method.kd_weight=0")
    alone = setup("method=ce", "recipe.clip_norm=null").epoch()
    assert same(alone, setup(f"method={method}", "recipe.clip_norm=null", *no_kd).epoch())


def test_logit_without_kd_weight_equals_ce_with_clipping_too(setup):
    no_kd = ("method.alpha=null", "method.ce_weight=1", "method.kd_weight=0")
    assert same(setup("method=ce").epoch(), setup("method=logit", *no_kd).epoch())


@pytest.mark.parametrize("method", WITH_TEACHER)
def test_the_teacher_stays_as_it_was(setup, method):
    run = setup(f"method={method}")
    before = {name: tensor.clone() for name, tensor in run.teacher.network.state_dict().items()}
    run.epoch()
    assert same(before, run.teacher.network.state_dict())  # batch statistics included
    assert not run.teacher.network.training
    assert all(p.grad is None for p in run.teacher.network.parameters())


@pytest.mark.parametrize("method", WITH_TEACHER)
def test_what_a_teacher_says_carries_no_gradient(setup, method):
    run = setup(f"method={method}")
    knowledge = run.teacher(next(run.batches.epoch(0)))
    answers = [*knowledge.features.values(), *([] if knowledge.logits is None else [knowledge.logits])]
    assert answers
    assert not any(answer.requires_grad for answer in answers)


def test_explicit_weights_equal_the_alpha_they_stand_for(setup):
    explicit = ("method.alpha=null", "method.ce_weight=0.25", "method.kd_weight=0.75")
    assert same(setup("method.alpha=0.75").epoch(), setup(*explicit).epoch())


def test_projections_are_optimised_with_the_recipe_and_clipped_with_the_student(setup):
    learner = setup("method=feature", "recipe.clip_norm=0.01").learner
    groups = learner.optimizer.param_groups
    projections = list(learner.method.parameters())
    assert [len(group["params"]) for group in groups] == [len(list(learner.student.parameters())), 3]
    assert groups[0]["lr"] == groups[1]["lr"]
    assert groups[0]["weight_decay"] == groups[1]["weight_decay"]
    assert all(any(p is q for q in learner.clipped) for p in projections)


@pytest.mark.parametrize("clip_projections", [True, False])
def test_clipping_bounds_the_norm_of_what_it_covers(setup, clip_projections):
    run = setup("method=feature", "recipe.clip_norm=0.01", f"recipe.clip_projections={clip_projections}")
    learner, batch = run.learner, next(run.batches.epoch(0))
    learner.begin_epoch()
    learner.step(learner.losses(batch, run.teacher(batch)))

    def norm(parameters):
        return float(torch.stack([p.grad.norm() for p in parameters]).norm())

    own, projections = list(learner.student.parameters()), list(learner.method.parameters())
    assert norm(own + projections if clip_projections else own) == pytest.approx(0.01, rel=1e-3)
    if not clip_projections:
        assert norm(projections) > 0.01


def test_student_is_in_train_mode_again_after_validation(setup):
    run = setup("method=feature")
    run.epoch()
    run.learner.begin_epoch()
    assert run.learner.student.training
    assert run.learner.method.training


@pytest.mark.parametrize("method", METHODS)
def test_bf16_autocast_keeps_weights_and_losses_in_float32(setup, method):
    run = setup(f"method={method}", "runtime.precision=bf16")
    learner, batch = run.learner, next(run.batches.epoch(0))
    learner.begin_epoch()
    terms = learner.losses(batch, run.teacher(batch))
    learner.step(terms)
    assert all(term.dtype == torch.float32 for term in terms.values())
    assert all(p.dtype == torch.float32 for p in learner.student.parameters())
    assert all(bool(p.isfinite().all()) for p in learner.student.parameters())


def test_bf16_and_float32_losses_of_the_same_weights_are_close(setup):
    losses = []
    for precision in ("fp32", "bf16"):
        run = setup("method=logit", f"runtime.precision={precision}")
        batch = next(run.batches.epoch(0))
        losses.append(float(run.learner.losses(batch, run.teacher(batch))["total"].detach()))
    assert losses[0] != losses[1]  # it really was another precision
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_learner_does_not_step_again_once_a_step_was_not_finite(setup):
    run = setup("method=ce")
    learner = run.learner
    learner.begin_epoch()
    learner.sums.ends_at_once = False  # as on a device that runs ahead of the host
    first, second = list(run.batches.epoch(0))[:2]
    terms = learner.losses(first, None)
    before = [p.detach().clone() for p in learner.student.parameters()]
    learner.step({name: term * torch.nan for name, term in terms.items()})
    learner.step(learner.losses(second, None))  # a healthy one
    assert all(torch.equal(p, b) for p, b in zip(learner.student.parameters(), before, strict=True))


def test_evaluation_leaves_the_modes_as_they_were(setup):
    run = setup("method=feature")
    student, method = run.learner.student.train(), run.learner.method.train()
    predict(student, run.dataset, run.dataset.val, run.config.runtime, method)
    assert student.training
    assert method.training
    assert all(module.training for module in student.modules())


def test_best_epoch_is_the_earliest_of_equals_and_its_weights_are_kept(setup, monkeypatch):
    run = setup("method=ce", "recipe.epochs=4")
    answers = iter([0, 25, 25, 10])  # right ones of 50
    labels = run.dataset.val.labels

    def so_many_right(*_):
        wrong = torch.arange(50) >= next(answers)
        return torch.nn.functional.one_hot((labels + wrong) % 10, 10).float()

    monkeypatch.setattr("kdbench.train.learner.predict", so_many_right)
    weights = []
    for _ in range(4):
        run.epoch()
        weights.append({name: tensor.clone() for name, tensor in run.learner.student.body.state_dict().items()})
    assert [row["val_acc"] for row in run.learner.rows] == [0, 0.5, 0.5, 0.2]
    assert run.learner.best["epoch"] == 2
    assert same(run.learner.best["weights"], weights[1])


def test_momentum_is_laid_out_as_the_weights_are_after_loading(setup):
    first = setup("method=ce")
    first.epoch()
    state = copy.deepcopy(first.learner.state_dict())
    other = setup("method=ce", "runtime.channels_last=false")
    other.learner.load_state_dict(state)
    for parameter, kept in other.learner.optimizer.state.items():
        assert parameter.stride() == kept["momentum_buffer"].stride()
