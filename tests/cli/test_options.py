"""Flags and options of the commands: folders of the user's own options, and wrong flags."""

import sys
from pathlib import Path

import pytest

from kdbench import cli
from kdbench.config import CONF_DIR
from kdbench.rundir.directory import RunDirectory
from kdbench.runner.run import RunResult
from tests.conftest import NARROW, SMALL
from tests.errors import recorded_errors, reported

TINY = (*SMALL, *NARROW, "output_root=out")


def test_options_of_a_config_folder_are_added(kdbench, tmp_path):
    own = tmp_path / "R&D (1), größer"
    for folder in ("model", "pair"):
        (own / folder).mkdir(parents=True)
    narrow = (CONF_DIR / "model" / "resnet8.yaml").read_text().replace("[16, 16, 32, 64]", "[8, 8, 16, 32]")
    (own / "model" / "narrow.yaml").write_text(narrow)
    (own / "pair" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /teacher: narrow\n  - override /student: narrow\n"
    )
    tiny = [o for o in TINY if not o.startswith(("student", "teacher=", "teacher.widths"))]
    result = kdbench("--config-dir", str(own), *tiny, "pair=mine")
    assert result.code == 0, result.err
    assert "narrow logit from narrow" in result.out
    with recorded_errors() as made:
        wrong = kdbench("--config-dir", str(own), *TINY, "student=narow")
    assert wrong.code == 2
    assert reported(made, wrong.err) == [("unknown_option", "student")]
    assert "narrow" in wrong.err  # the nearest name


@pytest.mark.parametrize("content", ["{a: [", "- a\n- b\n"])
def test_a_broken_model_file_of_the_user_is_named(kdbench, tmp_path, content):
    (tmp_path / "own" / "model").mkdir(parents=True)
    file = tmp_path / "own" / "model" / "broken.yaml"
    file.write_text(content)
    with recorded_errors() as made:
        result = kdbench("--config-dir", str(tmp_path / "own"), *TINY)
    assert result.code == 2
    assert reported(made, result.err) == [("invalid_yaml", "broken")]
    assert str(file) in result.err


def test_a_flag_after_an_override_is_an_error_that_explains_the_order(kdbench):
    with recorded_errors() as made:
        result = kdbench("method=ce", "-m", "seed=0,1")
    assert result.code == 2
    assert reported(made, result.err) == [("usage", "")]
    assert "-m" in result.err


@pytest.mark.parametrize(
    ("entry", "arguments", "code"),
    [
        (cli.main_study, ["--minutes", "x"], "usage"),
        (cli.main_study, ["study=lab", "+=1", "--dry-run"], "unreadable_override"),
        (cli.main_report, ["runs"], "usage"),
        (cli.main_report, ["/nowhere", "--out", "out"], "not_found"),
        (cli.main_bench, ["--rounds", "0"], "usage"),
        (cli.main_bench, ["=1"], "unreadable_override"),
        (cli.main_verify, ["--nonsense", "runs"], "usage"),
        (cli.main_verify, ["/nowhere"], "not_found"),
        (cli.main_compare, ["runs"], "usage"),
        (cli.main_compare, ["/nowhere", "/nowhere"], "not_found"),
    ],
)
def test_a_wrong_flag_of_another_command_is_one_line_with_exit_code_2(
    monkeypatch, capfd, tmp_path, entry, arguments, code
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["command", *arguments])
    with recorded_errors() as made, pytest.raises(SystemExit) as leaving:
        entry()
    err = capfd.readouterr().err
    assert leaving.value.code == 2, err
    assert [found for found, _ in reported(made, err)] == [code], err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def trained(monkeypatch):
    """Take the place of training: every run is complete at once; yields the working directory of each."""
    folders = []

    def complete(configs, *_, **__):
        folders.append(Path.cwd())
        return [RunResult(config, RunDirectory(Path("out/runs/run"), ""), None) for config in configs]

    monkeypatch.setattr("kdbench.runner.policy.run_with_retries", complete)
    monkeypatch.setattr("kdbench.sweep.execute.run_with_retries", complete)
    monkeypatch.setattr("kdbench.report.table.runs_table", lambda paths: "")
    monkeypatch.setattr(RunDirectory, "read_summary", lambda directory: None)
    monkeypatch.setattr("kdbench.sweep.execute.scores_of", lambda summary: {})
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("flags", [("hydra.run.dir=away",), ("-m", "hydra.sweep.dir=away")])
def test_paths_are_relative_to_where_the_command_was_started_also_with_chdir(kdbench, trained, tmp_path, flags):
    result = kdbench(*flags, *TINY, "method=ce", "hydra.job.chdir=true")
    assert result.code == 0, result.err
    assert trained == [tmp_path / "home"]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("-m",)])
def test_a_run_and_a_sweep_end_with_the_report_that_the_user_wants(kdbench, trained, monkeypatch, flags):
    written = []
    monkeypatch.setattr("kdbench.report.command.report", lambda arguments, images: written.append(arguments))
    assert kdbench(*flags, *TINY, "method=ce", "report=page").code == 0
    assert written == [["out/runs/run", "--out", "page"]]
    Path("file").touch()
    with recorded_errors() as made:
        result = kdbench(*flags, *TINY, "method=ce", "report=file/page")
    assert (result.code, reported(made, result.err)) == (2, [("not_writable", "report")])
    assert len(trained) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "key", "words"),
    [
        (["-m", "student=glob(resnt*)"], "empty_sweep", "student", "did you mean resnet"),
        (["-m", "recipe.lr=glob(*)"], "empty_sweep", "recipe.lr", "a,b"),
        (["student=glob(resnet*)"], "needs_multirun", "student", "-m"),
        (["-m", "hydra.launcher=lockstep", "seed=0,1"], "usage", "hydra.launcher", "hydra/launcher="),
        (["hydra.launcher=lockstep"], "usage", "hydra.launcher", "hydra/launcher="),
    ],
)
def test_an_option_that_hydra_reads_as_another_is_an_error_with_the_way_to_write_it(
    kdbench, arguments, code, key, words
):
    with recorded_errors() as made:
        result = kdbench(*arguments)
    assert (result.code, reported(made, result.err)) == (2, [(code, key)])
    assert words in result.err


def test_a_key_of_another_optimiser_is_refused(kdbench):
    with recorded_errors() as made:
        result = kdbench(*TINY, "recipe.optimizer=adamw", "recipe.momentum=0.5")
    assert (result.code, reported(made, result.err)) == (2, [("unused_key", "recipe.momentum")])
