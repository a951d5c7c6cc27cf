"""Remarks on comparisons that are not like with like: each where it holds, and not where it does not."""

import pytest

from tests.report.conftest import ENVIRONMENT, report_of, write_group, write_run

BY_LOGIT = {"teacher": "resnet20", "method": "logit"}


def about(root, text):
    """Return the remarks of a report that contain a text."""
    return [remark for remark in report_of(root).remarks if text in remark]


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("device", "a GPU", "devices"),
        ("torch", "1.0", "versions of torch"),
        ("threads", 8, "numbers of threads"),
        ("profile", "repro", "profiles"),
        ("compile", True, "values of runtime.compile"),
    ],
)
def test_an_arm_and_its_baseline_in_different_surroundings_are_named(tmp_path, key, value, text):
    usual = ENVIRONMENT | {"profile": "fast", "compile": False}
    write_group(tmp_path, (90.0, 90.1), environment=usual | {key: value})
    write_group(tmp_path, (90.5, 90.6), environment=usual, **BY_LOGIT)
    (remark,) = about(tmp_path, "computed on different")
    assert remark.startswith("resnet8 logit from resnet20: ")
    assert f"different {text}: " in remark
    assert str(value) in remark


def test_arms_in_the_same_surroundings_are_not_remarked(tmp_path):
    write_group(tmp_path, (90.0, 90.1))
    write_group(tmp_path, (90.5, 90.6), environment=ENVIRONMENT | {"git_revision": "1" * 40}, **BY_LOGIT)
    assert about(tmp_path, "computed on different") == []


def test_an_arm_whose_baselines_have_another_precision_is_named(tmp_path):
    write_group(tmp_path, (90.0, 90.1), precision="bf16")
    write_group(tmp_path, (90.5, 90.6), **BY_LOGIT)
    (remark,) = about(tmp_path, "runtime.precision=")
    assert "at precision fp32, and the baselines of resnet8 at bf16 only" in remark
    write_group(tmp_path, (90.0, 90.1))
    assert about(tmp_path, "runtime.precision=") == []


@pytest.mark.parametrize(("constant", "varied"), [("init_seed", "data_seed"), ("data_seed", "init_seed")])
def test_runs_with_one_seed_that_never_changes_are_named(tmp_path, constant, varied):
    for seed in range(3):
        write_run(tmp_path, seed=seed, **{constant: 0, varied: seed})
    (remark,) = about(tmp_path, "all runs have one")
    assert f"all runs have one {constant}, so only {varied} varies" in remark
    assert about(tmp_path, "no replicates") == []


def test_runs_whose_seeds_both_vary_and_single_runs_are_not_remarked(tmp_path):
    write_group(tmp_path, (90.0, 90.1, 90.2))
    write_run(tmp_path, **BY_LOGIT)
    assert about(tmp_path, "all runs have one") == []
    assert about(tmp_path, "no replicates") == []


def test_crossed_seeds_are_no_replicates(tmp_path):
    for init in (0, 1):
        for data in (0, 1):
            write_run(tmp_path, init_seed=init, data_seed=data, accuracy=0.9 + 0.001 * init)
    (remark,) = about(tmp_path, "no replicates")
    assert remark.startswith("resnet8 ce: ")
    assert "31 %" in remark


def test_several_teachers_read_as_one_are_named(tmp_path):
    for seed in range(3):
        write_run(tmp_path, seed=seed, teacher_weights_sha256=f"{seed % 2}" * 64, **BY_LOGIT)
    (remark,) = about(tmp_path, "read as one")
    assert "resnet8 logit from resnet20 (2 teachers, 3 runs)" in remark


def test_one_teacher_and_teachers_with_seeds_of_their_own_are_not_remarked(tmp_path):
    for teacher in (0, 1):
        for seed in range(2):
            same = {"teacher_seed": teacher, "teacher_weights_sha256": f"{teacher}" * 64}
            write_run(tmp_path, seed=seed, **same, **BY_LOGIT)
    assert about(tmp_path, "read as one") == []


def test_arms_of_very_different_size_are_named(tmp_path):
    write_group(tmp_path, [90 + 0.1 * n for n in range(10)])
    write_group(tmp_path, (90.5, 90.6, 90.9), **BY_LOGIT)
    (remark,) = about(tmp_path, "in the two arms")
    assert remark.startswith("resnet8 logit from resnet20: 3 runs against 10 in the two arms")


@pytest.mark.parametrize("sizes", [(3, 3), (4, 5), (1, 6)])
def test_arms_of_similar_size_and_arms_without_a_test_are_not_remarked(tmp_path, sizes):
    ours, theirs = sizes
    write_group(tmp_path, [90 + 0.1 * n for n in range(theirs)], seeds=range(20, 20 + theirs))
    write_group(tmp_path, [90.5 + 0.1 * n for n in range(ours)], **BY_LOGIT)
    assert about(tmp_path, "in the two arms") == []
