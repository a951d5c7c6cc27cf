"""What only a CUDA device can show. Run with `make test-gpu`; results go to docs/gpu-checks.md."""

import logging
import signal

import pytest
import torch
from torchvision.transforms import functional as TF

from kdbench import tables, teachers
from kdbench.bench.arms import synthetic_table
from kdbench.data import Batches
from kdbench.data.views import NUM_VIEWS, crop, pad
from kdbench.errors import RunError
from kdbench.job import Job
from kdbench.models import build, folded, weights
from kdbench.parts import prepare
from kdbench.run import execute, execute_together
from kdbench.runtime import applied, narrow, placed, resolve
from kdbench.stopping import Interrupted, listening
from kdbench.teaching import LiveTeacher, TabulatedTeacher, no_teacher
from kdbench.train.evaluate import predict
from kdbench.train.graphs import CudaRecorder, GraphedSteps, steps_on
from kdbench.train.group import Group, Pupil
from kdbench.train.learner import Learner
from kdbench.train.loop import train_epoch
from kdbench.train.steps import Steps
from tests.conftest import composed, killed_after

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SMALL_ON_CUDA = (
    "student=resnet8", "teacher=resnet20", "data=shapes", "data.num_train=640", "data.num_val=100", "data.num_test=100",
    "recipe=smoke", "recipe.epochs=2", "runtime.device=cuda",
)  # fmt: skip


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("method", ["ce", "logit", "feature"])
def test_every_method_trains_in_every_precision(tmp_path, method, precision):
    run = execute(
        composed(*SMALL_ON_CUDA, f"method={method}", f"runtime.precision={precision}", f"output_root={tmp_path}")
    )
    summary = run.read_summary()
    assert summary["precision"] == precision
    assert summary["peak_memory_bytes"] > 0


def test_auto_chooses_cuda_and_its_native_precision(tmp_path):
    run = execute(composed(*SMALL_ON_CUDA[:-1], "method=ce", f"output_root={tmp_path}"))
    native = torch.cuda.get_device_capability()[0] >= 8
    assert run.read_summary()["precision"] == ("bf16" if native else "fp32")


def test_runs_of_the_repro_profile_repeat_bit_for_bit(tmp_path):
    runs = [
        execute(composed(*SMALL_ON_CUDA, "method=feature", "runtime.profile=repro", f"output_root={tmp_path / n}"))
        for n in ("a", "b")
    ]
    assert runs[0].weights.read_bytes() == runs[1].weights.read_bytes()


@pytest.fixture
def learner_of(tmp_path):
    """A learner on the GPU with its batches and teacher, without a run directory."""

    def make(*overrides):
        config = composed(*SMALL_ON_CUDA, f"output_root={tmp_path}", *overrides)
        config.runtime = resolve(config.runtime)
        parts = prepare(config)
        learner = Learner(parts.student, parts.method, config.recipe, config.runtime)
        teacher = no_teacher
        if config.teacher and config.teacher.table == "on":
            teacher = synthetic_table(config, parts.dataset)
        elif config.teacher:
            network = placed(build(config.teacher.model, 10, parts.method.needs.teacher_stages), config.runtime)
            teacher = LiveTeacher(folded(network, narrow(config.runtime)), parts.method.needs, config.runtime)
        return learner, Batches(parts.dataset, 64, 0, True, True), teacher

    return make


def test_first_step_that_is_not_finite_blocks_all_later_ones_and_is_named(learner_of):
    learner, batches, teacher = learner_of("method=ce", "runtime.precision=fp32")
    learner.begin_epoch()
    before = [p.detach().clone() for p in learner.student.parameters()]
    for number, batch in enumerate(batches.epoch(0)):
        terms = learner.losses(batch, teacher(batch))
        learner.step({name: term * torch.nan for name, term in terms.items()} if number == 0 else terms)
    assert all(torch.equal(p, b) for p, b in zip(learner.student.parameters(), before, strict=True))
    with pytest.raises(RunError, match="epoch 1, step 1: ce is nan"):
        learner.sums.means(1)


