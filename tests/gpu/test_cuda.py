"""What only a CUDA device can show. Run with `make test-gpu`; results go to docs/gpu-checks.md."""

import dataclasses
import itertools
import logging
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as TF

from kdbench.bench.trainee import random_cache, untrained_teacher
from kdbench.config import RunConfig
from kdbench.data import Batches, load
from kdbench.data.batches import BatchPlan
from kdbench.data.policies import Policy
from kdbench.data.views import Views
from kdbench.errors import RunError
from kdbench.models import fuse_batch_norm, weights
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.identity import teacher_config
from kdbench.runner.build import Parts, bind, build_learner, build_parts
from kdbench.runner.policy import run_with_retries
from kdbench.runner.run_all import Train
from kdbench.system.device import autocast_dtype, resolve_runtime, torch_settings
from kdbench.system.signals import Interrupted, handled
from kdbench.teachers import cache
from kdbench.teachers.live import CachedTeacher, LiveTeacher
from kdbench.teachers.store import Teacher, build_teacher, load_verified
from kdbench.train.evaluate import predict
from kdbench.train.graphs import CapturedSteps, CudaRecorder, steps_for
from kdbench.train.learner import Learner
from kdbench.train.loop import fit, train_epoch
from kdbench.train.steps import EagerSteps, Steps
from tests.conftest import complete, composed_once, killed_after
from tests.data.test_policies import SIZES, sample_images, single_draws
from tests.every_method import EVERYDAY, METHODS, for_few_images
from tests.loss_terms import multiply_terms, nan_at
from tests.runner.trainers import at, with_learners

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

DEVICE = "cuda"
SMALL_ON_CUDA = (
    "student=resnet8", "teacher=resnet20", "data=shapes", "data.num_train=640", "data.num_val=100", "data.num_test=100",
    "recipe=smoke", "recipe.epochs=2", "recipe.batch_size=64", f"runtime.device={DEVICE}",
)  # fmt: skip
"""A run of two epochs of ten steps."""
SOURCES = [("ce", "off"), ("logit", "off"), ("logit", "on"), ("feature", "off")]
"""Methods, and whether their teacher's logits come from the logit cache."""
OTHERS = [name for name in METHODS if name not in EVERYDAY]
"""Methods beside these, tested in fewer settings."""
RECIPES: dict[str, tuple[str, ...]] = {
    "adamw, warm-up per step": (
        "recipe.optimizer=adamw", "recipe.lr=1e-3", "recipe.schedule_per=step", "recipe.warmup_epochs=0.5",
        "recipe.decay_all=false",
    ),
    "average, parts": ("recipe.ema=0.99", "recipe.accumulate=2"),
    "mixed": ("recipe.mixup=0.4", "recipe.cutmix=1.0", "recipe.label_smoothing=0.1", "recipe.erasing=0.5"),
    "rand_augment": ("recipe.policy=rand_augment", "recipe.policy_magnitude=12"),
    "trivial_augment": ("recipe.policy=trivial_augment",),
}  # fmt: skip
"""Settings beyond the reference study's recipe."""
ROUNDING = {"fp32": 1e-3, "bf16": 0.03, "fp16": 0.005}
"""How far a logit may be from the one expected, as a share of the largest, per precision. Kernels round differently;
the logits of another view are off by several times as much."""

LOSSES = 2
"""Number of loss terms of the baseline; accuracy and gradient norm follow."""

MakeLearner = Callable[..., tuple[Learner, Batches]]


def completed(config: RunConfig, train: Train = fit) -> RunDirectory:
    """Complete a run by a trainer, and return its directory."""
    (result,) = run_with_retries([config], train=train)
    if result.error:
        raise result.error
    assert result.directory
    return result.directory


def difference(logits: Tensor, expected: Tensor) -> float:
    """Return the largest difference, as a share of the largest value expected."""
    return float((logits - expected).abs().max() / expected.abs().max())


# Whole runs


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_in_every_precision(tmp_path: Path, method: str, precision: str) -> None:
    settings = (
        f"method={method}",
        *for_few_images(method),
        f"runtime.precision={precision}",
        f"output_root={tmp_path}",
    )
    summary = complete(composed_once(*SMALL_ON_CUDA, *settings)).read_summary()
    assert summary.precision == precision
    assert summary.peak_memory_bytes
    assert summary.peak_memory_bytes > 0


