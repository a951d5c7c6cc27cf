"""Arms: which of them a configuration has, and that each trains, the reference and kdbench alike."""

import contextlib
import dataclasses
import multiprocessing

import pytest
import torch

from kdbench.bench.arms import ALONE, KDBENCH, KDBENCH_CACHE, REFERENCE
from kdbench.bench.prepare import differing_arms
from kdbench.bench.reference import PilImages, Prefetched
from kdbench.bench.trainee import Bench, Trainee
from kdbench.bench.training import whole_batches
from kdbench.data import Batches
from kdbench.runner.run import resolve_run
from kdbench.system.device import torch_settings

BF16 = "runtime.precision=bf16"


@pytest.fixture
def bench_of(small):
    def make(*overrides):
        config, _ = resolve_run(small(*overrides))
        return Bench(config, workers=0)

    return make


def names(bench):
    return [arm.name for arm in differing_arms(bench.config, bench.requires)]


@pytest.mark.slow
def test_arms_of_a_configuration_are_those_that_differ(bench_of):
    alone = ["views", "channels-last", "step"]
    assert names(bench_of("method=ce")) == ["reference", *alone, "kdbench"]
    assert names(bench_of("method=feature")) == ["reference", *alone, "fused", "kdbench"]
    assert names(bench_of("method=logit")) == ["reference", *alone, "fused", "cache", "kdbench", "kdbench-cache"]
    assert "precision" in names(bench_of("method=logit", BF16))


def test_every_arm_alone_differs_from_the_reference_in_one_setting():
    def settings(arm):
        return {name: value for name, value in vars(arm).items() if name not in ("name", "what")}

    for arm in ALONE:
        assert sum(settings(arm)[name] != settings(REFERENCE)[name] for name in settings(arm)) == 1
    assert all(settings(KDBENCH)[name] != settings(REFERENCE)[name] for name in settings(KDBENCH))


EVERY_DAY = (REFERENCE, KDBENCH, KDBENCH_CACHE)


@pytest.mark.parametrize(
    "arm",
    [
        pytest.param(arm, id=arm.name, marks=() if arm in EVERY_DAY else pytest.mark.wide)
        for arm in (REFERENCE, *ALONE, KDBENCH, KDBENCH_CACHE)
    ],
)
def test_every_arm_trains_into_the_next_epoch(bench_of, arm):
    bench = bench_of("method=logit", "teacher=resnet8", "data.num_train=36", "recipe.batch_size=8", BF16)
    trainee, fresh = Trainee(arm, bench), Trainee(arm, bench)
    with torch_settings(bench.config.runtime):
        assert trainee.train(6) > 0
    trained, untrained = (next(t.student.parameters()) for t in (trainee, fresh))
    assert not torch.equal(trained, untrained)
    assert trained.isfinite().all()


def test_batches_are_whole_without_end(bench_of):
    bench = bench_of("method=ce", "data.num_train=36", "recipe.batch_size=8")
    plans = whole_batches(Batches(bench.dataset, bench.config.recipe, data_seed=0, channels_last=False))
    assert [len(next(plans).rows) for _ in range(9)] == [8] * 9
    batches = bench.loader.batches(channels_last=False)
    assert [len(next(batches).labels) for _ in range(9)] == [8] * 9


def test_processes_of_the_loader_end_with_the_measurement(small):
    config, _ = resolve_run(small("method=ce"))
    with contextlib.closing(Bench(config, workers=1)) as bench:
        Trainee(REFERENCE, bench).train(1)
        assert len(multiprocessing.active_children()) == 1
    assert not multiprocessing.active_children()


def test_reference_and_kdbench_compute_the_same_step(bench_of):
    """With the same student, batch, memory format and teacher, the two trainers differ in speed alone."""
    bench = bench_of("method=logit")
    same_batches = dataclasses.replace(REFERENCE, views=True, channels_last=True)
    reference, own = Trainee(same_batches, bench), Trainee(KDBENCH, bench)
    with torch_settings(bench.config.runtime):
        reference.train(1)
        own.train(1)
    for a, b in zip(reference.student.parameters(), own.student.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_batches_made_while_other_arms_were_measured_are_discarded():
    batches = Prefetched(iter(range(100)), prefetched=2)
    batches.discard()
    assert next(batches) == 2  # 0 and 1 were ready
    batches.discard()
    batches.discard()
    assert [next(batches) for _ in range(2)] == [8, 9]


@pytest.mark.parametrize("augment", ["true", "false"])
def test_reference_augments_as_the_run_does(bench_of, augment):
    bench = bench_of("method=logit", f"data.augment={augment}")
    images = PilImages(bench.dataset)
    plain = bench.dataset.normalise(bench.dataset.train.images[:20].permute(0, 3, 1, 2))
    seen = torch.stack([images[row][0] for row in range(20)])
    assert torch.equal(seen, plain) == (augment == "false")
    with torch_settings(bench.config.runtime):
        Trainee(ALONE[-1], bench).train(1)  # the cache has a column for the views of the reference
