"""The keys of trackers: chosen as a list, no part of a run's identity or of its records."""

from pathlib import Path

import pytest

from kdbench.config.composition import compose
from kdbench.errors import ConfigError
from kdbench.rundir.directory import RunDirectory
from kdbench.rundir.identity import run_key
from kdbench.rundir.recorded_config import read_config
from kdbench.study.read import changes_results
from kdbench.sweep.lockstep import shared_settings
from kdbench.sweep.overrides import expand
from kdbench.sweep.plan import PlannedRun, plan_run
from kdbench.sweep.tracking import name_of_sweep, set_group
from kdbench.trackers.base import TrackedRun, flattened
from kdbench.trackers.mlflow import valid_name
from tests.trackers.conftest import ALONE

EVERY = "tracker=[tensorboard,mlflow,wandb]"


@pytest.mark.slow
def test_list_of_trackers_changes_no_key_and_no_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@server:5000")
    tracked, without = compose([*ALONE, EVERY, "tracker.mlflow.experiment=mine"]), compose(ALONE)
    assert [tracker.name for tracker in tracked.trackers] == ["tensorboard", "mlflow", "wandb"]
    assert tracked.trackers[1].params.tracking_uri == "http://user:secret@server:5000"
    assert tracked.trackers[1].params.experiment == "mine"
    assert tracked.trackers[2].params.mode == "offline"
    assert run_key(tracked) == run_key(without)
    assert tracked.node() == without.node()
    assert shared_settings(tracked) == shared_settings(without)
    RunDirectory(tmp_path, "key").write_config(tracked)
    assert "secret" not in (tmp_path / "config.yaml").read_text()


@pytest.mark.slow
def test_recorded_config_that_names_a_tracker_imports_nothing(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, "key")
    directory.write_config(compose(ALONE))
    with directory.config.open("a") as file:
        file.write("tracker:\n  mine:\n    _target_: no_such_module.Tracker\n")
    assert read_config(directory.config).trackers == []


def test_list_is_one_value_of_a_sweep() -> None:
    assert list(expand([EVERY, "seed=0,1"])) == [(EVERY, "seed=0"), (EVERY, "seed=1")]


def test_trackers_do_not_change_the_results_of_a_study() -> None:
    assert not changes_results("tracker")
    assert not changes_results("tracker.mlflow.experiment")


def planned(*overrides: str) -> PlannedRun:
    return plan_run((*ALONE, *overrides), lambda texts: compose(texts))


@pytest.mark.slow
def test_runs_of_a_sweep_get_its_name_as_their_group() -> None:
    runs = [planned("tracker=[tensorboard]", f"seed={seed}") for seed in (0, 1)]
    name = name_of_sweep(runs)
    assert name == name_of_sweep(runs[::-1]), "whatever the order"
    assert name != name_of_sweep(runs[:1])
    set_group(runs, "lab/final")
    assert [run.config.trackers[0].params.group for run in runs] == ["lab/final"] * 2
    assert compose(runs[0].overrides).trackers == runs[0].config.trackers, "launchers compose it anew"
    set_group(runs, "another")
    assert runs[0].config.trackers[0].params.group == "lab/final", "a group that was given stays"


@pytest.mark.slow
def test_own_tracker_in_a_file_without_its_section_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tracker").mkdir()
    (tmp_path / "tracker/lines.yaml").write_text("_target_: tests.trackers.own.Lines\nfolder: there\n")
    with pytest.raises(ConfigError, match="one section, named as the tracker") as error:
        compose([*ALONE, "tracker=[lines]"], tmp_path)
    assert error.value.code == "invalid_option_file"


@pytest.mark.slow
def test_settings_are_flat_texts(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path, "key")
    directory.write_config(compose([*ALONE, "data.mean=[0.5,0.5,0.5]", "data.std=[1,1,1]"]))
    run = TrackedRun("key", "title", tmp_path, tmp_path, None, 0.0)
    settings = run.settings()
    assert settings["recipe.lr"] == "0.1"
    assert settings["data.mean"] == "[0.5, 0.5, 0.5]"
    assert settings["data.augment"] == "true"
    assert settings["checkpoint.every_epochs"] == "null"
    assert dict(flattened({"a": {"b": {}}, "c": [{}]})) == {"a.b": {}, "c": [{}]}


def test_empty_values_of_rows_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,val_acc,kd\n1,0.5,\n2,nan,1e-3\n")
    first, second = TrackedRun("key", "title", tmp_path, tmp_path, None, 0.0).rows()
    assert first == {"epoch": 1.0, "val_acc": 0.5}
    assert second["kd"] == 0.001


def test_names_are_made_fit() -> None:
    assert valid_name("student.stages.layer[1]") == "student.stages.layer_1_"
    assert len(valid_name("x" * 300)) == 250
