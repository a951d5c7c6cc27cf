"""Checks of numbers: data, logits from weights, quality from logits, and what metrics.csv says of the training."""

import csv
import math
import statistics

from kdbench.config import RuntimeConfig
from kdbench.data.dataset import IMAGE_SHAPE, NUM_CLASSES
from kdbench.methods.method import Method
from kdbench.metrics import accuracy
from kdbench.models import describe
from kdbench.models.weights import read_metadata
from kdbench.runtime import applied, placed
from kdbench.summary import data_sha256, quality_on_test, weights_metadata
from kdbench.train.evaluate import predict
from kdbench.train.learner import COLUMNS
from kdbench.verify.findings import Findings, NotChecked, needed
from kdbench.verify.material import HALF, Run, there

LOGITS_OFF = {"fp32": 1e-3, "fp16": 1e-2, "bf16": 5e-2}
"""How far logits computed anew may be off, relative to the largest: other processors round in another order."""
FLIPS_OFF = 0.01
"""Share of the predictions that may differ with it, two at least: where two logits are almost equal."""


def check_model(run: Run, found: Findings) -> None:
    with found.checking("weights' metadata"):
        metadata, config = read_metadata(there(run.directory.weights)), needed(run.config, "config.yaml")
        for what, expected in weights_metadata(config.student, config).items():
            found.compare(f"weights' {what}", expected, metadata.get(what), "in config.yaml")
    with found.checking("num_params"):
        description = describe(needed(run.config, "config.yaml").student, NUM_CLASSES, IMAGE_SHAPE, "student")
        found.same("num_params", description.num_params, "of the model")
        found.same("macs", description.macs, "of the model")


def check_data(run: Run, found: Findings) -> None:
    with found.checking("data_sha256"):
        found.same("data_sha256", data_sha256(needed(run.dataset, "the data")), "of the data here")
    with found.checking("labels"):
        logits, dataset = needed(run.logits, "logits.safetensors"), needed(run.dataset, "the data")
        for name, split in (("val", dataset.val), ("test", dataset.test)):
            if f"{name}_labels" in logits:
                wrong = int((logits[f"{name}_labels"].long() != split.labels.cpu()).sum())
                if wrong:
                    found.fails(f"{name}_labels", f"{wrong} of {len(split)} are not the data's")
                else:
                    found.holds(f"{name}_labels", "the data's")


def check_predictions(run: Run, found: Findings, quick: bool) -> None:
    """The weights answer the logits, on the data and with the precision that were recorded."""
    with found.checking("logits from the weights"):
        if quick:
            raise NotChecked("--quick")
        logits, dataset = needed(run.logits, "logits.safetensors"), needed(run.dataset, "the data")
        network, config = needed(run.network, "best.safetensors"), needed(run.config, "config.yaml")
        runtime = needed(run.runtime, "config.yaml")
        if not run.is_given and config.method.target.predict is not Method.predict:
            raise NotChecked(f"method={config.method.name} takes part in predictions, and its weights are not kept")
        off = max(LOGITS_OFF[config.runtime.precision], HALF if run.is_half else 0)
        for name, split in (("val", dataset.val), ("test", dataset.test)):
            if f"{name}_logits" not in logits:
                continue
            recorded = logits[f"{name}_logits"].float()
            with applied(runtime):
                here = predict(placed(network, runtime), dataset, split, runtime)
            difference, largest = float((here - recorded).abs().max()), float(recorded.abs().max())
            flips = int((here.argmax(1) != recorded.argmax(1)).sum())
            said = (
                f"largest difference {difference:.2g} of logits up to {largest:.3g}, "
                f"{flips} of {len(split)} predictions differ"
            )
            if runtime != config.runtime:
                said += f"; on {choices(runtime)}, and {choices(config.runtime)} recorded"
            if difference <= off * largest and flips <= max(2, FLIPS_OFF * len(split)):
                found.holds(f"{name}_logits from the weights", said)
            else:
                found.fails(f"{name}_logits from the weights", said)


def choices(runtime: RuntimeConfig) -> str:
    return f"{runtime.device} in {runtime.precision} with threads: {runtime.threads}"


def check_quality(run: Run, found: Findings) -> None:
    with found.checking("quality"):
        logits = needed(run.logits, "logits.safetensors")
        if "val_logits" in logits:
            best = accuracy(logits["val_logits"].numpy(), logits["val_labels"].numpy())
            found.same("best_val_acc", best, "from the logits", run.tolerance)
        else:
            found.not_checked("best_val_acc", "needs validation logits, which a run's small form does without")
        for key, value in quality_on_test(logits["test_logits"].numpy(), logits["test_labels"].numpy()).items():
            found.same(key, value, "from the logits", run.tolerance)


def check_training(run: Run, found: Findings) -> None:
    """metrics.csv and the summary tell of the same training."""
    if run.is_given:
        return
    with found.checking("metrics.csv"):
        with there(run.directory.metrics).open(newline="") as file:
            rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file, strict=True)]
        lacking = COLUMNS - rows[0].keys() if rows else COLUMNS
        if lacking:
            found.fails("metrics.csv", f"lacks {', '.join(sorted(lacking))}")
            return
        epochs = [row["epoch"] for row in rows]
        if epochs != list(range(1, len(rows) + 1)):
            found.fails("metrics.csv", f"its epochs are not 1, 2, 3, ... but {epochs[:10]}")
            return
        if not all(math.isfinite(value) for row in rows for value in row.values()):
            found.fails("metrics.csv", "it has values that are not finite")
            return
        speeds, accuracies = [row["images_per_second"] for row in rows], [row["val_acc"] for row in rows]
        group = Findings(run.summary)
        group.same("epochs", len(rows), "rows in metrics.csv")
        group.same("best_val_acc", max(accuracies), "in metrics.csv")
        group.same("best_val_epoch", accuracies.index(max(accuracies)) + 1, "in metrics.csv")
        group.same("train_seconds", sum(row["seconds"] for row in rows), "in metrics.csv")
        group.same("images_per_second", statistics.median(speeds[1:] or speeds), "in metrics.csv")
        found.together("metrics.csv", group)
    if run.summary.get("best_val_epoch") == run.summary.get("epochs"):
        found.same("test_acc_final", run.summary.get("test_acc_best"), "of the same weights, the last epoch's")
    else:
        found.not_checked("test_acc_final", "the last epoch's weights are not kept")
