"""TensorBoard's event files and the offline files of Weights & Biases, read back."""

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdbench.config import RunConfig
from kdbench.config.composition import compose
from kdbench.pipeline.compress import compress
from kdbench.runner.policy import run_with_retries
from tests.conftest import Finished, complete, killed_after
from tests.trackers.conftest import ALONE, close, said_of_trackers, wait_for

pytestmark = pytest.mark.slow
TENSORBOARD = {"_target_": "kdbench.trackers.tensorboard.TensorBoard"}
WANDB = {"_target_": "kdbench.trackers.wandb.WeightsAndBiases", "project": "tests"}
CHECKPOINTS = ("checkpoint.every_epochs=2", "checkpoint.every_minutes=null")


def events_under(folder: Path) -> dict[str, Any]:
    """Return what TensorBoard reads, by the path of each run in its folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = {}
    for parent in {file.parent for file in folder.rglob("events.*")}:
        read[str(parent.relative_to(folder))] = EventAccumulator(str(parent)).Reload()
    return read


def records_in(file: Path) -> Iterator[Any]:
    """Yield the records of a file of wandb: a log of LevelDB, in blocks of 32 KiB, after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (room := 32_768 - place % 32_768) < 7:
            place += room
            continue
        _, size, kind = struct.unpack("<IHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def marked(root: Path, tracker: str, runs: int = 1) -> None:
    """Wait until the records of some complete runs have everything."""
    wait_for(lambda: len(list((root / ".trackers").glob(f"*/{tracker}"))) == runs)


def test_event_files_have_each_epoch_once_after_a_kill(track: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = track("recipe.epochs=5", *CHECKPOINTS, tensorboard=TENSORBOARD)
    with killed_after(4):  # the first attempt ends before its next checkpoint, and the second repeats nothing
        run_with_retries([config])
    close()
    directory = complete(config)
    marked(tmp_path / "out", "tensorboard")
    ((name, events),) = events_under(tmp_path / "out/tensorboard").items()
    assert name == directory.path.name
    rows = directory.metrics.read_text().splitlines()
    columns = rows[0].split(",")[1:]
    for column in columns:
        values = [(event.step, event.value) for event in events.Scalars(column)]
        expected = [float(row.split(",")[1:][columns.index(column)]) for row in rows[1:]]
        assert [step for step, _ in values] == [1, 2, 3, 4, 5]
        assert [value for _, value in values] == pytest.approx(expected, rel=1e-6)
    (test,) = events.Scalars("summary/test_acc_best")
    assert test.value == pytest.approx(directory.read_summary().test_acc_best)
    assert {"_hparams_/session_start_info", "_hparams_/session_end_info"} <= events.summary_metadata.keys()
    assert b"recipe.epochs" in events.summary_metadata["_hparams_/session_start_info"].plugin_data.content


def test_files_of_wandb_have_each_epoch_once_after_a_kill(track: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = track("recipe.epochs=4", *CHECKPOINTS, wandb=WANDB | {"group": "mine"})
    with killed_after(2):
        run_with_retries([config])
    close()
    directory = complete(config)
    marked(tmp_path / "out", "wandb")
    (file,) = wait_for(lambda: list((tmp_path / "out/wandb").glob("offline-run-*/*.wandb")))
    assert file.name == f"run-{directory.key}.wandb"
    records = list(records_in(file))
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert (run.run_id, run.run_group, run.project) == (directory.key, "mine", "tests")
    assert {item.key for item in run.config.update} >= {"recipe.epochs", "student.name"}
    logged = [record.history for record in records if record.WhichOneof("record_type") == "history"]
    assert [history.step.num for history in logged] == [1, 2, 3, 4]
    keys = {item.key or item.nested_key[0] for item in logged[0].item}
    assert keys >= {"train_loss", "val_acc", "seconds"}
    (ended,) = [record.exit for record in records if record.WhichOneof("record_type") == "exit"]
    assert ended.exit_code == 0
    names = {item.key or item.nested_key[0] for r in records if r.HasField("summary") for item in r.summary.update}
    assert {"summary/test_acc_best", "status", "error"} <= names


def test_lockstep_group_writes_to_several_trackers_at_a_time(kdbench: Callable[..., Finished], tmp_path: Path) -> None:
    """Three runs in one process, each with a folder in that of the sweep; the same command finds them there."""
    arguments = (
        "-m",
        "hydra/launcher=lockstep",
        *ALONE,
        "seed=0,1,2",
        "recipe.epochs=2",
        "tracker=[tensorboard,wandb]",
    )
    assert kdbench(*arguments).code == 0
    for tracker in ("tensorboard", "wandb"):
        marked(Path("outputs"), tracker, 3)
    events = events_under(Path("outputs/tensorboard"))
    groups = {Path(name).parts[0] for name in events}
    assert len(events) == 3
    assert len(groups) == 1
    assert all([event.step for event in one.Scalars("val_acc")] == [1, 2] for one in events.values())
    files = list(Path("outputs/wandb").glob("offline-run-*/*.wandb"))
    runs = [record.run for file in files for record in records_in(file) if record.HasField("run")]
    assert len({run.run_id for run in runs}) == 3
    assert {run.run_group for run in runs} == groups
    before = {file: file.stat().st_mtime_ns for file in Path("outputs/tensorboard").rglob("events.*")}
    assert said_of_trackers(kdbench(*arguments).out) == []
    assert {file: file.stat().st_mtime_ns for file in Path("outputs/tensorboard").rglob("events.*")} == before


def test_finished_run_is_sent_to_a_tracker_that_is_added_later(tmp_path: Path) -> None:
    options = [*ALONE, "recipe.epochs=2", f"output_root={tmp_path}/out"]
    complete(compose(options))
    complete(compose([*options, "tracker=[tensorboard]", f"tracker.tensorboard.folder={tmp_path}/events"]))
    marked(tmp_path / "out", "tensorboard")
    ((_, events),) = events_under(tmp_path / "events").items()
    assert [event.step for event in events.Scalars("val_acc")] == [1, 2]


def test_compressed_network_is_recorded_with_its_summary(tmp_path: Path) -> None:
    trained = complete(compose([*ALONE, f"output_root={tmp_path}/out"]))
    assert compress([str(trained.path), "method=bf16", "runtime.device=cpu", "tracker=[tensorboard]"]) == 0
    marked(tmp_path / "out", "tensorboard")
    ((name, events),) = events_under(tmp_path / "out/tensorboard").items()
    assert "bf16" in name
    assert {"summary/test_acc_best", "summary/parent_test_acc"} <= set(events.Tags()["scalars"])


def test_repeated_run_replaces_its_record(track: Callable[..., RunConfig], tmp_path: Path) -> None:
    complete(track("recipe.epochs=2", tensorboard=TENSORBOARD))
    marked(tmp_path / "out", "tensorboard")
    first = list((tmp_path / "out/tensorboard").rglob("events.*"))
    complete(track("recipe.epochs=2", "overwrite=true", tensorboard=TENSORBOARD))
    wait_for(lambda: set(first).isdisjoint((tmp_path / "out/tensorboard").rglob("events.*")))
    close_when_done(tmp_path)
    ((_, events),) = events_under(tmp_path / "out/tensorboard").items()
    assert [event.step for event in events.Scalars("val_acc")] == [1, 2]


def close_when_done(tmp_path: Path) -> None:
    """Wait until the only run's events have its summary."""
    wait_for(
        lambda: any(
            "summary/test_acc_best" in one.Tags()["scalars"]
            for one in events_under(tmp_path / "out/tensorboard").values()
        )
    )