def test_auto_chooses_cuda_and_its_native_precision(tmp_path: Path) -> None:
    run = complete(composed_once(*SMALL_ON_CUDA, "runtime.device=auto", "method=ce", f"output_root={tmp_path}"))
    native = torch.cuda.get_device_capability()[0] >= 8
    assert run.read_summary().precision == ("bf16" if native else "fp32")
    assert run.read_summary().device == torch.cuda.get_device_name()


@pytest.mark.parametrize("method", METHODS)
def test_runs_of_the_repro_profile_repeat_bit_for_bit(tmp_path: Path, method: str) -> None:
    """The teacher's last maps are smaller than the student's, so that maps are pooled."""
    short = ("recipe.epochs=1", "data.num_train=128")
    keys = (f"method={method}", *for_few_images(method), "teacher=resnet18", *short)
    settings = (*SMALL_ON_CUDA, *keys, "runtime.profile=repro")
    runs = [complete(composed_once(*settings, f"output_root={tmp_path / name}")) for name in ("a", "b")]
    assert runs[0].weights.read_bytes() == runs[1].weights.read_bytes()


# Steps of a learner without a run directory


@pytest.fixture
def learner_of(tmp_path: Path) -> MakeLearner:
    """Return a learner on the GPU with its teacher, and its batches."""

    def make(*overrides: str) -> tuple[Learner, Batches]:
        config = composed_once(*SMALL_ON_CUDA, f"output_root={tmp_path}", *overrides)
        config = dataclasses.replace(config, runtime=resolve_runtime(config.runtime))
        parts, networks = build_parts(config), []
        if config.teacher:
            network = untrained_teacher(config, parts.method.requires, parts.dataset)
            networks.append(fuse_batch_norm(network, autocast_dtype(config.runtime)))
        bind(parts, networks)
        learner = build_learner(config, parts)
        if config.teacher and config.teacher.cache == "on":
            learner.teacher = random_cache(parts.dataset)
        elif config.teacher:
            learner.teacher = LiveTeacher(networks[0], parts.method.requires, config.runtime)
        return learner, parts.batches

    return make


def train(learner: Learner, steps: Steps, plans: Iterable[BatchPlan]) -> None:
    """Train a learner on the batches of its next epoch, which is not ended."""
    learner.begin_epoch()
    train_epoch([learner], steps, plans, learner.epoch)


def means_of_epochs(learner: Learner, steps: Steps, batches: Batches, epochs: int) -> tuple[Tensor, Tensor]:
    """Return the mean of every term in each of some epochs, and the weights after them."""
    found = []
    for epoch in range(epochs):
        train(learner, steps, batches.plan(epoch))
        found.append(torch.tensor(list(learner.sums.means(epoch + 1).values())))
        learner.epoch, learner.step_of_epoch = epoch + 1, 0
    return torch.stack(found), torch.cat([p.detach().flatten() for p in learner.student.parameters()])


def test_first_step_that_is_not_finite_blocks_all_later_ones_and_is_named(learner_of: MakeLearner) -> None:
    learner, batches = learner_of("method=ce", "runtime.precision=fp32")
    multiply_terms(learner, nan_at(1))
    before = [p.detach().clone() for p in learner.student.parameters()]
    train(learner, EagerSteps(batches), batches.plan(0))
    assert all(torch.equal(p, b) for p, b in zip(learner.student.parameters(), before, strict=True))
    with pytest.raises(RunError) as failed:
        learner.sums.means(1)
    assert (failed.value.code, failed.value.key) == ("not_finite", "recipe.lr")
    assert str(failed.value).startswith("epoch 1, step 1: ce is nan")


def test_step_that_is_not_finite_may_be_skipped_with_what_it_did_to_running_statistics(learner_of: MakeLearner) -> None:
    learner, batches = learner_of("method=ce", "runtime.precision=fp32", "recipe.on_nonfinite=skip")
    learner.begin_epoch()
    before = {name: value.clone() for name, value in learner.student.state_dict().items()}
    first, second, *_ = batches.epoch(0)
    learner.train_step(first._replace(images=first.images * torch.nan), None)
    assert all(torch.equal(value, before[name]) for name, value in learner.student.state_dict().items())
    learner.train_step(second, None)
    mean = "body.bn1.running_mean"
    assert not torch.equal(learner.student.state_dict()[mean], before[mean])
    assert int(learner.sums.skipped) == 1


