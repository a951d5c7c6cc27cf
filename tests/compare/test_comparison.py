"""Comparisons of written runs with known answers, through the command."""

import dataclasses
import math
import re

import numpy as np
import pytest
from safetensors.numpy import load_file

from kdbench.compare.command import compare
from kdbench.errors import ConfigError
from kdbench.metrics import DISTANCES, Comparison, compare_logits
from tests.compare.conftest import CLASSES, logits_for, random_run
from tests.report.conftest import write_logits, write_run

SYMMETRIC = (*DISTANCES, "agreement", "chance_agreement", "logits_cka")
KEY_OF_TEACHER = "0123456789abcdef"


def metrics_between(first, second) -> Comparison:
    a, b = (load_file(folder / "logits.safetensors") for folder in (first, second))
    return compare_logits(a["test_logits"], b["test_logits"], a["test_labels"])


def test_a_run_and_itself_are_identical(tmp_path, as_dict):
    run = random_run(tmp_path)
    found = as_dict(run, run)
    pair = found["a_and_b"]
    assert [pair[name] for name in (*DISTANCES, "kl_a_b", "kl_b_a")] == pytest.approx([0] * 6, abs=1e-15)
    assert pair["agreement"] == 1
    assert pair["logits_cka"] == pytest.approx(1)
    assert (pair["correct"], pair["incorrect"]) == (pair["a_right"], pair["a_wrong"])
    assert (pair["correct_rate"], pair["incorrect_rate"]) == (1, 1)
    assert found["notes"] == [f"A and B are the same run ({found['a']['run_key']})"]


def test_every_value_is_that_of_the_metrics(tmp_path, as_dict):
    a, b, teacher = (random_run(tmp_path, seed) for seed in range(3))
    found, pair = as_dict(a, b, "--teacher", teacher), metrics_between(a, b)
    for name in SYMMETRIC:
        assert found["a_and_b"][name] == getattr(pair, name), name
    assert found["a_and_b"]["kl_a_b"] == pair.kl_a_b
    assert found["a_and_b"]["kl_b_a"] == pair.kl_b_a
    assert found["a_and_b"]["a_right"] == pair.by_correctness.teacher_right
    assert found["a_and_b"]["incorrect_rate"] == pair.by_correctness.incorrect_rate
    for title, quality in (("a", pair.a), ("b", pair.b)):
        assert {**found[title], **dataclasses.asdict(quality)} == found[title]
    assert found["teacher"]["brier"] == metrics_between(teacher, a).a.brier
    for title, run in (("a", a), ("b", b)):
        view, expected = found["with_teacher"][title], metrics_between(teacher, run)
        for name in SYMMETRIC:
            assert view[name] == getattr(expected, name), name
        assert view["kl_teacher_run"] == expected.kl_a_b
        assert view["kl_run_teacher"] == expected.kl_b_a
        assert view["correct"] == expected.by_correctness.correct
    view = found["with_teacher"]
    assert all(view["b_minus_a"][name] == view["b"][name] - view["a"][name] for name in view["b_minus_a"])
    assert {"kl_teacher_run", "agreement", "incorrect", "incorrect_rate"} <= view["b_minus_a"].keys()
    assert (found["images"], found["classes"]) == (300, CLASSES)


def test_swapped_runs_swap_the_kls_and_keep_the_distances(tmp_path, as_dict):
    a, b = random_run(tmp_path, 0), random_run(tmp_path, 1)
    one, other = as_dict(a, b)["a_and_b"], as_dict(b, a)["a_and_b"]
    assert [one[name] for name in SYMMETRIC] == pytest.approx([other[name] for name in SYMMETRIC], rel=1e-12)
    assert (one["kl_a_b"], one["kl_b_a"]) == (other["kl_b_a"], other["kl_a_b"])
    assert one["kl_a_b"] != one["kl_b_a"]
    assert one["correct"] == other["correct"]  # both right


