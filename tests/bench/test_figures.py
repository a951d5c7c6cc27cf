"""Figures: ratios per round, FLOPs, and the peak of known GPUs."""

import pytest
import torch

from kdbench.bench.arms import KDBENCH, KDBENCH_CACHE, REFERENCE
from kdbench.bench.measure import Timing, figures, peak_flops, spread
from kdbench.bench.trainee import Bench
from kdbench.models import summarize
from kdbench.runner.run import resolve_run
from tests.networks import SPEC


@pytest.fixture
def bench_of(small):
    return lambda *overrides: Bench(resolve_run(small(*overrides))[0], workers=0)


def test_ratios_compare_arms_of_the_same_round(bench_of):
    bench = bench_of("method=ce")
    rows = figures(bench, [Timing(REFERENCE, [4.0, 2.0, 8.0], 1), Timing(KDBENCH, [1.0, 1.0, 1.0], 1)])
    assert rows[1]["ratio"] == {"median": 4.0, "lowest": 2.0, "highest": 8.0, "n": 3}
    assert rows[0]["ratio"]["median"] == 1.0
    assert rows[1]["images_per_second"] == spread([32.0] * 3)
    assert rows[1]["flops_per_second"] == 32 * 6 * bench.student.macs
    assert rows[1]["share_of_peak"] is None


def test_flops_include_a_live_teacher_and_no_cached_one(bench_of):
    bench = bench_of("method=logit")
    teacher = summarize(bench.config.teacher.model, SPEC, "teacher")
    assert bench.flops_per_image(KDBENCH) - bench.flops_per_image(KDBENCH_CACHE) == 2 * teacher.macs


def test_peak_is_known_for_known_gpus(monkeypatch):
    assert peak_flops("cpu", "fp32") is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert peak_flops("cuda:0", "bf16") == 989e12
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some other")
    assert peak_flops("cuda:0", "bf16") is None
