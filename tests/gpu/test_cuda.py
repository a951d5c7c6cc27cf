"""What only a CUDA device can show. Run with `make test-gpu`; results go to docs/gpu-checks.md."""

import itertools

import pytest
import torch
from torchvision.transforms import functional as TF

from kdbench import tables, teachers
from kdbench.bench.arms import synthetic_table
from kdbench.data import Batches
from kdbench.data.views import NUM_VIEWS, crop, pad
from kdbench.errors import RunError
from kdbench.models import build, folded, weights
from kdbench.run import execute, prepare
from kdbench.runtime import applied, narrow, placed, resolve
from kdbench.teaching import LiveTeacher, TabulatedTeacher, no_teacher
from kdbench.train.evaluate import predict
from kdbench.train.learner import Learner
from kdbench.train.loop import train_epoch
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


def test_deterministic_runs_repeat_bit_for_bit(tmp_path):
    runs = [
        execute(composed(*SMALL_ON_CUDA, "method=feature", "runtime.deterministic=true", f"output_root={tmp_path / n}"))
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
def test_no_step_waits_for_the_host(learner_of, settings, precision):
    """torch raises at every synchronising call inside an epoch's steps."""
    method, table = settings
    learner, batches, teacher = learner_of(
        f"method={method}", f"teacher.table={table}", f"runtime.precision={precision}"
    )
    learner.begin_epoch()
    train_epoch([learner], batches.epoch(0), teacher)  # warm-up: libraries may synchronise when they start
    learner.begin_epoch()
    epoch = batches.epoch(1)
    first = next(epoch)  # the epoch's plan goes to the device once, before its first batch
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_epoch([learner], itertools.chain([first], epoch), teacher)
    finally:
        torch.cuda.set_sync_debug_mode("default")


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


@pytest.mark.parametrize("step", [0, 2])
def test_killed_run_resumes_to_the_same_numbers(tmp_path, step):
    settings = (
        *SMALL_ON_CUDA,
        "method=ce",
        "recipe.epochs=3",
        "runtime.deterministic=true",
        "checkpoint.every_minutes=0",
    )
    whole = execute(composed(*settings, f"output_root={tmp_path / 'whole'}"))
    config = composed(*settings, f"output_root={tmp_path / 'killed'}")
    with killed_after(epoch=2, step=step):
        execute(config)
    resumed = execute(config)
    assert resumed.weights.read_bytes() == whole.weights.read_bytes()
    assert resumed.logits.read_bytes() == whole.logits.read_bytes()