@pytest.mark.parametrize(("more_mistakes", "more_correct", "sign"), [(30, 10, -1), (5, 60, 1), (0, 0, 0)])
def test_planted_transfer_is_recovered_exactly(tmp_path, as_dict, as_lines, more_mistakes, more_correct, sign):
    """The teacher is right on 140 of 200 images; the control has its class on 70 of these and on 20 of 60 mistakes."""
    labels = np.random.default_rng(0).integers(0, CLASSES, 200)
    order = np.random.default_rng(1).permutation(200)
    right, wrong = order[:140], order[140:]
    teacher = labels.copy()
    teacher[wrong] = (labels[wrong] + 1) % CLASSES
    control = (teacher + 2) % CLASSES  # never the teacher's class
    control[right[:70]], control[wrong[:20]] = teacher[right[:70]], teacher[wrong[:20]]
    student = control.copy()
    copied = np.concatenate([right[70 : 70 + more_correct], wrong[20 : 20 + more_mistakes]])
    student[copied] = teacher[copied]
    runs = [
        write_run(tmp_path, seed=seed, logits=(logits_for(predicted, seed), labels))
        for seed, predicted in enumerate((student, control, teacher))
    ]
    found = as_dict(*runs[:2], "--teacher", runs[2])["with_teacher"]
    assert (found["a"]["teacher_right"], found["a"]["teacher_wrong"]) == (140, 60)
    assert (found["a"]["correct"], found["a"]["incorrect"]) == (70 + more_correct, 20 + more_mistakes)
    assert (found["b"]["correct"], found["b"]["incorrect"]) == (70, 20)
    assert found["b_minus_a"]["correct"] == -more_correct
    gains = found["transfer_of_a_over_b"]
    assert gains["correct_gain"] == pytest.approx(more_correct / 70, abs=1e-15)
    assert gains["incorrect_gain"] == pytest.approx(more_mistakes / 40, abs=1e-15)
    assert gains["asymmetry"] == gains["correct_gain"] - gains["incorrect_gain"]
    assert np.sign(gains["asymmetry"]) == sign
    (line,) = (line for line in as_lines(*runs[:2], "--teacher", runs[2]) if "asymmetry" in line)
    assert f" {gains['asymmetry']:{'+' if sign else ''}.4f} " in line


def test_no_room_for_a_gain_is_null_and_a_dash(tmp_path, as_dict, as_lines):
    a, teacher = random_run(tmp_path, 0), random_run(tmp_path, 1)
    tensors = load_file(teacher / "logits.safetensors")
    copy = write_run(tmp_path, seed=2, logits=(tensors["test_logits"], tensors["test_labels"]))
    gains = as_dict(a, copy, "--teacher", teacher)["with_teacher"]["transfer_of_a_over_b"]
    assert gains == {"correct_gain": None, "incorrect_gain": None, "asymmetry": None}
    assert sum(bool(re.search(r" -   ", line)) for line in as_lines(a, copy, "--teacher", teacher)) == 3


def test_a_teacher_that_is_one_of_the_runs_has_no_transfer(tmp_path, as_dict, as_lines):
    a, b = random_run(tmp_path, 0), random_run(tmp_path, 1)
    assert as_dict(a, b, "--teacher", b)["with_teacher"]["transfer_of_a_over_b"] is None
    assert not [line for line in as_lines(a, b, "--teacher", b) if line.startswith("Transfer")]


def test_runs_of_other_data_sets_with_equal_labels_are_refused(tmp_path, as_dict):
    tensors = load_file(random_run(tmp_path, 0) / "logits.safetensors")
    found = tensors["test_logits"], tensors["test_labels"]
    a, b = (write_run(tmp_path, seed=9, dataset=name, logits=found) for name in ("one", "other"))
    with pytest.raises(ConfigError, match="of data set one") as error:
        as_dict(a, b)
    assert (error.value.code, error.value.key) == ("mismatch", "RUN_B")


def test_a_teacher_without_mistakes_has_no_rate_of_them(tmp_path, as_dict):
    labels = np.arange(50) % CLASSES
    runs = [write_run(tmp_path, seed=seed, logits=(logits_for(labels, seed), labels)) for seed in range(3)]
    assert as_dict(*runs[:2], "--teacher", runs[2])["with_teacher"]["a"]["incorrect_rate"] is None


def test_constant_logits_have_no_cka(tmp_path, as_dict):
    labels = np.arange(50) % CLASSES
    constant = write_run(tmp_path, logits=(np.zeros((50, CLASSES), np.float32), labels))
    other = write_run(tmp_path, seed=1, logits=(logits_for(labels), labels))
    assert as_dict(constant, other)["a_and_b"]["logits_cka"] is None
    found = as_dict(constant, other, "--teacher", other)["with_teacher"]
    assert (found["a"]["logits_cka"], found["b_minus_a"]["logits_cka"]) == (None, None)


def test_half_precision_is_accepted_and_named(tmp_path, as_dict, as_lines):
    a, b = random_run(tmp_path, 0), random_run(tmp_path, 1)
    exact = as_dict(a, b)
    assert exact["notes"] == []
    tensors = load_file(b / "logits.safetensors")
    write_logits(b, tensors["test_logits"].astype(np.float16), tensors["test_labels"].astype(np.uint8))
    rounded = as_dict(a, b)
    assert (rounded["a"]["rounded_logits"], rounded["b"]["rounded_logits"]) == (False, True)
    assert rounded["a_and_b"]["kl_a_b"] == pytest.approx(exact["a_and_b"]["kl_a_b"], rel=1e-2)
    assert rounded["a_and_b"]["kl_a_b"] != exact["a_and_b"]["kl_a_b"]
    assert as_lines(a, b)[-1].startswith("  logits of B are kept in half precision")


