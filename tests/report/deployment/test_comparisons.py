"""Comparisons of distilled networks with other ways to small ones: pairs, tests, and what the sentences claim."""

import json
import math
import re

import numpy as np
import pytest
from scipy import stats

from kdbench.report.deployment.comparisons import Measure, Way, ask, is_quantisation
from kdbench.report.deployment.sentences import describe_deployment
from tests.report.conftest import report_of
from tests.report.deployment.writing import (
    INT8,
    STRUCTURED,
    write_compressed,
    write_measured,
    write_study,
    write_trained,
)

ALONE, LOGIT, TEACHER = (0.860, 0.863, 0.858), (0.881, 0.882, 0.884), (0.925, 0.926, 0.928)


def write_small(root, seeds=range(3), **others):
    """Write and measure a small network alone and distilled: as large and as fast as each other."""
    for seed in seeds:
        write_measured(root, write_trained(root, "resnet8", seed, ALONE[seed]), ms=1.0, size=100, **others)
        run = write_trained(root, "resnet8", seed, LOGIT[seed], method="logit", teacher="resnet32", best_val_acc=0.88)
        write_measured(root, run, ms=1.0, size=100, **others)


def write_large(root, step, losses, *, ms, size, seeds=range(3), **others):
    for seed in seeds:
        key = f"teacher{seed}"
        known = next(root.glob(f"*_{key}"), None)
        run = (
            json.loads((known / "summary.json").read_text())
            if known
            else write_trained(root, "resnet32", seed, TEACHER[seed], run_key=key)
        )
        compressed = write_compressed(root, run, step, TEACHER[seed] - losses[seed], **others)
        write_measured(root, compressed, ms=ms, size=size)


def questions_of(root):
    return {(own.subject, own.rival, own.measure): own for own in ask(report_of(root).deployment.compared)}


def test_the_difference_is_over_pairs_of_one_seed(tmp_path):
    write_small(tmp_path)
    question = questions_of(tmp_path)[Way.DISTILLED, Way.ALONE, Measure.SIZE]
    differences = 100 * np.subtract(LOGIT, ALONE)
    expected = stats.ttest_1samp(differences, 0)
    assert question.is_paired
    assert question.n == (3, 3)
    assert question.result.difference == pytest.approx(differences.mean())
    assert question.result.p == pytest.approx(expected.pvalue)
    assert (question.result.low, question.result.high) == pytest.approx(tuple(expected.confidence_interval()))


def test_a_pair_that_is_nearest_in_size_and_latency_is_one_test(tmp_path):
    write_small(tmp_path)
    questions = questions_of(tmp_path)
    assert set(questions) == {(Way.DISTILLED, Way.ALONE, measure) for measure in Measure}
    for question in questions.values():
        assert question.p_adjusted == pytest.approx(question.result.p)
    (both,) = [line for line in report_of(tmp_path).deployment.sentences if "n = 3 pairs" in line]
    assert both.startswith("At about equal size (0.0001 against 0.0001 MB) and latency (1 against 1 ms): ")


def test_p_are_corrected_for_the_number_of_pairs(tmp_path):
    write_small(tmp_path)
    write_large(tmp_path, STRUCTURED, (0.05, 0.09, 0.06), ms=1.1, size=110)
    write_large(tmp_path, INT8, (0.002, 0.001, 0.003), ms=3.0, size=120)
    questions = questions_of(tmp_path)
    tests = {question.pair: question for question in questions.values() if question.pair}
    assert len(tests) == 3
    ordered = sorted(tests.values(), key=lambda question: question.result.p)
    adjusted = np.minimum(np.maximum.accumulate([q.result.p * (3 - n) for n, q in enumerate(ordered)]), 1)
    assert [q.p_adjusted for q in ordered] == pytest.approx(list(adjusted))
    assert "Holm's correction is over 3 tests" in report_of(tmp_path).deployment.sentences[-1]
    assert questions[Way.DISTILLED, Way.QUANTISED, Measure.LATENCY].pair is None


