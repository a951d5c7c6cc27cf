"""Numbers that are recomputed: logits from weights, quality from logits, labels and data, and the training."""

import pytest
import torch
from safetensors.torch import load_file

from kdbench import metrics
from kdbench.data.embedded import Shapes
from kdbench.methods.logit import LogitDistillation
from kdbench.rundir.files import sha256
from kdbench.verify.checks import NOT_CHECKED, PASS
from tests.conftest import rest_wide
from tests.verify.conftest import (
    checked,
    edit_config,
    edit_logits,
    flip_test_logits,
    replace_weights,
    rewrite_summary,
)

FROM_WEIGHTS = "test_logits from the weights"


def test_logits_of_other_weights_are_found_although_the_summary_fits_them(student):
    logits = edit_logits(student, flip_test_logits)
    assert {"logits_sha256", "agreement"} <= checked(student).keys()
    numpy = [logits[name].numpy() for name in ("test_logits", "test_labels")]
    rewrite_summary(
        student,
        logits_sha256=sha256(student / "logits.safetensors"),
        test_acc_best=metrics.accuracy(*numpy),
        test_nll=metrics.nll(*numpy),
        test_ece=metrics.expected_calibration_error(*numpy),
        per_class_acc=metrics.per_class_accuracy(*numpy),
    )
    failed = checked(student, quick=False)
    assert "test_acc_best" not in failed
    assert FROM_WEIGHTS in failed


def test_differences_within_rounding_pass_unless_they_change_predictions(student):
    """bfloat16 rounds so much that an accuracy could be made up within it."""
    edit_config(student, "runtime", precision="bf16")
    original = load_file(student / "logits.safetensors")["test_logits"]
    step = 0.03 * original.abs().max() * torch.eye(10)

    def towards(classes):
        return lambda logits: logits.update(test_logits=original + step[classes(logits)])

    edit_logits(student, towards(lambda logits: original.argmax(1)))
    assert FROM_WEIGHTS in checked(student, PASS, quick=False)
    edit_logits(student, towards(lambda logits: logits["test_labels"].long()))
    assert FROM_WEIGHTS in checked(student, quick=False)


def test_weights_of_another_seed_are_found(student, small):
    replace_weights(student, small().student)
    assert checked(student).keys() == {"weights_sha256"}
    rewrite_summary(student, weights_sha256=sha256(student / "best.safetensors"))
    assert checked(student, quick=False).keys() == {"val_logits from the weights", FROM_WEIGHTS}


def test_quick_computes_no_logits_from_weights(student, small):
    replace_weights(student, small().student)
    rewrite_summary(student, weights_sha256=sha256(student / "best.safetensors"))
    assert checked(student) == {}
    assert checked(student, NOT_CHECKED)["logits from the weights"] == "--quick"


def test_labels_that_differ_from_the_datas_are_found(student):
    def shift_three(logits):
        logits["test_labels"][:3] = (logits["test_labels"][:3] + 1) % 10

    edit_logits(student, shift_three)
    rewrite_summary(student, logits_sha256=sha256(student / "logits.safetensors"))
    assert checked(student)["test_labels"].startswith("3 of 60 ")


def test_changed_data_are_found(student, replace_loader):
    drawn = Shapes.load

    def with_other_test_images(self):
        source = drawn(self)
        return source._replace(test=source.train)

    replace_loader(with_other_test_images)
    failed = checked(student, quick=False)
    assert {"data_sha256", "test_labels", FROM_WEIGHTS} <= failed.keys()
    assert "val_logits from the weights" not in failed


def test_unavailable_device_is_replaced_and_named(student, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    edit_config(student, "runtime", device="cuda:0")
    detail = checked(student, PASS, quick=False)[FROM_WEIGHTS]
    assert "cpu in fp32" in detail
    assert "cuda:0 in fp32" in detail


def test_predictions_are_recomputed_by_a_method_that_takes_part_in_them(student, monkeypatch):
    monkeypatch.setattr(LogitDistillation, "predict", lambda self, output: -output.logits)
    assert {"val_logits from the weights", "test_logits from the weights"} <= set(checked(student, quick=False))


def rewrite_metrics(path, edit):
    """Change metrics.csv and its hash, and return the checks that then fail."""
    file = path / "metrics.csv"
    file.write_text("\n".join(edit(file.read_text().splitlines())) + "\n")
    assert "metrics_sha256" in checked(path)
    rewrite_summary(path, metrics_sha256=sha256(file))
    return checked(path)


def with_value(row, column, value):
    def edit(lines):
        cells = lines[row].split(",")
        cells[lines[0].split(",").index(column)] = value
        return [*lines[:row], ",".join(cells), *lines[row + 1 :]]

    return edit


@pytest.mark.parametrize(
    ("edit", "what"),
    rest_wide([
        (with_value(2, "val_acc", "0.99"), "best_val_acc"),
        (with_value(1, "seconds", "1000"), "train_seconds"),
        (with_value(3, "images_per_second", "100000000"), "images_per_second"),
        (with_value(3, "train_loss", "nan"), "metrics.csv"),
        (with_value(3, "train_loss", "low"), "metrics.csv"),
        (with_value(2, "epoch", "7"), "metrics.csv"),
        (lambda lines: lines[:-1], "epochs"),
        (lambda lines: lines[:1], "metrics.csv"),
        (lambda lines: [lines[0], lines[2], lines[1], lines[3]], "metrics.csv"),
        (lambda lines: [line.rpartition(",")[0] for line in lines], "metrics.csv"),
        (lambda lines: [*lines[:-1], lines[-1][:10]], "metrics.csv"),
    ], 4),
    ids=[
        "accuracy", "seconds", "speed", "nan", "text", "epoch", "epoch missing", "no epoch", "order", "column missing",
        "torn",
    ],
)  # fmt: skip
def test_edited_metrics_differ_from_the_summary(student, edit, what):
    assert what in rewrite_metrics(student, edit)