@pytest.mark.parametrize(
    ("source", "precision", "graphs"),
    [
        *itertools.product(SOURCES, ("fp32", "bf16", "fp16"), ("true", "false")),
        *(((method, "off"), "bf16", "false") for method in OTHERS),
    ],
)
def test_no_step_waits_for_the_host(
    learner_of: MakeLearner, source: tuple[str, str], precision: str, graphs: str
) -> None:
    """torch raises at every synchronising call inside an epoch's steps."""
    method, cached = source
    keys = (f"teacher.cache={cached}", f"runtime.precision={precision}", f"runtime.graphs={graphs}")
    learner, batches = learner_of(f"method={method}", *for_few_images(method), *keys)
    steps = steps_for([learner], batches)
    train(learner, steps, batches.plan(0))  # libraries may wait when they start, and a capture does
    plans = list(batches.plan(1))  # copied to the device once, before the first batch
    torch.cuda.set_sync_debug_mode("error")
    try:
        learner.begin_epoch()
        steps.enter_stream()
        try:
            for plan in plans:
                batch, teacher_outputs = steps.prepare_batch(plan, [learner])
                steps.train_step(learner, batch, teacher_outputs)
        finally:
            steps.leave_stream()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("graphs", ["true", "false"])
def test_no_step_of_any_recipe_waits_for_the_host(
    learner_of: MakeLearner, recipe: tuple[str, ...], graphs: str
) -> None:
    """The plans of the batches too: the images of a policy are computed there."""
    learner, batches = learner_of("method=logit", f"runtime.graphs={graphs}", *recipe)
    steps = steps_for([learner], batches)
    train(learner, steps, batches.plan(0))
    plans = batches.plan(1)
    first = next(plans)  # everything random of the epoch is copied to the device before it
    torch.cuda.set_sync_debug_mode("error")
    try:
        learner.begin_epoch()
        steps.enter_stream()
        try:
            for plan in (first, *plans):
                batch, teacher_outputs = steps.prepare_batch(plan, [learner])
                steps.train_step(learner, batch, teacher_outputs)
        finally:
            steps.leave_stream()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_recipe_resumes_to_the_same_numbers(tmp_path: Path, recipe: tuple[str, ...]) -> None:
    settings = (*SMALL_ON_CUDA, "method=logit", "runtime.profile=repro", "checkpoint.every_minutes=0", *recipe)
    expected = complete(composed_once(*settings, f"output_root={tmp_path / 'whole'}"))
    config = composed_once(*settings, f"output_root={tmp_path / 'killed'}")
    with killed_after(1, 4):
        complete(config)
    assert complete(config).weights.read_bytes() == expected.weights.read_bytes()


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_batches_of_every_recipe_are_those_of_the_cpu(learner_of: MakeLearner, recipe: tuple[str, ...]) -> None:
    _, batches = learner_of("method=ce", *recipe)
    config = composed_once(*SMALL_ON_CUDA, "method=ce", *recipe)
    on_cpu = Batches(load(config.data, "cpu"), config.recipe, batches.data_seed, batches.channels_last)
    for batch, expected in zip(batches.epoch(1), on_cpu.epoch(1), strict=True):
        assert torch.equal(batch.labels.cpu(), expected.labels)
        torch.testing.assert_close(batch.images.cpu(), expected.images, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(batch.targets.cpu(), expected.targets)


def test_images_in_the_memory_of_the_host_give_the_same_batches(learner_of: MakeLearner) -> None:
    (_, on_device), (_, on_host) = (learner_of("method=ce", f"data.memory={place}") for place in ("device", "host"))
    assert on_host.dataset.val.images.is_pinned()
    for batch, expected in zip(on_host.epoch(1), on_device.epoch(1), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch[:4], expected[:4], strict=True))


