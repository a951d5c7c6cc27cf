"""The folder of TensorBoard's event files: run directories are out of its reach."""

from pathlib import Path

import pytest

from kdbench.errors import ConfigError
from kdbench.trackers.base import TrackedRun
from kdbench.trackers.tensorboard import TensorBoard, remove_events

NAME = "shapes_resnet8_ce_seed0_0123456789ab"


def tracked(root: Path, group: str | None = None) -> TrackedRun:
    return TrackedRun("0123456789ab", "title", root / "runs" / NAME, root, group, 0.0)


def made(folder: Path | None) -> TensorBoard:
    return TensorBoard(TensorBoard.Config(folder=None if folder is None else str(folder)))


@pytest.mark.parametrize("folder", ["out", "out/runs", "out/runs/events", ".", "shared", "shared/runs/x", "link"])
def test_folder_that_has_to_do_with_runs_is_refused(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out/runs").mkdir(parents=True)
    (tmp_path / "link").symlink_to("out/runs")
    with pytest.raises(ConfigError) as error:
        TensorBoard.check(TensorBoard.Config(folder=folder), "tensorboard", [Path("out"), Path("shared")])
    assert error.value.key == "tracker.tensorboard.folder"
    for allowed in (None, "events", "out/tensorboard", "out/runs2"):
        TensorBoard.check(TensorBoard.Config(folder=allowed), "tensorboard", [Path("out"), Path("shared")])


@pytest.mark.parametrize("group", [None, "sweep-1", "lab/final"])
def test_run_is_found_in_any_group_of_the_own_layout(group: str | None, tmp_path: Path) -> None:
    before = made(None).folder_of(tracked(tmp_path, group))
    assert before == tmp_path / "tensorboard" / (group or "") / NAME
    before.mkdir(parents=True)
    assert made(None).folder_of(tracked(tmp_path, "another")) == before


@pytest.mark.parametrize("group", ["../runs", "/runs", "../../out/runs"])
def test_no_group_leads_outside_of_the_folder(group: str, tmp_path: Path) -> None:
    root = tmp_path / "out"
    (root / "runs" / NAME).mkdir(parents=True)
    assert (root / "tensorboard") in made(None).folder_of(tracked(root, group)).parents


def test_only_event_files_are_removed(tmp_path: Path) -> None:
    for name in ("events.out.tfevents.1.host.2.3", "summary.json"):
        (tmp_path / name).write_text("content")
    remove_events(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]