def test_step_that_is_not_finite_may_be_skipped_with_what_it_did_to_running_statistics(learner_of):
    learner, batches, teacher = learner_of("method=ce", "runtime.precision=fp32", "recipe.on_nonfinite=skip")
    learner.begin_epoch()
    before = {name: value.clone() for name, value in learner.student.state_dict().items()}
    first, second, *_ = batches.epoch(0)
    learner.step(learner.losses(first._replace(images=first.images * torch.nan), teacher(first)))
    assert all(torch.equal(value, before[name]) for name, value in learner.student.state_dict().items())
    learner.step(learner.losses(second, teacher(second)))
    assert not torch.equal(learner.student.body.bn1.running_mean, before["body.bn1.running_mean"])
    assert int(learner.sums.skipped) == 1


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("settings", [("ce", "off"), ("logit", "off"), ("logit", "on"), ("feature", "off")])
@pytest.mark.parametrize("graphs", ["true", "false"])
def test_no_step_waits_for_the_host(learner_of, settings, precision, graphs):
    """torch raises at every synchronising call inside an epoch's steps."""
    method, table = settings
    learner, batches, teacher = learner_of(
        f"method={method}", f"teacher.table={table}", f"runtime.precision={precision}", f"runtime.graphs={graphs}"
    )
    steps = steps_on(learner.runtime, batches, {learner: teacher})
    train(learner, steps, batches.plan(0))  # libraries may wait when they start, and recording does
    plan = list(batches.plan(1))  # goes to the device once, before the first batch
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps.begin_epoch(learner)
        with steps.running():
            for rows, views in plan:
                batch, known = steps.lesson(rows, views, [learner])
                steps.take(learner, batch, known)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def train(learner, steps, plan):
    steps.begin_epoch(learner)
    train_epoch(Group([Pupil(learner)]), steps, learner.position, plan)


def recorded_losses(learner, steps, batches, epochs):
    """The mean of every term of so many epochs of ten steps, and the weights after them."""
    found = []
    for epoch in range(epochs):
        train(learner, steps, batches.plan(epoch))
        found.append(torch.tensor(list(learner.sums.means(epoch + 1).values())))
        learner.epoch, learner.step_of_epoch = epoch + 1, 0
    return torch.stack(found), torch.cat([p.detach().flatten() for p in learner.student.parameters()])


@pytest.mark.parametrize("settings", [("ce", "off"), ("logit", "off"), ("logit", "on"), ("feature", "off")])
def test_recorded_steps_compute_what_eager_ones_do(learner_of, settings, caplog):
    """The sums of 50 steps in float32, a smaller batch among them, within 1e-5."""
    caplog.set_level(logging.INFO, "kdbench")
    method, table = settings
    overrides = (f"method={method}", f"teacher.table={table}", "runtime.precision=fp32", "runtime.profile=repro")
    results = []
    for kind in (Steps, lambda *given: GraphedSteps(*given, CudaRecorder("cuda:0"))):
        learner, batches, teacher = learner_of(*overrides, "recipe.epochs=5", "data.num_train=610")
        with applied(learner.runtime):
            steps = kind(batches, {learner: teacher})
            results.append(recorded_losses(learner, steps, batches, epochs=5))
    assert "graphs: " not in caplog.text
    assert all(part.replay for part in [*steps.lessons.values(), *steps.parts[learner].values()])
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-4, atol=1e-6)


def test_fused_optimiser_steps_as_the_plain_one_does(learner_of):
    """Losses of 50 steps in float32 within 1e-5."""
    results = []
    for fused in (True, False):
        learner, batches, teacher = learner_of(
            "method=ce", "runtime.precision=fp32", "runtime.profile=repro", "recipe.epochs=5"
        )
        if not fused:
            for group in learner.optimizer.param_groups:
                group["fused"] = False
        with applied(learner.runtime):
            results.append(recorded_losses(learner, Steps(batches, {learner: teacher}), batches, epochs=5)[0])
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=0)


def test_what_cannot_be_recorded_is_carried_out_as_written_and_said(tmp_path, monkeypatch):
    from kdbench.methods.ce import CrossEntropy

    forward = CrossEntropy.forward

    def waiting(self, *given, **named):
        terms = forward(self, *given, **named)
        return {name: term * (float(term.detach()) < 1e9) for name, term in terms.items()}

    settings = (*SMALL_ON_CUDA, "method=ce", "runtime.profile=repro", "recipe.epochs=3")
    expected = execute(composed(*settings, f"output_root={tmp_path / 'plain'}"))
    monkeypatch.setattr(CrossEntropy, "forward", waiting)
    run = execute(composed(*settings, f"output_root={tmp_path / 'waiting'}"))
    assert run.log.read_text().count("graphs: the part of CrossEntropy, launched step by step instead: ") == 1
    assert run.weights.read_bytes() == expected.weights.read_bytes()


def test_lockstep_computes_what_each_run_does_alone(tmp_path):
    def configs(where):
        settings = (*SMALL_ON_CUDA, "runtime.profile=repro", "data.num_train=610", f"output_root={tmp_path / where}")
        return [composed(*settings, f"method={method}") for method in ("ce", "logit", "feature")]

    alone = [execute(config) for config in configs("alone")]
    for run, outcome in zip(alone, execute_together(configs("group"), ["a", "b", "c"]), strict=True):
        assert outcome.error is None
        assert outcome.directory.weights.read_bytes() == run.weights.read_bytes()
        assert "graphs: " not in outcome.directory.log.read_text()


