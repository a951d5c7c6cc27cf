"""Loading finished runs: `kdbench.load_run` and `kdbench.load_runs`."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

import kdbench
from kdbench.errors import ConfigError
from kdbench.rundir.load import run_folders
from kdbench.rundir.summary import RunSummary, write_summary

SUMMARY = RunSummary(
    run_key="0" * 16, student="resnet8", method="logit", role="distilled", test_acc_best=0.5, seed=0,
    method_params={"alpha": 0.5, "temperature": 4.0}, recipe={"lr": 0.1, "epochs": 2},
)  # fmt: skip


def make_run(folder, **changes):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("a: 1\n")
    (folder / "train.log").touch()
    pd.DataFrame({"epoch": [1, 2], "val_acc": [0.25, 0.5]}).to_csv(folder / "metrics.csv", index=False)
    save_file({"test_logits": np.ones((2, 3), np.float32)}, folder / "logits.safetensors")
    write_summary(folder, dataclasses.replace(SUMMARY, **changes))
    return folder


def test_a_run_has_typed_summary_metrics_and_logits(tmp_path):
    run = kdbench.load_run(make_run(tmp_path / "run"))
    assert run.path == tmp_path / "run"
    assert run.summary.test_acc_best == 0.5
    assert run.metrics.val_acc.tolist() == [0.25, 0.5]
    assert run.logits["test_logits"].shape == (2, 3)


def test_a_run_in_its_small_form_is_loaded_as_far_as_it_was_kept(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "metrics.csv").unlink()
    (folder / "logits.safetensors").unlink()
    run = kdbench.load_run(str(folder))
    assert run.metrics is None
    assert run.logits == {}


def test_no_run_and_an_unfinished_run_are_errors(tmp_path):
    (make_run(tmp_path / "run") / "summary.json").unlink()
    for folder in (tmp_path, tmp_path / "run", tmp_path / "nowhere", "x" * 3000):
        with pytest.raises(ConfigError) as error:
            kdbench.load_run(folder)
        assert (error.value.code, error.value.key) == ("no_run", "path")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.csv", b""), ("metrics.csv", b'a,b\n"'), ("metrics.csv", b"\xff\xfe\x00"),
        ("logits.safetensors", b""), ("logits.safetensors", b"\xff" * 100), ("summary.json", b"{"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_an_error_in_one_line(tmp_path, name, content):
    folder = make_run(tmp_path / "run")
    (folder / name).write_bytes(content)
    with pytest.raises(ConfigError) as error:
        kdbench.load_run(folder)
    assert error.value.code == "damaged"
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "key"), [("metrics.csv", "metrics_sha256"), ("logits.safetensors", "logits_sha256")])
def test_a_file_that_is_not_the_one_the_run_wrote_is_an_error(tmp_path, name, key):
    folder = make_run(tmp_path / "run", **{key: "0" * 64})
    with pytest.raises(ConfigError) as error:
        kdbench.load_run(folder)
    assert (error.value.code, error.value.key) == ("checksum", "path")
    assert name in str(error.value)


def test_a_run_that_failed_is_no_complete_run(tmp_path):
    with pytest.raises(ConfigError) as error:
        kdbench.load_run(make_run(tmp_path / "run", status="failed"))
    assert error.value.code == "no_run"


def test_runs_are_a_table_with_a_row_each(tmp_path):
    make_run(tmp_path / "b", run_key="b", method_params={"alpha": 0.1})
    make_run(tmp_path / "deep" / "er" / "a", run_key="a")
    unfinished = make_run(tmp_path / "c")
    (unfinished / "summary.json").unlink()
    runs = kdbench.load_runs(tmp_path)
    assert runs["run_key"].tolist() == ["b", "a"]
    assert runs["path"].tolist() == [str(tmp_path / "b"), str(tmp_path / "deep" / "er" / "a")]
    assert runs["recipe.lr"].tolist() == [0.1, 0.1]
    assert runs["method_params.alpha"].tolist() == [0.1, 0.5]
    assert np.isnan(runs["method_params.temperature"][0])
    assert not {"recipe", "method_params"} & set(runs.columns)


def test_given_weights_whose_training_is_unknown_have_no_columns_of_it(tmp_path):
    make_run(tmp_path / "given", recipe=None, seed=None, role=None)
    runs = kdbench.load_runs(tmp_path)
    assert not [name for name in runs.columns if name.startswith("recipe")]


def test_one_run_directory_is_a_table_of_one_row(tmp_path):
    assert len(kdbench.load_runs(make_run(tmp_path / "run"))) == 1


def test_a_folder_without_runs_is_an_empty_table_with_the_usual_columns(tmp_path):
    runs = kdbench.load_runs(tmp_path)
    assert runs.empty
    assert {"run_key", "test_acc_best", "path"} <= set(runs.columns)


def test_the_committed_runs_are_loaded():
    runs = kdbench.load_runs(Path(__file__).parents[2] / "results" / "lab" / "runs")
    assert len(runs) == 38
    assert set(runs["role"]) == {"baseline", "distilled"}
    assert runs["test_acc_best"].between(0, 1).all()


def test_a_missing_folder_and_a_file_are_errors(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "nowhere", tmp_path / "file", "x" * 3000):
        with pytest.raises(ConfigError) as error:
            kdbench.load_runs(path)
        assert (error.value.code, error.value.key) == ("not_found", "path")


def test_folders_are_found_once_also_behind_links_that_form_a_circle(tmp_path):
    run = make_run(tmp_path / "runs" / "one")
    (tmp_path / "runs" / "circle").symlink_to(tmp_path / "runs")
    (tmp_path / "linked").symlink_to(run)
    assert [folder.name for folder in run_folders(tmp_path)] == ["linked"]
    shutil.rmtree(run)
    assert run_folders(tmp_path) == []


def test_an_unfinished_run_is_a_run_folder(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "summary.json").unlink()
    assert run_folders(tmp_path) == [folder]