@pytest.mark.parametrize(
    ("source", "recipe"),
    [
        *((source, ()) for source in SOURCES),
        *(((method, "off"), for_few_images(method)) for method in OTHERS),
        *((("logit", "off"), recipe) for recipe in RECIPES.values()),
    ],
)
def test_captured_steps_compute_what_eager_ones_do(
    learner_of: MakeLearner, source: tuple[str, str], recipe: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """The means of 50 steps in float32, a smaller batch in each epoch, within 1e-5."""
    caplog.set_level(logging.INFO, "kdbench")
    method, cached = source
    settings = (f"method={method}", f"teacher.cache={cached}", "runtime.precision=fp32", "runtime.profile=repro")
    settings += recipe
    results = []
    for captured in (False, True):
        learner, batches = learner_of(*settings, "recipe.epochs=5", "data.num_train=610")
        with torch_settings(learner.runtime):
            recorder = CudaRecorder(learner.runtime.device)
            steps = CapturedSteps(batches, recorder) if captured else EagerSteps(batches)
            results.append(means_of_epochs(learner, steps, batches, epochs=5))
    assert "CUDA graphs: " not in caplog.text
    assert isinstance(steps, CapturedSteps)
    assert all(part.replay for part in [*steps.prepared.values(), *steps.trained[learner].values()])
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-4, atol=1e-6)


def test_fused_optimiser_steps_as_the_plain_one_does(learner_of: MakeLearner) -> None:
    """The losses of 20 steps in float32, within 1e-5; after more, differences in rounding have grown too large."""
    results = []
    for fused in (True, False):
        learner, batches = learner_of("method=ce", "runtime.precision=fp32", "runtime.profile=repro", "recipe.epochs=2")
        if not fused:
            for group in learner.optimizer.param_groups:
                group["fused"] = False
            learner.optimizer.register_step_pre_hook(without_flag)
        with torch_settings(learner.runtime):
            results.append(means_of_epochs(learner, EagerSteps(batches), batches, epochs=2)[0][:, :LOSSES])
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=0)


