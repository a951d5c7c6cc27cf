"""deployment.csv and deployment_classes.csv, computed again by hand from what was written."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from tests.report.conftest import report_of
from tests.report.deployment.writing import (
    INT8,
    STRUCTURED,
    measurement,
    write_compressed,
    write_measured,
    write_study,
    write_trained,
)

BEFORE, PRUNED, QUANTISED = (0.90, 0.91, 0.92), (0.87, 0.86, 0.90), (0.865, 0.862, 0.891)


@pytest.fixture
def chain(tmp_path):
    """Three seeds of a network that was pruned, then quantised, and measured each time."""
    for seed in range(3):
        trained = write_trained(tmp_path, "resnet32", seed, BEFORE[seed], agreement=None)
        write_measured(tmp_path, trained, ms=2.0 + seed, size=2_000_000 + seed)
        pruned = write_compressed(
            tmp_path, trained, STRUCTURED, PRUNED[seed], params=200_000, nonzero_params=150_000 + seed, sparsity=0.25,
            agreement=0.8 + seed / 100, per_class_acc=[PRUNED[seed]] * 9 + [PRUNED[seed] - seed / 100],
        )  # fmt: skip
        write_measured(tmp_path, pruned, ms=1.0 + seed, size=900_000, agreement=0.8 + seed / 100)
        both = write_compressed(tmp_path, pruned, INT8, QUANTISED[seed], parent_kl_t1=0.1 * seed)
        write_measured(tmp_path, both, ms=0.5, size=250_000, accuracy=QUANTISED[seed] + 0.001)
    return report_of(tmp_path)


def row_of(report, form):
    table = report.deployment.table
    assert (table.form == form).sum() == 1, list(table.form)
    return table[table.form == form].iloc[0]


def interval(differences):
    half = stats.t.ppf(0.975, len(differences) - 1) * np.std(differences, ddof=1) / math.sqrt(len(differences))
    return np.mean(differences) - half, np.mean(differences) + half


def test_a_form_has_the_mean_and_spread_of_its_runs(chain):
    assert list(chain.deployment.table.form) == [
        "resnet32 baseline", "resnet32 baseline, structured 0.5", "resnet32 baseline, structured 0.5, int8",
    ]  # fmt: skip
    row = row_of(chain, "resnet32 baseline, structured 0.5")
    assert row.n == 3
    assert row.form_mean == pytest.approx((87 + 86 + 90) / 3)
    assert row.form_std == pytest.approx(np.std([87, 86, 90], ddof=1))
    assert (row.student, row.method, row.role) == ("resnet32-structured", "ce", "baseline")
    assert row.compression == "structured 0.5"


def test_changes_are_paired_by_seed_against_the_last_step_and_against_the_start(chain):
    row = row_of(chain, "resnet32 baseline, structured 0.5, int8")
    last = [86.6 - 87, 86.3 - 86, 89.2 - 90]
    whole = [86.6 - 90, 86.3 - 91, 89.2 - 92]
    assert (row.n_parent, row.n_start) == (3, 3)
    assert (row.parent_change, row.parent_low, row.parent_high) == pytest.approx((np.mean(last), *interval(last)))
    assert (row.start_change, row.start_low, row.start_high) == pytest.approx((np.mean(whole), *interval(whole)))


def test_a_network_that_was_not_compressed_has_no_change(chain):
    row = row_of(chain, "resnet32 baseline")
    assert row[["parent_change", "parent_low", "start_change", "n_parent", "n_start", "parent_agreement"]].isna().all()


def test_costs_are_means_over_the_runs(chain):
    row = row_of(chain, "resnet32 baseline")
    assert row.onnx_ms == pytest.approx((2 + 3 + 4) / 3)
    assert (row.onnx_ms_low, row.onnx_ms_high) == pytest.approx((0.9 * 3, 1.2 * 3))
    assert row.torch_ms == pytest.approx(2 * 3)
    assert row.batch == 64
    assert row.onnx_batch_ms == pytest.approx(0.5 * 64 * 3)
    assert (row.onnx_batch_low, row.onnx_batch_high) == pytest.approx((0.9 * 96, 1.2 * 96))
    assert row.torch_batch_ms == pytest.approx(64 * 3)
    speeds = [1000 * 64 / (0.5 * 64 * ms) for ms in (2, 3, 4)]
    assert row.onnx_throughput == pytest.approx(np.mean(speeds))
    assert row.torch_throughput == pytest.approx(np.mean(speeds) / 2)
    assert row.size_bytes == pytest.approx(2_000_001)
    assert row.size_compressed_bytes == pytest.approx(1_800_001, abs=1)
    assert (row.size_format, row.measured_on, row.rounds, row.session) == ("onnx", "a CPU with 1 thread", 20, 1)
    assert row.peak_memory_bytes == 50_000_000
    assert row.isna().energy_mj_per_image
    assert row.missing == "energy mj per image: the processor has no counter of energy"


def test_agreement_and_sizes_of_a_form(chain):
    row = row_of(chain, "resnet32 baseline, structured 0.5")
    assert row.agreement == pytest.approx(81)
    assert row.parent_agreement == pytest.approx(90)
    assert row.parent_kl_t1 == pytest.approx(0.05)
    assert (row.params, row.nonzero_params, row.sparsity) == (200_000, 150_001, 25)
    assert row.macs == round(69_000_000 * 200_000 / 464_154)
    assert (row.ece, row.nll) == pytest.approx((2, 0.3))
    assert row_of(chain, "resnet32 baseline, structured 0.5, int8").parent_kl_t1 == pytest.approx(0.1)


def test_classes_change_against_both(chain):
    table = chain.deployment.classes
    own = table[table.form == "resnet32 baseline, structured 0.5"]
    assert list(own.class_index) == list(range(10))
    first, last = own.iloc[0], own.iloc[-1]
    changes = [87 - 90, 86 - 91, 90 - 92]
    assert first.deployed_class_acc == pytest.approx((87 + 86 + 90) / 3)
    assert (first.start_class_change, first.start_class_low, first.start_class_high) == pytest.approx(
        (np.mean(changes), *interval(changes))
    )
    assert first.parent_class_change == pytest.approx(first.start_class_change)  # one step: the same network
    assert last.start_class_change == pytest.approx(np.mean([87 - 90, 85 - 91, 88 - 92]))
    both = table[table.form == "resnet32 baseline, structured 0.5, int8"].iloc[-1]
    steps = [QUANTISED[seed] - (PRUNED[seed] - seed / 100) for seed in range(3)]
    assert both.parent_class_change == pytest.approx(100 * np.mean(steps))
    plain = table[table.form == "resnet32 baseline"]
    assert plain[["parent_class_change", "start_class_change", "start_class_low"]].isna().all(axis=None)


def test_one_seed_has_a_change_without_an_interval(tmp_path):
    trained = write_trained(tmp_path, "resnet8", 0, 0.9)
    write_measured(tmp_path, write_compressed(tmp_path, trained, INT8, 0.89), ms=1, size=1000)
    row = report_of(tmp_path).deployment.table.iloc[0]
    assert (row.n, row.parent_change, row.start_change) == pytest.approx((1, -1, -1))
    assert row[["form_std", "parent_low", "parent_high", "start_low", "start_high"]].isna().all()


def test_the_start_is_unknown_without_its_run_or_with_other_weights(tmp_path):
    for name, others in (("without", {}), ("changed", {"parent_weights_sha256": "a" * 64})):
        root = tmp_path / name
        trained = write_trained(root if others else tmp_path / "apart", "resnet8", 0, 0.9, weights_sha256="b" * 64)
        compressed = write_compressed(root, trained, INT8, 0.89, **others)
        write_measured(root, compressed, ms=1, size=1000)
        report = report_of(root)
        row = report.deployment.table.iloc[0]
        assert row.isna().start_change, name
        assert row.parent_change == pytest.approx(-1)
        assert any("other weights" in remark for remark in report.remarks) == bool(others)


def test_engines_and_values_that_were_not_measured_are_empty_with_their_reason(tmp_path):
    for seed in range(2):
        run = write_trained(tmp_path, "resnet8", seed, 0.9)
        one = {"median_ms": 1.0, "low_ms": 0.9, "high_ms": 1.1, "images_per_second": 1000.0}
        missing = {"torch": "int8 has no kernel here"} | ({"peak_memory_bytes": "no cgroup"} if seed else {})
        latency = {"onnx": {"1": one}, "torch": None}
        write_measured(tmp_path, run, ms=1, size=10, latency=latency, missing=missing, peak_memory_bytes=None)
    row = report_of(tmp_path).deployment.table.iloc[0]
    assert row.onnx_ms == 1
    empty = ["batch", "onnx_batch_ms", "onnx_throughput", "torch_ms", "torch_throughput", "peak_memory_bytes"]
    assert row[empty].isna().all()
    assert row.missing == "torch: int8 has no kernel here; peak memory bytes: no cgroup (1 of 2 runs)"


@pytest.mark.parametrize("broken", [{}, {"latency": 3}, {"latency": {"onnx": {"1": 4, "x": {}}}, "together": "a"}])
def test_a_measurement_of_another_shape_is_empty(broken, tmp_path):
    run = write_trained(tmp_path, "resnet8", 0, 0.9)
    whole = measurement(["all"], 1, 10) | broken if broken else {}
    write_measured(tmp_path, run, ms=1, size=10, measurement=whole)
    row = report_of(tmp_path).deployment.table.iloc[0]
    assert row.isna().onnx_ms
    assert row.session == 1


def test_a_compressed_network_that_was_not_measured_has_a_row_without_costs(tmp_path):
    trained = write_trained(tmp_path, "resnet8", 0, 0.9)
    write_compressed(tmp_path, trained, INT8, 0.89)
    report = report_of(tmp_path)
    row = report.deployment.table.iloc[0]
    assert row[["session", "size_bytes", "onnx_ms", "measured_on"]].isna().all()
    assert row.form_mean == pytest.approx(89)
    assert row.remarks == "compressed, not measured"
    assert "compressed and not measured: resnet8 baseline, int8" in report.remarks
    assert report.deployment.sentences == []


def test_tables_are_described_and_shown(tmp_path, kdbench_report):
    write_study(tmp_path / "runs", seeds=range(2))
    result = kdbench_report(tmp_path / "runs")
    assert result.code == 0
    assert len(result.table("deployment")) == 12
    assert len(result.table("deployment_classes")) == 120
    page = result.text("report.html")
    assert "From a trained network to a device" in page
    assert 'id="deployment-12"' in page
    assert "resnet32 teacher, structured 0.7, fine-tuned" in page
    assert "## From a trained network to a device" in result.text("report.md")
    assert pd.read_json(result.folder / "results.json", typ="series").deployment
    assert "At about equal size" in result.out
