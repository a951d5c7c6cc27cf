"""Checks of numbers: model, data, logits from weights, quality from logits, and the training in metrics.csv."""

import csv
import math
import statistics

from kdbench.config import RuntimeConfig
from kdbench.config.derived import MEASURE
from kdbench.metrics import accuracy
from kdbench.models import summarize
from kdbench.models.weights import read_metadata
from kdbench.rundir.student import inference_size
from kdbench.runner.results import data_sha256, quality_on_test
from kdbench.system.device import place, torch_settings
from kdbench.teachers.store import weights_metadata
from kdbench.train.evaluate import predict
from kdbench.train.loss_output import COLUMNS
from kdbench.verify.artifacts import HALF, Artifacts, existing
from kdbench.verify.checks import Checks, NotChecked, needed

LOGIT_TOLERANCE = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2}
"""Accepted difference of recomputed logits, relative to the largest: other processors round in another order."""
FLIP_TOLERANCE = 0.01
"""Accepted share of predictions that differ (at least two): where two logits are almost equal."""


def check_model(run: Artifacts, checks: Checks) -> None:
    """Check the metadata of the weights, and the size of the model."""
    if run.summary.kind == MEASURE:
        return
    with checks.checking("metadata of the weights"):
        metadata, config = read_metadata(existing(run.directory.weights)), needed(run.config, "config.yaml")
        for what, expected in weights_metadata(config.student, config.data, run.num_classes).items():
            checks.compare(f"{what} of the weights", expected, metadata.get(what), "in config.yaml")
    with checks.checking("size of the model"):
        model = summarize(needed(run.config, "config.yaml").student, run.spec, "student", trained=False)
        checks.same("of the model", num_params=model.num_params, macs=model.macs)
        if run.method and run.summary.inference_params is not None:
            network = needed(run.network, "best.safetensors").eval()
            params, macs = inference_size(network, run.method.eval(), model, run.spec)
            checks.same("of student and method", inference_params=params, inference_macs=macs)


def check_data(run: Artifacts, checks: Checks) -> None:
    """Check that the data here are those of the run."""
    with checks.checking("hashes of the data"):
        checks.same("of the data here", data_sha256=data_sha256(needed(run.dataset, "the data")))
    with checks.checking("labels"):
        logits, dataset = needed(run.logits, "logits.safetensors"), needed(run.dataset, "the data")
        for name, split in (("val", dataset.val), ("test", dataset.test)):
            if f"{name}_labels" in logits:
                wrong = int((logits[f"{name}_labels"].long() != split.labels.cpu()).sum())
                if wrong:
                    checks.failed(f"{name}_labels", f"{wrong} of {len(split)} differ from the data's")
                else:
                    checks.passed(f"{name}_labels", "equal to the data's")


def check_predictions(run: Artifacts, checks: Checks, quick: bool) -> None:
    """Check that the weights give the logits, on the recorded data and with the recorded precision."""
    if run.summary.kind == MEASURE:
        return
    with checks.checking("logits from the weights"):
        if quick:
            raise NotChecked("--quick")
        logits, dataset = needed(run.logits, "logits.safetensors"), needed(run.dataset, "the data")
        network, config = needed(run.network, "best.safetensors"), needed(run.config, "config.yaml")
        runtime = needed(run.runtime, "config.yaml")
        tolerance = max(LOGIT_TOLERANCE[config.runtime.precision], HALF if run.is_half else 0)
        for name, split in (("val", dataset.val), ("test", dataset.test)):
            if f"{name}_logits" not in logits:
                continue
            recorded = logits[f"{name}_logits"].float()
            with torch_settings(runtime):
                method = place(run.method, runtime) if run.method else None
                computed = predict(place(network, runtime), dataset, split, runtime, method)
            difference, largest = float((computed - recorded).abs().max()), float(recorded.abs().max())
            flips = int((computed.argmax(1) != recorded.argmax(1)).sum())
            detail = (
                f"largest difference {difference:.2g} of logits up to {largest:.3g}, "
                f"{flips} of {len(split)} predictions differ"
            )
            if runtime != config.runtime:
                detail += f"; computed on {settings(runtime)}, recorded on {settings(config.runtime)}"
            what = f"{name}_logits from the weights"
            if difference <= tolerance * largest and flips <= max(2, FLIP_TOLERANCE * len(split)):
                checks.passed(what, detail)
            else:
                checks.failed(what, detail)


def settings(runtime: RuntimeConfig) -> str:
    """Return the numeric settings of a runtime, for people."""
    return f"{runtime.device} in {runtime.precision} with threads: {runtime.threads}"


def check_quality(run: Artifacts, checks: Checks) -> None:
    """Check that accuracy, loss and calibration follow from the logits."""
    with checks.checking("quality"):
        logits = needed(run.logits, "logits.safetensors")
        best: float | NotChecked | None = NotChecked(
            "needs validation logits, which are not kept in a run's small form"
        )
        if not run.summary.validation:
            best = None
        elif "val_logits" in logits:
            best = accuracy(logits["val_logits"].numpy(), logits["val_labels"].numpy())
        test = quality_on_test(logits["test_logits"].numpy(), logits["test_labels"].numpy())
        checks.same("from the logits", run.tolerance, best_val_acc=best, **test)


def check_training(run: Artifacts, checks: Checks) -> None:
    """Check that metrics.csv and the summary describe the same training; nothing for a run without a training."""
    if not run.is_trained:
        return
    with checks.checking("metrics.csv"):
        with existing(run.directory.metrics).open(newline="") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file, strict=True)]
        missing = COLUMNS - rows[0].keys() if rows else COLUMNS
        if missing:
            checks.failed("metrics.csv", f"it has no {', '.join(sorted(missing))}")
            return
        epochs, seconds, accuracies, speeds = (
            [row[column] for row in rows] for column in ("epoch", "seconds", "val_acc", "images_per_second")
        )
        if epochs != list(range(1, len(rows) + 1)):
            checks.failed("metrics.csv", f"its epochs are not 1, 2, 3, ... but {epochs[:10]}")
            return
        if not all(math.isfinite(value) for row in rows for value in row.values()):
            checks.failed("metrics.csv", "it holds values that are not finite")
            return
        group, validation = Checks(checks.recorded), run.summary.validation
        group.same(
            "in metrics.csv",
            epochs=len(rows),
            best_val_acc=max(accuracies) if validation else None,
            best_val_epoch=accuracies.index(max(accuracies)) + 1 if validation else None,
            train_seconds=sum(seconds),
            images_per_second=statistics.median(speeds[1:] or speeds),
        )
        checks.add_group("metrics.csv", group)
    summary = run.summary
    of_last_epoch = summary.best_val_epoch is not None and summary.best_val_epoch == summary.epochs
    of_last_epoch |= not summary.validation
    checks.same(
        "of the same weights, the last epoch's",
        test_acc_final=summary.test_acc_best if of_last_epoch else NotChecked("the last epoch's weights are not kept"),
    )