def without_flag(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Remove the flag that stops a fused step, which a plain step refuses."""
    vars(optimizer)["found_inf"] = None


def test_a_step_that_cannot_be_captured_stays_eager_with_one_line(tmp_path: Path) -> None:
    settings = (*SMALL_ON_CUDA, "method=ce", "runtime.profile=repro", "recipe.epochs=3")

    def read_on_host(learners: Iterable[Learner]) -> None:
        for learner in learners:
            multiply_terms(learner, lambda batch, _: float(batch.labels.max()) < 10)

    expected = complete(composed_once(*settings, f"output_root={tmp_path / 'plain'}"))
    run = completed(composed_once(*settings, f"output_root={tmp_path / 'waiting'}"), with_learners(read_on_host))
    assert run.log.read_text().count("CUDA graphs: the step of CrossEntropy stays eager: ") == 1
    assert run.log.read_text().count("CUDA graphs: ") == 1
    assert run.weights.read_bytes() == expected.weights.read_bytes()


def test_lockstep_computes_what_each_run_does_alone(tmp_path: Path) -> None:
    def configs(name: str) -> list[RunConfig]:
        settings = (*SMALL_ON_CUDA, "runtime.profile=repro", "data.num_train=610", f"output_root={tmp_path / name}")
        return [composed_once(*settings, f"method={method}") for method in ("ce", "logit", "feature")]

    alone = [complete(config) for config in configs("alone")]
    for run, result in zip(alone, run_with_retries(configs("group"), ["a", "b", "c"]), strict=True):
        assert result.directory, result.error
        assert result.directory.read_summary().lockstep == 3
        assert result.directory.weights.read_bytes() == run.weights.read_bytes()
        assert "CUDA graphs: " not in result.directory.log.read_text()


def test_compiled_student_trains_and_is_close_to_the_plain_one(learner_of: MakeLearner) -> None:
    losses = []
    for compiled in ("false", "true"):
        learner, batches = learner_of("method=ce", "runtime.precision=fp32", f"runtime.compile={compiled}")
        losses.append(means_of_epochs(learner, steps_for([learner], batches), batches, epochs=1)[0])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-2, atol=1e-3)


def test_views_equal_torchvisions() -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4, 32, 32, 3), generator=random, dtype=torch.uint8)
    views = Views(padding=4, flip=True)
    padded = views.pad(images.to(DEVICE))
    for view in range(views.number):
        row, column, flip = view // 18, view // 2 % 9, view % 2
        expected = TF.crop(TF.pad(images.permute(0, 3, 1, 2), [4]), row, column, 32, 32)
        expected = TF.hflip(expected) if flip else expected
        rows = torch.arange(4, device=DEVICE)
        assert torch.equal(views.crop(padded, rows, torch.full_like(rows, view)).cpu(), expected)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_a_cuda_device_gives_the_results_of_the_cpu_and_is_not_waited_for(height: int, width: int) -> None:
    policies = [Policy("trivial_augment", height, width, device) for device in ("cpu", "cuda")]
    draws = single_draws(policies[0], torch.arange(len(policies[0].operations)))
    for image in sample_images(height, width):
        images = image.repeat(len(draws), 1, 1, 1)
        on_device = images.cuda()
        torch.cuda.set_sync_debug_mode("error")
        try:
            results = policies[1].apply(on_device, draws)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert torch.equal(results.cpu(), policies[0].apply(images, draws))


# Teachers


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[RunConfig, Parts, Teacher]]:
    """Return a run with a teacher that has learned something, per precision."""
    root = tmp_path_factory.mktemp("trained")

    def make(precision: str) -> tuple[RunConfig, Parts, Teacher]:
        longer = ("teacher.recipe.epochs=20", "teacher.recipe.batch_size=32")
        config = composed_once(*SMALL_ON_CUDA, *longer, f"output_root={root}", f"runtime.precision={precision}")
        config = dataclasses.replace(config, runtime=resolve_runtime(config.runtime))
        parts = build_parts(config)
        directory = complete(teacher_config(config))
        with torch_settings(config.runtime):
            teacher = load_verified(directory, config, parts.method.requires, parts.dataset)
        assert teacher.test_acc > 0.2
        return config, parts, teacher

    return make


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_fused_teacher_computes_what_the_plain_one_does(
    trained: Callable[[str], tuple[RunConfig, Parts, Teacher]], precision: str
) -> None:
    config, parts, teacher = trained(precision)
    whole = build_teacher(config, parts.dataset.spec)
    weights.load_into(whole, weights.read(teacher.directory.weights), "the teacher")
    with torch_settings(config.runtime):
        expected = predict(whole, parts.dataset, parts.dataset.test, config.runtime)
        logits = predict(teacher.network, parts.dataset, parts.dataset.test, config.runtime)
    assert difference(logits, expected) < ROUNDING[precision]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_the_logit_cache_holds_the_logits_of_the_live_teacher(
    trained: Callable[[str], tuple[RunConfig, Parts, Teacher]], precision: str
) -> None:
    config, parts, teacher = trained(precision)
    with torch_settings(config.runtime):
        logits = cache.obtain(cache.Choice(use=True, reason="", build=True), config, teacher, parts.batches)
        assert not isinstance(logits, str)
        cached = CachedTeacher(logits.to(DEVICE), parts.dataset.train)
        live = LiveTeacher(teacher.network, parts.method.requires, config.runtime)
        for batch in parts.batches.epoch(3):
            found, expected = cached(batch).logits, live(batch).logits
            assert found is not None
            assert expected is not None
            assert difference(found, expected.float()) < ROUNDING[precision]


# Stopped and continued

RESUMED = (*SMALL_ON_CUDA, "method=ce", "recipe.epochs=3", "runtime.profile=repro")


def test_run_that_a_signal_stops_resumes_to_the_same_numbers(tmp_path: Path) -> None:
    """Its checkpoint waits for the steps, which the device may not have finished."""
    settings = (*RESUMED, "checkpoint.every_minutes=null")
    whole = complete(composed_once(*settings, f"output_root={tmp_path / 'whole'}"))
    config = composed_once(*settings, f"output_root={tmp_path / 'stopped'}")
    with pytest.raises(Interrupted), handled():
        completed(config, at(("resnet8", "ce"), (1, 7), lambda: signal.raise_signal(signal.SIGTERM)))
    resumed = complete(config)
    assert resumed.log.read_text().count("after 1 of 3 epochs and 7 steps") == 2  # stopped, resuming
    assert resumed.weights.read_bytes() == whole.weights.read_bytes()


@pytest.mark.parametrize("step", [0, 2])
def test_killed_run_resumes_to_the_same_numbers(tmp_path: Path, step: int) -> None:
    settings = (*RESUMED, "checkpoint.every_minutes=0")
    whole = complete(composed_once(*settings, f"output_root={tmp_path / 'whole'}"))
    config = composed_once(*settings, f"output_root={tmp_path / 'killed'}")
    with killed_after(epoch=2, step=step):
        complete(config)
    resumed = complete(config)
    assert resumed.weights.read_bytes() == whole.weights.read_bytes()
    assert resumed.logits.read_bytes() == whole.logits.read_bytes()