@pytest.mark.parametrize(("size", "is_near"), [(125, True), (126, False), (80, True), (79, False)])
def test_about_equal_is_a_factor_of_one_and_a_quarter(size, is_near, tmp_path):
    write_small(tmp_path)
    write_large(tmp_path, STRUCTURED, (0.05, 0.09, 0.06), ms=9, size=size)
    question = questions_of(tmp_path)[Way.DISTILLED, Way.PRUNED, Measure.SIZE]
    assert (question.pair is not None) == is_near
    lines = report_of(tmp_path).deployment.sentences
    said = "not compared with the pruned large network, since no pair of forms has about equal size" in lines[0]
    assert said != is_near


def test_the_nearest_form_is_compared_and_a_fine_tuned_one_goes_first(tmp_path):
    write_small(tmp_path)
    for ratio, size in ((0.5, 120), (0.6, 104)):
        write_large(tmp_path, {"name": "structured", "ratio": ratio}, (0.05, 0.09, 0.06), ms=9, size=size)
    key = (Way.DISTILLED, Way.PRUNED, Measure.SIZE)
    assert questions_of(tmp_path)[key].pair[1].name == "resnet32 teacher, structured 0.6"
    assert "the pruned large network (not fine-tuned)" in report_of(tmp_path).deployment.sentences[0]
    for seed in range(3):
        tuned = write_trained(
            tmp_path, "resnet32-structured", seed, 0.9, parent_key=f"teacher{seed}-structured0.5",
            compression={"steps": [STRUCTURED]},
        )  # fmt: skip
        write_measured(tmp_path, tuned, ms=9, size=124)
    assert questions_of(tmp_path)[key].pair[1].name == "resnet32 teacher, structured 0.5, fine-tuned"
    assert "(not fine-tuned)" not in report_of(tmp_path).deployment.sentences[0]


def test_of_equally_near_forms_validation_accuracy_decides_and_never_test_accuracy(tmp_path):
    write_small(tmp_path)
    for name, test, validation in (("best_on_test", 0.95, 0.5), ("best_on_validation", 0.6, 0.99)):
        for seed in range(3):
            run = write_trained(
                tmp_path, "resnet8", seed, test, method=name, teacher="resnet32", best_val_acc=validation
            )
            write_measured(tmp_path, run, ms=1.0, size=100)
    question = questions_of(tmp_path)[Way.DISTILLED, Way.ALONE, Measure.SIZE]
    assert question.pair[0].identity.method == "best_on_validation"


def test_distilled_and_quantised_networks_are_compared_with_each_rival(tmp_path):
    write_study(tmp_path, seeds=range(2))
    rivals = {(subject, rival) for subject, rival, _ in questions_of(tmp_path)}
    assert rivals == {(s, r) for s in (Way.DISTILLED, Way.DISTILLED_QUANTISED)
                      for r in (Way.PRUNED, Way.QUANTISED, Way.PRUNED_QUANTISED, Way.ALONE)}  # fmt: skip
    quantised = questions_of(tmp_path)[Way.DISTILLED_QUANTISED, Way.ALONE, Measure.SIZE]
    assert [form.name for form in quantised.pair] == ["resnet8 logit from resnet32, int8", "resnet8 baseline, int8"]


def test_a_smaller_network_is_no_large_one(tmp_path):
    write_small(tmp_path)
    for seed in range(2):
        tiny = write_trained(tmp_path, "tiny", seed, 0.5)
        write_measured(tmp_path, write_compressed(tmp_path, tiny, STRUCTURED, 0.5), ms=1, size=100)
    assert {rival for _, rival, _ in questions_of(tmp_path)} == {Way.ALONE}


