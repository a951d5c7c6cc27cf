"""What every method has to do in training. Methods are found in conf/, so that a new one is tested too."""

import copy
import dataclasses
from typing import ClassVar

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch.nn import functional as F

from kdbench.config import CONF_DIR
from kdbench.errors import ConfigError, RunError
from kdbench.methods import CrossEntropy, Method
from kdbench.methods.base import Weights
from kdbench.models import build
from kdbench.runner.build import bind, build_learner, build_parts
from kdbench.system.device import autocast, place, resolve_runtime
from kdbench.teachers.live import LiveTeacher
from kdbench.train.evaluate import predict
from kdbench.train.learner import no_teacher, part_slices
from kdbench.train.loop import fit
from tests.conftest import rest_wide
from tests.every_method import EVERYDAY, for_few_images
from tests.networks import SPEC

CLASSES = {file.stem: get_class(OmegaConf.load(file)._target_) for file in sorted((CONF_DIR / "method").glob("*.yaml"))}


def methods(needs_teacher=False):
    """Return test parameters: every method by name, or every one with a teacher. Most are slow tests."""
    names = [name for name, target in CLASSES.items() if target.needs_teacher or not needs_teacher]
    return [pytest.param(name, marks=() if name in EVERYDAY else pytest.mark.wide) for name in names]


class Training:
    """A learner, its batches and a teacher with random weights, without a run directory."""

    def __init__(self, config):
        self.config = config = dataclasses.replace(config, runtime=resolve_runtime(config.runtime))
        parts = build_parts(config)
        self.dataset, self.batches = parts.dataset, parts.batches
        self.teacher = no_teacher
        if config.teacher:
            torch.manual_seed(99)
            requires = parts.method.requires
            network = build(config.teacher.model, SPEC, requires.teacher_network_stages)
            self.teacher = LiveTeacher(place(network, config.runtime), requires, config.runtime)
        bind(parts, [self.teacher.network] if config.teacher else [])
        self.learner = build_learner(config, parts)
        self.student, self.method = self.learner.student, self.learner.method
        self.learner.teacher = self.teacher

    def train_epoch(self):
        """Train one more epoch and return the student's weights."""
        fit([self.learner], self.batches, self.learner.epoch + 1)
        return self.student.body.state_dict()

    def train_step(self, batch):
        """Take one step, as the first of an epoch or after another one."""
        self.learner.train_step(batch, self.teacher(batch))

    def loss_terms(self, batch):
        """Return the terms of the loss without taking a step."""
        return self.forward(batch).terms

    def forward(self, batch):
        """Return what the method returns for a batch."""
        teacher = self.teacher(batch)
        teachers = [teacher.select(self.method.requires)] if teacher else []
        with autocast(self.config.runtime):
            return self.method(self.student(batch.images), teachers, batch, self.learner.progress)

    @property
    def first_batch(self):
        return next(self.batches.epoch(0))


