"""The teacher of a run that is verified: still the recorded one, with the logits that fidelity follows from."""

import shutil

import pytest
import torch
from safetensors.torch import save_file

from kdbench.models import build
from kdbench.rundir.files import sha256
from kdbench.verify.checks import NOT_CHECKED, PASS
from kdbench.verify.command import verify_runs
from kdbench.verify.teacher import TEACHER
from tests.conftest import complete
from tests.networks import SPEC
from tests.verify.conftest import (
    checked,
    edit_config,
    edit_logits,
    edit_summary,
    flip_test_logits,
    replace_weights,
    rewrite_summary,
)


def test_teacher_replaced_after_its_student_was_trained_is_found(student, teacher, small):
    replace_weights(teacher, small().teacher.model)
    rewrite_summary(teacher, weights_sha256=sha256(teacher / "best.safetensors"))
    assert checked(student).keys() == {"teacher_weights_sha256"}


def test_teacher_with_other_logits_or_another_summary_is_found(student, teacher):
    edit_logits(teacher, flip_test_logits)
    assert {"agreement", "kl_t1", "kl_t4"} <= checked(student).keys()
    assert TEACHER in checked(student, PASS)
    edit_summary(teacher, test_nll=0.0)
    assert TEACHER in checked(student)


def test_teacher_with_another_key_is_found(student, teacher):
    rewrite_summary(teacher, run_key="0" * 16)
    assert TEACHER in checked(student)


def test_missing_teacher_is_not_checked(student, teacher):
    shutil.rmtree(teacher)
    assert checked(student) == {}
    assert TEACHER in checked(student, NOT_CHECKED)


def test_teacher_in_a_shared_root_is_found_beside_a_folder_of_its_logit_cache(student, teacher, tmp_path):
    (tmp_path / "store" / "runs").mkdir(parents=True)
    shutil.move(teacher, tmp_path / "store" / "runs" / teacher.name)
    teacher.mkdir()  # which the logit cache of the student's user is in
    assert TEACHER not in checked(student, PASS)
    with (student / "config.yaml").open("a") as config:
        config.write(f"shared_roots: [{tmp_path / 'store'}]\n")
    rewrite_summary(student, config_sha256=sha256(student / "config.yaml"))
    assert checked(student, PASS)[TEACHER] == teacher.name
    assert not checked(student)


@pytest.mark.slow
def test_given_teacher_and_its_student_pass_without_the_file(small, tmp_path, capsys):
    torch.manual_seed(3)
    file = tmp_path / "teacher.safetensors"
    save_file(build(small("method=ce", "student=resnet20").student, SPEC).body.state_dict(), file)
    student = complete(small(f"teacher.checkpoint={file}")).path
    file.unlink()
    assert verify_runs([str(student.parent)]) == 0, capsys.readouterr().out
    (given,) = student.parent.glob("*_checkpoint_*")
    assert "restated settings" in checked(given, PASS)
    edit_config(given, "method", sha256="0" * 64)
    assert {"run_key", "method_params"} <= checked(given).keys()
