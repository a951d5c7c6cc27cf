"""`kdbench-verify` as a command: its lines, exit codes and errors."""

import subprocess
import sys

import pytest

from kdbench.cli import main_verify
from kdbench.errors import ConfigError
from kdbench.verify.checks import NOT_CHECKED, PASS
from kdbench.verify.command import verify_runs
from kdbench.verify.record import CHECKSUM
from tests.verify.conftest import UNCHECKABLE, checked, edit_summary, summary_of


def test_fresh_run_and_its_teacher_pass_every_check(runs, student, teacher, capsys):
    assert verify_runs([str(runs)]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [str(teacher), str(student)]
    passed, skipped = (sum(line.startswith(f"  {verdict}  ") for line in lines) for verdict in ("pass", "not checked"))
    assert last == f"2 runs: {passed} passed, 0 failed, {skipped} not checked"
    final = {"test_acc_final"} if summary_of(student).best_val_epoch != 3 else set()
    assert checked(student, NOT_CHECKED, quick=False).keys() == {UNCHECKABLE} | final
    held = checked(student, PASS, quick=False)
    assert {
        CHECKSUM, "run_key", "weights_sha256", "logits_sha256", "metrics_sha256", "config_sha256", "data_sha256",
        "test_logits from the weights", "test_acc_best", "teacher_weights_sha256", "agreement", "kl_t4", "metrics.csv",
        "restated settings",
    } <= held.keys()  # fmt: skip
    assert "largest difference 0 of" in held["test_logits from the weights"]


def test_failed_check_sets_the_exit_code_and_is_counted(student, capsys):
    edit_summary(student, peak_memory_bytes=1)
    assert verify_runs([str(student), "--quick"]) == 1
    out = capsys.readouterr().out
    assert "\n  FAIL         checksum of summary.json: " in out
    assert out.splitlines()[-1].startswith("1 run: ")
    assert " 1 failed, " in out.splitlines()[-1]


def test_unfinished_run_leaves_nothing_to_check(student, capsys):
    (student / "summary.json").unlink()
    assert verify_runs([str(student)]) == 2
    assert "  not checked  run: " in capsys.readouterr().out
    assert checked(student, NOT_CHECKED).keys() == {"run"}


def test_runs_below_the_working_directory_are_named_relative_to_it(runs, student, monkeypatch, capsys):
    monkeypatch.chdir(runs.parent)
    assert verify_runs(["runs", "--quick"]) == 0
    assert f"runs/{student.name}" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("arguments", "code", "key"),
    [
        (["nowhere"], "not_found", "path"),
        (["."], "not_found", "path"),
        ([".", "--trust", "os; evil"], "out_of_range", "--trust"),
        ([".", "--data-root", "nowhere"], "not_found", "--data-root"),
        ([], "usage", ""),
        ([".", "--quickly"], "usage", ""),
    ],
)
def test_wrong_command_lines_are_errors(tmp_path, monkeypatch, arguments, code, key):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as error:
        verify_runs(arguments)
    assert (error.value.code, error.value.key) == (code, key)


def test_error_is_one_line_on_standard_error(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kdbench-verify", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as leaving:
        main_verify()
    assert leaving.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("kdbench-verify: error: ")
    assert err.count("\n") == 1


@pytest.mark.slow
def test_help_imports_neither_torch_nor_pandas():
    code = (
        "import sys; from kdbench.verify.command import parse_arguments\n"
        "try: parse_arguments(['--help'])\n"
        "except SystemExit: print([m for m in ('torch', 'pandas', 'scipy', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--trust" in done.stdout