def equal(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def copies(tensors):
    return [tensor.detach().clone() for tensor in tensors]


@pytest.fixture
def training(small):
    def build_training(*overrides):
        chosen = next((text.partition("=")[2] for text in overrides if text.startswith("method=")), "")
        return Training(small("runtime.threads=2", *overrides, *for_few_images(chosen)))

    return build_training


@pytest.mark.parametrize("method", CLASSES)
def test_a_method_declares_its_role_and_what_it_requires(training, method):
    target = CLASSES[method]
    assert target.role in ("baseline", "distilled", "control")
    requires = training(f"method={method}").method.requires
    assert bool(requires.teacher_logits or requires.teacher_stages) == target.needs_teacher


@pytest.mark.parametrize("method", methods())
def test_two_steps_change_every_parameter(training, method):
    run = training(f"method={method}")
    parameters = [*run.student.parameters(), *run.method.parameters()]
    run.learner.begin_epoch()
    run.forward(run.first_batch).terms["total"].backward()
    reached = [p for p in parameters if p.grad is not None and bool(p.grad.any())]
    before = copies(reached)
    run.train_epoch()
    assert run.learner.rows[0].keys() >= {"epoch", "train_loss", "train_acc", "val_acc", "grad_norm"}
    assert not any(torch.equal(p, b) for p, b in zip(reached, before, strict=True))
    # All are reached, except a classifier of the student's that does not predict and frozen modules of the teacher's.
    others = [p for p in parameters if p.requires_grad and not any(p is q for q in reached)]
    unused = [] if not predicts_itself(run.method) else list(run.student.body.fc.parameters())
    assert all(any(p is q for q in unused) for p in others)


def predicts_itself(method):
    """Return whether a method, and not the student's classifier, predicts."""
    return type(method).predict is not Method.predict


@pytest.mark.parametrize("method", methods())
def test_equal_seeds_give_equal_weights_bit_for_bit(training, method):
    first, second, other = (training(f"method={method}", f"seed={seed}").train_epoch() for seed in (3, 3, 4))
    assert equal(first, second)
    assert not equal(first, other)


@pytest.mark.parametrize("method", methods(needs_teacher=True))
def test_students_start_from_the_same_weights_with_every_method(training, method):
    baseline, distilled = (training(f"method={name}").student.body.state_dict() for name in ("ce", method))
    assert equal(baseline, distilled)


def without_kd(method):
    """Return overrides that leave the cross-entropy alone, or None for a method that has none."""
    names = [f.name for f in dataclasses.fields(CLASSES[method].Config)]
    if "ce_weight" not in names:
        return None
    others = ["kd_weight"] if "kd_weight" in names else [n for n in names if n.endswith("_weight") and n != "ce_weight"]
    alpha = ["method.alpha=null"] if "kd_weight" in names and CLASSES[method].Config.__mro__[1] is Weights else []
    return [*alpha, "method.ce_weight=1", *(f"method.{name}=0" for name in others)]


WITH_CE = [name for name in CLASSES if without_kd(name)]


@pytest.mark.parametrize("method", [p for p in methods(needs_teacher=True) if p.values[0] in WITH_CE])
def test_without_kd_weight_the_weights_are_those_of_the_baseline(training, method):
    # Projections are part of the common gradient norm, so clipping is off.
    baseline = training("method=ce", "recipe.clip_norm=null").train_epoch()
    assert equal(baseline, training(f"method={method}", "recipe.clip_norm=null", *without_kd(method)).train_epoch())


def test_logit_without_kd_weight_equals_the_baseline_with_clipping_too(training):
    no_kd = ("method.alpha=null", "method.ce_weight=1", "method.kd_weight=0")
    assert equal(training("method=ce").train_epoch(), training("method=logit", *no_kd).train_epoch())


@pytest.mark.parametrize("method", methods(needs_teacher=True))
def test_training_does_not_change_the_teacher(training, method):
    run = training(f"method={method}")
    before = {name: tensor.clone() for name, tensor in run.teacher.network.state_dict().items()}
    run.train_epoch()
    assert equal(before, run.teacher.network.state_dict())  # batch statistics included
    assert not run.teacher.network.training
    assert all(p.grad is None for p in run.teacher.network.parameters())


@pytest.mark.parametrize("method", methods(needs_teacher=True))
def test_teacher_outputs_carry_no_gradient(training, method):
    run = training(f"method={method}")
    output = run.teacher(run.first_batch)
    tensors = [*output.features.values(), *([] if output.logits is None else [output.logits])]
    assert tensors
    assert not any(tensor.requires_grad for tensor in tensors)


def test_explicit_weights_equal_the_corresponding_alpha(training):
    explicit = ("method.alpha=null", "method.ce_weight=0.25", "method.kd_weight=0.75")
    assert equal(training("method.alpha=0.75").train_epoch(), training(*explicit).train_epoch())


def test_projections_are_optimised_with_the_recipe_and_clipped_with_the_student(training):
    learner = training("method=feature", "recipe.clip_norm=0.01").learner
    groups = learner.optimizer.param_groups
    projections = list(learner.method.parameters())
    assert [len(group["params"]) for group in groups] == [len(list(learner.student.parameters())), 3]
    assert groups[0]["lr"] == groups[1]["lr"]
    assert groups[0]["weight_decay"] == groups[1]["weight_decay"]
    assert all(any(p is q for q in learner.clipped) for p in projections)


@pytest.mark.parametrize("clip_projections", [True, False])
def test_clipping_bounds_the_gradient_norm_of_the_clipped_parameters(training, clip_projections):
    run = training("method=feature", "recipe.clip_norm=0.01", f"recipe.clip_projections={clip_projections}")
    run.learner.begin_epoch()
    run.train_step(run.first_batch)

    def norm(parameters):
        return float(torch.stack([p.grad.norm() for p in parameters]).norm())

    own, projections = list(run.student.parameters()), list(run.method.parameters())
    assert norm(own + projections if clip_projections else own) == pytest.approx(0.01, rel=1e-3)
    if not clip_projections:
        assert norm(projections) > 0.01


def test_the_student_is_in_train_mode_again_after_validation(training):
    run = training("method=feature")
    run.train_epoch()
    run.learner.begin_epoch()
    assert run.student.training
    assert run.method.training


@pytest.mark.parametrize("method", rest_wide(sorted(CLASSES, key=lambda name: name != "feature")))
def test_bf16_autocast_keeps_weights_and_losses_in_float32(training, method):
    run = training(f"method={method}", "runtime.precision=bf16")
    run.learner.begin_epoch()
    assert all(term.dtype == torch.float32 for term in run.loss_terms(run.first_batch).values())
    run.train_step(run.first_batch)
    assert all(p.dtype == torch.float32 for p in run.student.parameters())
    assert all(bool(p.isfinite().all()) for p in run.student.parameters())


@pytest.mark.slow
def test_bf16_and_float32_losses_of_the_same_weights_are_close(training):
    losses = []
    for precision in ("fp32", "bf16"):
        run = training("method=logit", f"runtime.precision={precision}")
        losses.append(float(run.loss_terms(run.first_batch)["total"].detach()))
    assert losses[0] != losses[1]  # the precision did differ
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_memory_banks_are_neither_copied_at_each_step_nor_averaged(training):
    run = training("method=crd", "recipe.on_nonfinite=skip", "recipe.ema=0.9")
    banks = [run.method.student_bank, run.method.teacher_bank]
    copied = [*run.learner.buffers, *run.learner.average.weights]
    assert any(value is run.student.body.bn1.running_mean for value in copied)
    assert not any(value is bank for value in copied for bank in banks)


def test_no_step_is_taken_at_or_after_one_that_is_not_finite(training):
    run = training("method=ce")
    run.learner.begin_epoch()
    run.learner.sums.ends_at_once = False  # as on a device that runs ahead of the host
    first, second = list(run.batches.epoch(0))[:2]
    before = copies(run.student.parameters())
    run.train_step(first._replace(images=first.images * torch.nan))
    run.train_step(second)  # its loss is finite
    assert all(torch.equal(p, b) for p, b in zip(run.student.parameters(), before, strict=True))
    with pytest.raises(RunError) as error:
        run.learner.raise_if_failed()
    assert error.value.code == "not_finite"


def test_evaluation_restores_the_modes(training):
    run = training("method=feature")
    student, method = run.student.train(), run.method.train()
    predict(student, run.dataset, run.dataset.val, run.config.runtime, method)
    assert student.training
    assert method.training
    assert all(module.training for module in student.modules())


class Scripted(CrossEntropy):
    """Cross-entropy that predicts as many validation images correctly as a script demands."""

    answers: ClassVar[list] = []

    def predict(self, output):
        return self.answers.pop(0) if self.answers else output.logits


def test_the_weights_of_the_first_of_equally_good_epochs_are_kept(small):
    config = small("method=ce", "recipe.epochs=4")
    config.method = dataclasses.replace(config.method, target=Scripted)
    run = Training(config)
    labels = run.dataset.val.labels
    run.method.answers = [
        F.one_hot((labels + (torch.arange(50) >= correct)) % 10, 10).float() for correct in (0, 25, 25, 10)
    ]
    weights = [copy.deepcopy(run.train_epoch()) for _ in range(4)]
    assert [row["val_acc"] for row in run.learner.rows] == [0, 0.5, 0.5, 0.2]
    assert run.learner.best["epoch"] == 2
    assert equal(run.learner.best["weights"], weights[1])


@pytest.mark.parametrize(("optimizer", "kept"), [("sgd", 1), ("adam", 2), ("adamw", 2)])
def test_state_of_the_optimiser_has_the_memory_format_of_the_weights_after_loading(training, optimizer, kept):
    keys = ("method=ce", f"recipe.optimizer={optimizer}", "recipe.ema=0.9")
    first = training(*keys)
    first.train_epoch()
    state = copy.deepcopy(first.learner.state_dict())
    other = training(*keys, "runtime.channels_last=false")
    other.learner.load_state_dict(state)
    assert other.learner.optimizer.state
    for parameter, state in other.learner.optimizer.state.items():
        values = [value for value in state.values() if value.shape == parameter.shape]
        assert len(values) == kept
        assert all(value.stride() == parameter.stride() for value in values)
    average = other.learner.average
    assert all(a.stride() == w.stride() for a, w in zip(average.averages, average.weights, strict=True))


@pytest.mark.parametrize("method", ["ce", *(name for name in WITH_CE if CLASSES[name].soft_labels)])
def test_a_method_of_soft_labels_has_the_cross_entropy_with_mixed_labels(training, method):
    run = training(f"method={method}", "recipe.mixup=0.8", "recipe.label_smoothing=0.1")
    batch = run.first_batch
    run.student.eval()  # the same statistics for both passes
    with torch.no_grad():
        ce, logits = float(run.loss_terms(batch)["ce"]), run.student(batch.images).logits
    assert ce == pytest.approx(float(F.cross_entropy(logits, batch.soft_targets)), rel=1e-5)
    assert ce != pytest.approx(float(F.cross_entropy(logits, batch.labels)), rel=1e-5)


# Batches in parts


def to_double(run):
    """Compute in float64, with the running statistics of batch norm, so that images do not depend on each other."""
    run.learner.begin_epoch()
    for module in (run.student, run.method):
        module.double().eval()
    for kept in run.learner.optimizer.state.values():
        kept.update({name: value.double() for name, value in kept.items()})

    def teacher(batch):
        output = run.live(batch._replace(images=batch.images.float()))
        if output is None:
            return None
        features = {stage: values.double() for stage, values in output.features.items()}
        return output._replace(logits=None if output.logits is None else output.logits.double(), features=features)

    run.live, run.teacher = run.teacher, teacher
    return run


def doubled(batch):
    targets = None if batch.soft_targets is None else batch.soft_targets.double()
    return batch._replace(images=batch.images.double(), soft_targets=targets)


def gradients_and_terms(run, batch):
    """Return gradients, terms and logits of a batch by the learner's own way, in parts or as a whole."""
    run.learner.optimizer.zero_grad()
    output = run.teacher(batch)
    teachers = [output.select(run.method.requires)] if output else []
    backward = run.learner.backward if run.learner.recipe.accumulate == 1 else run.learner.backward_in_parts
    terms, logits = backward(batch, teachers)
    gradients = [p.grad for p in (*run.student.parameters(), *run.method.parameters()) if p.grad is not None]
    return [*gradients, *(terms[name].detach() for name in sorted(terms)), logits]


def refuses_parts(training, *keys):
    """Return whether a method refuses batches in parts."""
    try:
        training(*keys, "recipe.accumulate=2")
    except ConfigError as error:
        return (error.code, error.key) == ("whole_batch", "recipe.accumulate")
    return False


@pytest.mark.parametrize(
    ("method", "accumulate"),
    [
        *(pytest.param(*p.values, 3, marks=p.marks) for p in methods()),
        *(pytest.param(name, parts, marks=pytest.mark.wide) for name in EVERYDAY for parts in (2, 7)),
    ],
)
def test_gradients_and_terms_of_a_batch_in_parts_are_those_of_the_whole_batch(training, method, accumulate):
    soft = ("recipe.mixup=0.8", "recipe.label_smoothing=0.1") if CLASSES[method].soft_labels else ()
    keys = (f"method={method}", "recipe.batch_size=25", *soft)
    whole = to_double(training(*keys))
    assert refuses_parts(training, *keys) == whole.method.requires.whole_batch
    if whole.method.requires.whole_batch:
        return
    parts = to_double(training(*keys, f"recipe.accumulate={accumulate}"))
    batches = [doubled(batch) for batch in whole.batches.epoch(0)]
    assert [len(batch.labels) for batch in batches] == [25, 25, 14]
    for batch in (batches[0], batches[-1]):
        for own, expected in zip(gradients_and_terms(parts, batch), gradients_and_terms(whole, batch), strict=True):
            assert own.shape == expected.shape
            assert torch.allclose(own, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", methods())
def test_recorded_terms_of_batches_in_parts_are_means_over_the_whole_batch(training, method):
    found = []
    keys = (f"method={method}", "recipe.batch_size=25")
    for accumulate in (1,) if refuses_parts(training, *keys) else (1, 3):
        run = to_double(training(*keys, f"recipe.accumulate={accumulate}"))
        for batch in run.batches.epoch(0):
            run.train_step(doubled(batch))
        found.append(run.learner.sums.means(1))
    assert found[-1] == pytest.approx(found[0], rel=1e-6)


def test_no_part_of_a_batch_has_a_single_image(training):
    sizes = []
    run = training("method=ce", "recipe.batch_size=30", "recipe.accumulate=4")
    run.student.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    run.learner.begin_epoch()
    for batch in run.batches.epoch(0):
        run.train_step(batch)
    assert sizes == [7, 8, 7, 8, 7, 8, 7, 8, 2, 2]


def test_parts_of_a_batch_cover_it_once_in_order():
    for images in range(1, 40):
        for parts in range(1, 12):
            slices = part_slices(images, parts)
            assert [n for s in slices for n in range(images)[s]] == list(range(images))
            sizes = [s.stop - s.start for s in slices]
            assert len(sizes) <= parts
            assert min(sizes) >= min(2, images)
            assert max(sizes) - min(sizes) <= 1
