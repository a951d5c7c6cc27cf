"""What only a CUDA device can show. Run with `make test-gpu`; results go to docs/gpu-checks.md."""

import pytest
import torch

from kdbench.run import execute
from tests.conftest import composed

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


def test_first_step_that_is_not_finite_blocks_all_later_ones_on_the_device():
    from kdbench.train.optim import build_optimizer

    parameter = torch.nn.Parameter(torch.ones(8, device="cuda"))
    optimizer = build_optimizer(composed("method=ce").recipe, [parameter])
    parameter.grad = torch.full_like(parameter, torch.nan)
    optimizer.found_inf = torch.ones((), device="cuda")
    optimizer.step()
    assert torch.equal(parameter.detach(), torch.ones_like(parameter))


def test_no_step_waits_for_the_host(tmp_path):
    """torch raises at every synchronising call inside an epoch's steps."""
    from kdbench.data import Batches
    from kdbench.run import prepare
    from kdbench.runtime import resolve
    from kdbench.teachers import no_teacher
    from kdbench.train.learner import Learner
    from kdbench.train.loop import train_epoch

    config = composed(*SMALL_ON_CUDA, "method=ce", f"output_root={tmp_path}")
    config.runtime = resolve(config.runtime)
    parts = prepare(config)
    learner = Learner(parts.student, parts.method, config.recipe, config.runtime)
    batches = Batches(parts.dataset, 64, 0, True, True)
    learner.begin_epoch()
    train_epoch([learner], batches.epoch(0), no_teacher)  # warm-up: libraries may synchronise when they start
    learner.begin_epoch()
    steps = list(batches.epoch(1))
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_epoch([learner], steps, no_teacher)
    finally:
        torch.cuda.set_sync_debug_mode("default")
