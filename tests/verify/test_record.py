"""The record of a run: checksum, hashes, keys and restated settings."""

import pytest

from kdbench.rundir.summary import KEYS
from kdbench.verify.checks import NOT_CHECKED, PASS
from kdbench.verify.record import CHECKSUM
from tests.verify.conftest import checked, edit_config, edit_summary, remove_keys, rewrite_summary, summary_of


def test_edited_or_removed_checksum_is_found(student):
    edit_summary(student, peak_memory_bytes=1)
    assert checked(student).keys() == {CHECKSUM}
    remove_keys(student, "checksum")
    assert checked(student).keys() == {CHECKSUM}


@pytest.mark.parametrize(
    "keys",
    [
        "best_val_acc test_acc_best test_nll test_ece per_class_acc num_params macs",
        "agreement kl_t1 kl_t4 teacher_test_acc",
        "best_val_epoch train_seconds images_per_second",
        "run_key group_key baseline_key",
        "teacher_key",
        "weights_sha256 logits_sha256 config_sha256 metrics_sha256 teacher_weights_sha256 data_sha256",
        "schema_version status student teacher method role dataset precision seed init_seed data_seed teacher_seed "
        "logit_cache stem recipe method_params epochs num_train",
        "num_val num_test",
    ],
)
def test_each_changed_key_is_found_although_the_checksum_matches(student, keys):
    summary = summary_of(student)
    rewrite_summary(student, **{key: changed(getattr(summary, key)) for key in keys.split()})
    failed = checked(student)
    assert set(keys.split()) <= failed.keys()
    assert CHECKSUM not in failed


def changed(value):
    """Return another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, float) and 0 <= value <= 1:  # may be a fraction
        return 1 - value if abs(value - 0.5) > 0.01 else 0.25
    if isinstance(value, int | float):
        return value + type(value)(1)
    if isinstance(value, str):
        return value[::-1]
    if isinstance(value, list):
        return [changed(value[0]), *value[1:]]
    if value is None:
        return "other"
    first = next(iter(value))
    return value | {first: changed(value[first])}


def test_value_out_of_a_keys_range_is_a_damaged_summary(student):
    rewrite_summary(student, test_acc_best=1.5)
    assert checked(student).keys() == {"summary.json"}


def test_key_set_to_null_is_found_and_a_missing_key_is_not_checked(student):
    rewrite_summary(student, test_nll=None, role=None)
    assert checked(student).keys() == {"test_nll", "role"}
    remove_keys(student, "test_nll", "role")
    rewrite_summary(student)
    assert checked(student) == {}
    assert {"test_nll", "role"} <= checked(student, NOT_CHECKED).keys()


def test_role_is_the_one_of_the_methods_class(student, teacher):
    assert summary_of(student).role == "distilled"
    assert summary_of(teacher).role == "baseline"
    rewrite_summary(teacher, role="control")
    assert checked(teacher).keys() == {"role"}


def test_summaries_of_versions_without_checksums_pass(student):
    new = ("checksum", "config_sha256", "metrics_sha256", "data_sha256", "teacher_weights_sha256", "role")
    remove_keys(student, *new)
    assert checked(student) == {}
    assert {CHECKSUM, *new[1:]} <= checked(student, NOT_CHECKED).keys()


def test_unknown_keys_of_other_versions_change_nothing(student):
    assert "another_key" not in KEYS
    rewrite_summary(student, another_key=1)
    assert checked(student) == {}


def test_config_that_does_not_match_its_key_is_found(student):
    edit_config(student, "recipe", lr=0.01)
    assert checked(student).keys() == {"run_key", "group_key", "baseline_key", "recipe"}


def test_config_with_another_teacher_does_not_match_its_key(student):
    edit_config(student, "teacher", seed=5)
    assert checked(student).keys() == {"run_key", "group_key", "teacher_key", "teacher_seed"}


def test_any_change_of_the_config_is_found_by_its_hash(student):
    with (student / "config.yaml").open("a") as file:
        file.write("# harmless\n")
    assert checked(student).keys() == {"config_sha256"}


def test_renamed_folder_is_found(student):
    assert checked(student.rename(student.with_name("my_best_run"))).keys() == {"folder"}
    assert "run_key" in checked(student.with_name("my_best_run"), PASS)
