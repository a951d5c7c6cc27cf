"""kdbench-measure: sizes, counts, accuracies and latencies of several runs, one run directory each."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from kdbench.deploy.latency import Candidate
from kdbench.deploy.sizes import compressed_size
from kdbench.pipeline.export import export
from kdbench.pipeline.measure import measure
from kdbench.rundir.load import load_run
from kdbench.runner import measuring
from tests.derived import ON_CPU, Copies, summary_of, texts

FEW = ("rounds=3", "batches=[2]", "warmup=1", *ON_CPU)


def measured(*runs: Path, settings: tuple[str, ...] = FEW) -> dict[str, Path]:
    """Measure runs, and return the new run directories by the key of the run that was measured."""
    folder = runs[0].parent
    before = {*folder.iterdir()}
    assert measure([*texts(runs), *settings]) == 0
    return {str(summary_of(path).parent_key): path for path in {*folder.iterdir()} - before}


def keys_of(runs: dict[str, Path]) -> list[str]:
    return [summary_of(path).run_key for path in runs.values()]


@pytest.fixture
def no_memory_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the process that measures memory, which takes seconds."""
    monkeypatch.setattr(measuring, "peak_memory", lambda *_: 12345)


@pytest.mark.usefixtures("no_memory_process")
@pytest.mark.slow
def test_several_runs_are_measured_together_one_run_directory_each(copies: Copies, tmp_path: Path) -> None:
    runs = copies("magnitude")
    found = measured(*runs.values())
    assert sorted(found) == sorted(keys_of(runs))
    for arm, run in runs.items():
        own, summary = summary_of(run), summary_of(found[summary_of(run).run_key])
        told: dict[str, Any] = summary.measurement or {}
        assert (summary.kind, told["together"]) == ("measure", sorted(keys_of(runs)))
        assert (told["rounds"], told["threads"], told["peak_memory_bytes"]) == (3, 1, 12345)
        assert {engine: sorted(by) for engine, by in told["latency"].items()} == {"onnx": ["2"], "torch": ["2"]}
        assert all(
            0 < latency["low_ms"] <= latency["median_ms"] <= latency["high_ms"]
            for by_batch in told["latency"].values()
            for latency in by_batch.values()
        )
        export([str(run), "--to", "onnx", "--out", str(tmp_path / arm)])
        content = (tmp_path / arm / "model.onnx").read_bytes()
        assert (told["size_bytes"], told["size_format"]) == (len(content), "onnx")
        assert told["size_compressed_bytes"] == len(gzip.compress(content, 9, mtime=0))
        logits = load_run(found[own.run_key]).logits
        np.testing.assert_allclose(logits["test_logits"], load_run(run).logits["test_logits"], atol=1e-4)
        assert summary.test_acc_best == pytest.approx(
            float((logits["test_logits"].argmax(1) == logits["test_labels"]).mean())
        )
        assert not (found[own.run_key] / "best.safetensors").exists()
    weights = load_file(runs["magnitude"] / "best.safetensors")
    zeros = sum(int((~mask).sum()) for name, mask in weights.items() if name.endswith("mask"))
    total = sum(mask.numel() for name, mask in weights.items() if name.endswith("mask"))
    pruned = summary_of(found[summary_of(runs["magnitude"]).run_key])
    assert pruned.sparsity == pytest.approx(zeros / total)
    others = sum(int((p != 0).sum()) for name, p in weights.items() if is_parameter(name))
    assert pruned.nonzero_params == total - zeros + others
    assert pruned.parent_test_acc == summary_of(runs["root"]).test_acc_best


def is_parameter(name: str) -> bool:
    """Return whether an entry of a masked network is a parameter without a mask."""
    return name.endswith(("weight", "bias")) and "parametrizations" not in name


@pytest.mark.slow
@pytest.mark.usefixtures("no_memory_process")
def test_what_was_measured_is_skipped_and_a_subset_is_another_measurement(
    copies: Copies, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = copies("magnitude")
    settings = ("rounds=3", "batches=[1]", "engines=[torch]", *ON_CPU)
    both = measured(*runs.values(), settings=settings)
    calls: list[Candidate] = []
    taken = Candidate.measure
    monkeypatch.setattr(Candidate, "measure", lambda self: (calls.append(self), taken(self))[1])
    assert measured(*reversed(runs.values()), settings=settings) == {}
    assert calls == []
    alone = measured(runs["root"], settings=settings)
    (key,) = alone
    assert calls
    assert summary_of(alone[key]).run_key != summary_of(both[key]).run_key
    assert summary_of(alone[key]).group_key == summary_of(both[key]).group_key
    assert (summary_of(alone[key]).measurement or {})["together"] == [key]
    (both[key] / "summary.json").unlink()
    calls.clear()
    assert measured(*runs.values(), settings=settings) == {}
    assert len({id(candidate) for candidate in calls}) == 2
    assert (both[key] / "summary.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("no_memory_process")
def test_an_engine_that_cannot_execute_a_network_is_named_with_the_reason(
    copies: Copies, capsys: pytest.CaptureFixture[str]
) -> None:
    (path,) = measured(copies("int8")["int8"]).values()
    told = summary_of(path).measurement or {}
    assert told["latency"]["torch"] is None
    assert "torch does not execute" in told["missing"]["torch"]
    assert "torch does not execute" in capsys.readouterr().out
    content = load_file(path.parent / summary_path(path) / "best.safetensors")["graph"]
    assert told["size_bytes"] == content.numel()
    assert told["energy_mj_per_image"] is None or "energy_mj_per_image" not in told["missing"]


def summary_path(path: Path) -> str:
    """Return the name of the run directory that a measurement measured."""
    (found,) = path.parent.glob(f"*_{summary_of(path).parent_key}")
    return found.name


@pytest.mark.slow
def test_the_memory_of_a_process_of_its_own_is_recorded(copies: Copies) -> None:
    (path,) = measured(copies()["root"], settings=("rounds=3", "batches=[64]", "engines=[onnx]", *ON_CPU)).values()
    told = summary_of(path).measurement or {}
    assert told["peak_memory_bytes"] > 64 * 8 * 32 * 32 * 4
    assert json.loads((path / "summary.json").read_text())["measurement"] == told


def test_the_size_after_gzip_is_that_of_the_highest_level() -> None:
    content = torch.zeros(10_000).numpy().tobytes() + np.random.default_rng(0).bytes(1000)
    assert compressed_size(content) == len(gzip.compress(content, 9, mtime=0)) < 1200