@pytest.mark.parametrize(
    ("key_of_a", "key_of_b", "given", "expected"),
    [
        (KEY_OF_TEACHER, None, True, [f"--teacher is the teacher that A records ({KEY_OF_TEACHER})"]),
        ("f" * 16, KEY_OF_TEACHER, True, [f"WARNING: A records another teacher than the given one: {'f' * 16}",
                                          f"--teacher is the teacher that B records ({KEY_OF_TEACHER})"]),
        (KEY_OF_TEACHER, None, False, [f"A records a teacher whose run lies beside it ({KEY_OF_TEACHER}); "
                                       "--teacher DIR adds the comparison with it"]),
        ("f" * 16, None, False, []),
        ("*" * 16, None, False, []),
        (None, KEY_OF_TEACHER, False, []),
    ],
)  # fmt: skip
def test_recorded_teachers_are_named(tmp_path, as_dict, key_of_a, key_of_b, given, expected):
    a, b = (random_run(tmp_path, seed, teacher_key=key) for seed, key in enumerate((key_of_a, key_of_b)))
    teacher = random_run(tmp_path, 2, run_key=KEY_OF_TEACHER)
    assert as_dict(a, b, *(["--teacher", teacher] if given else []))["notes"] == expected


def test_a_student_and_its_teacher_are_recognised(tmp_path, as_dict):
    student = random_run(tmp_path, 0, teacher_key=KEY_OF_TEACHER)
    teacher = random_run(tmp_path, 1, run_key=KEY_OF_TEACHER)
    assert as_dict(student, teacher)["notes"] == [f"B is the teacher that A records ({KEY_OF_TEACHER})"]
    assert as_dict(teacher, student)["notes"] == [f"A is the teacher that B records ({KEY_OF_TEACHER})"]


def test_json_names_the_runs_and_is_the_same_each_time(tmp_path, as_dict, capsys):
    a, b = random_run(tmp_path, 0, teacher="resnet20", method="logit"), random_run(tmp_path, 1)
    found = as_dict(a, b)
    assert found["a"]["name"] == "resnet8 logit from resnet20, seed 0"
    assert found["b"]["path"] == str(b.resolve())
    assert b.name.endswith(found["b"]["run_key"])
    assert (found["teacher"], found["with_teacher"], found["features"]) == (None, None, None)
    texts = []
    for _ in range(2):
        compare([str(a), str(b), "--json"])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert "NaN" not in texts[0]


def test_tables_have_the_numbers_of_the_json_in_100_columns(tmp_path, as_dict, as_lines):
    runs = [random_run(tmp_path, seed, student="resnet8" * 9) for seed in range(3)]
    lines, found = (call(*runs[:2], "--teacher", runs[2]) for call in (as_lines, as_dict))
    assert all(len(line) <= 100 for line in lines if str(tmp_path) not in line and "resnet8resnet8" not in line)
    text = "\n".join(lines)
    for values in (found["a_and_b"], found["with_teacher"]["a"], found["with_teacher"]["b"]):
        for name, value in values.items():
            shown = str(value) if isinstance(value, int) else f"{value:.4f}"
            assert re.search(rf"(?<![\d.]){re.escape(shown)}(?![\d.])", text), name
    values = [found["a"]["accuracy"], found["b"]["accuracy"], found["teacher"]["accuracy"]]
    (line,) = (line for line in lines if "  accuracy" in line)
    shown = [float(number) for number in re.findall(r"[+-]?\d\.\d+", line)]
    assert shown == pytest.approx([*values[:2], values[1] - values[0], values[2]], abs=5e-5)


def test_tiny_and_huge_numbers_are_legible(tmp_path, as_lines):
    labels = np.arange(50) % CLASSES
    logits = logits_for(labels)
    runs = [write_run(tmp_path, seed=seed, logits=(logits * scale, labels)) for seed, scale in enumerate((1, 1.0001))]
    (line,) = (line for line in as_lines(*runs) if "KL(A || B)" in line)
    assert re.search(r" \d\.\de-\d\d ", line)
    runs.append(write_run(tmp_path, seed=2, logits=(-logits * np.float32(1e6), labels)))
    (line,) = (line for line in as_lines(runs[0], runs[2]) if "KL(A || B)" in line)
    value = float(re.search(r" (\d\.\de\+\d\d) ", line)[1])
    assert math.isfinite(value)