def test_files_of_different_formats_have_no_equal_size(tmp_path):
    write_small(tmp_path)
    write_large(tmp_path, STRUCTURED, (0.05, 0.09, 0.06), ms=1, size=100)
    for folder in tmp_path.glob("*structured0.5-measured*"):
        file = folder / "summary.json"
        file.write_text(file.read_text().replace('"size_format": "onnx"', '"size_format": "safetensors"'))
    questions = questions_of(tmp_path)
    assert questions[Way.DISTILLED, Way.PRUNED, Measure.SIZE].pair is None
    assert questions[Way.DISTILLED, Way.PRUNED, Measure.LATENCY].pair is not None


def test_other_seeds_are_compared_by_welch_and_one_seed_has_no_test(tmp_path):
    write_small(tmp_path / "one", seeds=(0,))
    question = questions_of(tmp_path / "one")[Way.DISTILLED, Way.ALONE, Measure.SIZE]
    assert question.result.difference == pytest.approx(2.1)
    assert math.isnan(question.p_adjusted)
    lines = report_of(tmp_path / "one").deployment.sentences
    assert "is not tested against the small network trained alone" in lines[0]
    assert any("(n = 1 and 1; no test: one run in an arm)" in line for line in lines)
    root = tmp_path / "other"
    for place in range(3):
        write_measured(root, write_trained(root, "resnet8", place, ALONE[place]), ms=1, size=100)
        own = write_trained(root, "resnet8", place + 10, LOGIT[place], method="logit", teacher="resnet32")
        write_measured(root, own, ms=1, size=100)
    question = questions_of(root)[Way.DISTILLED, Way.ALONE, Measure.SIZE]
    expected = stats.ttest_ind(100 * np.array(LOGIT), 100 * np.array(ALONE), equal_var=False)
    assert not question.is_paired
    assert question.result.p == pytest.approx(expected.pvalue)
    assert any("n = 3 and 3, Welch" in line for line in report_of(root).deployment.sentences)


def verdicts(line):
    return re.sub(r"^At about equal \w+, the distilled network is ", "", line)


def test_a_sentence_claims_what_the_corrected_test_carries(tmp_path):
    write_small(tmp_path)
    write_large(tmp_path, STRUCTURED, (0.041, 0.044, 0.0435), ms=1.1, size=110)  # near the distilled one
    write_large(tmp_path, INT8, (0.001, 0.0012, 0.0009), ms=1.1, size=110)  # better than it
    lines = report_of(tmp_path).deployment.sentences
    assert verdicts(lines[0]) == (
        "more accurate than the small network trained alone; less accurate than the quantised large network; not shown "
        "to differ in accuracy from the pruned large network (not fine-tuned)."
    )
    assert lines[1] == lines[0].replace("size", "latency")
    for question in questions_of(tmp_path).values():
        is_claimed = question.p_adjusted < 0.05
        assert is_claimed <= (question.result.low > 0 or question.result.high < 0)
    shown = [line for line in lines if "a difference is not shown" in line]
    assert len(shown) == 1
    assert "resnet32 teacher, structured 0.5 (95 % interval" in shown[0]


def test_without_a_distilled_network_or_a_rival_the_sentence_says_so(tmp_path):
    assert describe_deployment([], {}) == []
    run = write_trained(tmp_path, "resnet8", 0, 0.9)
    write_measured(tmp_path, run, ms=1, size=1)
    assert report_of(tmp_path).deployment.sentences[0].startswith("No distilled network was measured")
    own = write_trained(tmp_path / "b", "resnet8", 0, 0.9, method="logit", teacher="t")
    write_measured(tmp_path / "b", own, ms=1, size=1)
    assert report_of(tmp_path / "b").deployment.sentences[0].startswith("No pruned, quantised or undistilled network")


@pytest.mark.parametrize(
    ("step", "expected"),
    [("int8", True), ("fp16", True), ("bf16", True), ("quantised", True), ("structured", False),
     ("unstructured", False), ("prune", False), ("half", True)],
)  # fmt: skip
def test_steps_store_fewer_bits_or_remove_weights(step, expected):
    assert is_quantisation(step) == expected