def test_compiled_student_trains_and_is_close_to_the_plain_one(learner_of):
    losses = []
    for compiled in ("false", "true"):
        learner, batches, teacher = learner_of("method=ce", "runtime.precision=fp32", f"runtime.compile={compiled}")
        steps = steps_on(learner.runtime, batches, {learner: teacher})
        losses.append(recorded_losses(learner, steps, batches, epochs=1)[0])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-2, atol=1e-3)


def test_views_equal_torchvisions():
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4, 32, 32, 3), generator=random, dtype=torch.uint8)
    padded = pad(images.cuda())
    for view in range(NUM_VIEWS):
        row, column, flip = view // 18, view // 2 % 9, view % 2
        expected = TF.crop(TF.pad(images.permute(0, 3, 1, 2), [4]), row, column, 32, 32)
        expected = TF.hflip(expected) if flip else expected
        rows = torch.arange(4, device="cuda")
        assert torch.equal(crop(padded, rows, torch.full_like(rows, view)).cpu(), expected)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A resnet20 that has learned something, per precision, and its run's config."""
    root = tmp_path_factory.mktemp("trained")

    def make(precision):
        longer = ("teacher.recipe.epochs=20", "teacher.recipe.batch_size=32")
        config = composed(*SMALL_ON_CUDA, *longer, f"output_root={root}", f"runtime.precision={precision}")
        config.runtime = resolve(config.runtime)
        parts = prepare(config)
        teacher = teachers.obtain(config, parts.method.needs, parts.dataset, execute)
        assert teacher.test_acc > 0.2
        return config, parts, teacher

    return make


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_folded_teacher_answers_what_the_unfolded_one_does(trained, precision):
    config, parts, teacher = trained(precision)
    whole = teachers.built(config)
    weights.load_into(whole, weights.read(teacher.directory.weights), "the teacher")
    with applied(config.runtime):
        expected = predict(whole, parts.dataset, parts.dataset.test, config.runtime)
        answered = predict(teacher.network, parts.dataset, parts.dataset.test, config.runtime)
    assert tables.compared(answered, expected) < tables.TOLERANCE[precision]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_table_holds_what_the_live_teacher_answers(trained, precision):
    config, parts, teacher = trained(precision)
    with applied(config.runtime):
        choice = tables.Choice(use=True, reason="", build=True)
        table = tables.obtain(choice, config, teacher, parts.batches)
        assert not isinstance(table, str)
        tabulated = TabulatedTeacher(table.cuda(), parts.dataset.train, tables.views_of(config))
        live = LiveTeacher(teacher.network, parts.method.needs, config.runtime)
        for batch in parts.batches.epoch(3):
            error = tables.compared(tabulated(batch).logits, live(batch).logits.float())
            assert error < tables.TOLERANCE[precision]


def test_run_that_a_signal_stops_resumes_to_the_same_numbers(tmp_path, monkeypatch):
    """Its checkpoint waits for the steps, which the device may have before it."""
    settings = (
        *SMALL_ON_CUDA,
        "method=ce",
        "recipe.epochs=3",
        "runtime.profile=repro",
        "checkpoint.every_minutes=null",
    )
    whole = execute(composed(*settings, f"output_root={tmp_path / 'whole'}"))
    config = composed(*settings, f"output_root={tmp_path / 'stopped'}")
    between_steps = Job.between_steps

    def asked(self):
        if self.learner.position == (1, 7):
            signal.raise_signal(signal.SIGTERM)
        between_steps(self)

    monkeypatch.setattr(Job, "between_steps", asked)
    with pytest.raises(Interrupted), listening():
        execute(config)
    monkeypatch.undo()
    assert execute(config).weights.read_bytes() == whole.weights.read_bytes()


@pytest.mark.parametrize("step", [0, 2])
def test_killed_run_resumes_to_the_same_numbers(tmp_path, step):
    settings = (
        *SMALL_ON_CUDA,
        "method=ce",
        "recipe.epochs=3",
        "runtime.profile=repro",
        "checkpoint.every_minutes=0",
    )
    whole = execute(composed(*settings, f"output_root={tmp_path / 'whole'}"))
    config = composed(*settings, f"output_root={tmp_path / 'killed'}")
    with killed_after(epoch=2, step=step):
        execute(config)
    resumed = execute(config)
    assert resumed.weights.read_bytes() == whole.weights.read_bytes()
    assert resumed.logits.read_bytes() == whole.logits.read_bytes()
