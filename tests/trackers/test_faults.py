"""A tracker cannot fail a run, slow it down by more than a second, or change its numbers."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.config import RunConfig
from kdbench.rundir.files import sha256
from kdbench.rundir.identity import run_key
from kdbench.trackers import sender
from kdbench.trackers.sender import PATIENCE_SECONDS, Tracking
from tests.conftest import Finished, complete
from tests.trackers.conftest import ALONE, Command, lines_in, own, said_of_trackers, wait_for

pytestmark = pytest.mark.slow
FAULTS = [
    ("start", "raise", "RuntimeError: out of (own.py, line"),
    ("start", "import", "No module named 'no_such_module'"),
    ("log", "raise", "RuntimeError: out of"),
    ("finish", "raise", "RuntimeError: out of"),
    ("finish", "exit", "SystemExit: 3"),
    ("log", "full", "No space left on device"),
    ("start", "die", "their process ended"),
    ("log", "die", "their process ended"),
    ("finish", "die", "their process ended"),
    ("start", "hang", "still at work"),
    ("log", "hang", "still at work"),
    ("finish", "hang", "still at work"),
]


@pytest.fixture
def seconds_of_trackers(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The durations of all calls that a run makes for its trackers."""
    seconds: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args)
            finally:
                seconds.append(time.perf_counter() - started)

        return call

    for name in ("__init__", "open", "end_epoch", "end"):
        monkeypatch.setattr(Tracking, name, timed(getattr(Tracking, name)))
    monkeypatch.setattr("kdbench.runner.run_all.settle", timed(sender.settle))
    return seconds


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the weights of the run without trackers."""
    from tests.conftest import composed_once

    root = tmp_path_factory.mktemp("undisturbed")
    return sha256(complete(composed_once(*ALONE, "recipe.epochs=3", f"output_root={root}")).weights)


@pytest.mark.parametrize(("at", "how", "said"), FAULTS)
def test_fault_costs_one_line_and_at_most_a_second(
    at: str,
    how: str,
    said: str,
    track: Callable[..., RunConfig],
    tmp_path: Path,
    seconds_of_trackers: list[float],
    undisturbed: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    faulty = own(tmp_path / "lines", "Faulty", at=at, how=how)
    with caplog.at_level("INFO", "kdbench"):
        directory = complete(track("recipe.epochs=3", faulty=faulty))
    lines = said_of_trackers(caplog.text)
    assert len(lines) == 1, caplog.text
    assert said in lines[0]
    assert sha256(directory.weights) == undisturbed
    assert sum(seconds_of_trackers) < PATIENCE_SECONDS + 0.5


def test_output_of_a_tracker_is_discarded(
    track: Callable[..., RunConfig], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    complete(track("recipe.epochs=2", faulty=own(tmp_path / "lines", "Faulty", at="log", how="print")))
    wait_for(lambda: list((tmp_path / "out/.trackers").glob("*/faulty")))
    out, err = capfd.readouterr()
    assert "not json" not in out
    assert err == ""
    assert [line["epoch"] for line in lines_in(tmp_path / "lines") if "epoch" in line] == [1, 2]


def test_record_that_missed_epochs_catches_up(track: Callable[..., RunConfig], tmp_path: Path) -> None:
    """The folder of the tracker cannot be written to while the run trains, and is there again at the next command."""
    blocked = tmp_path / "lines"
    blocked.write_text("a file in the place of the folder")
    config = track("recipe.epochs=3", lines=own(blocked))
    complete(config)
    blocked.unlink()
    complete(config)
    wait_for(lambda: list((tmp_path / "out/.trackers").glob("*/lines")))
    lines = lines_in(blocked)
    assert [line["epoch"] for line in lines if "epoch" in line] == [1, 2, 3]
    assert lines[-1]["status"] == "complete"
    assert lines[-1]["summary/test_acc_best"] == complete(config).read_summary().test_acc_best
    assert lines_in(blocked) == lines, "a record that has everything is left alone"


def test_recorded_config_and_key_do_not_change(track: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = track(lines=own(tmp_path / "lines"))
    without = track()
    assert run_key(config) == run_key(without)
    assert config.node() == without.node()
    assert "tracker" not in complete(config).config.read_text()


def test_faulty_tracker_does_not_keep_others_from_recording(track: Callable[..., RunConfig], tmp_path: Path) -> None:
    faulty = own(tmp_path / "faulty", "Faulty", at="start", how="hang")
    complete(track("recipe.epochs=2", faulty=faulty, lines=own(tmp_path / "lines")))
    wait_for(lambda: list((tmp_path / "out/.trackers").glob("*/lines")))
    assert lines_in(tmp_path / "lines")[-1]["status"] == "complete"


def test_signals_end_the_record_and_a_resumed_run_continues_it(tmp_path: Path) -> None:
    """SIGTERM, then SIGKILL, then to the end: one file with each epoch once, and how each attempt ended."""
    tracker = (f"+tracker.lines={{_target_:tests.trackers.own.Lines,folder:{tmp_path}/lines}}",)
    sizes = ("data.num_train=256", "recipe.epochs=8", "checkpoint.every_epochs=2")
    arguments = (*ALONE, *sizes, *tracker)
    Command(tmp_path / "run", *arguments).stop_after(2, signal.SIGTERM)
    wait_for(lambda: "status" in lines_in(tmp_path / "lines")[-1])
    command = Command(tmp_path / "run", *arguments)
    command.stop_after(5, signal.SIGKILL)
    wait_for(lambda: sum("status" in line for line in lines_in(tmp_path / "lines")) == 2)
    assert said_of_trackers(Command(tmp_path / "run", *arguments).end()) == []
    lines = lines_in(tmp_path / "lines")
    assert [line["epoch"] for line in lines if "epoch" in line] == list(range(1, 9))
    assert [line["status"] for line in lines if "status" in line] == ["interrupted", "interrupted", "complete"]
    assert lines[0]["settings"]["recipe.epochs"] == "8"


def test_failed_run_says_so(track: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = track("recipe.lr=1e30", "recipe.clip_norm=null", lines=own(tmp_path / "lines"))
    with pytest.raises(Exception, match="ce is nan"):
        complete(config)
    last = wait_for(lambda: [line for line in lines_in(tmp_path / "lines") if "status" in line])[-1]
    assert last["status"] == "failed"
    assert "ce is nan" in last["error"]


def test_runs_of_a_lockstep_sweep_are_a_group(
    kdbench: Callable[..., Finished], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each run has its own record; the same sweep has the same group."""
    tracker = f"+tracker.lines={{_target_:tests.trackers.own.Lines,folder:{tmp_path}/lines}}"
    finished = kdbench("-m", "hydra/launcher=lockstep", *ALONE, "seed=0,1", tracker)
    assert finished.code == 0, finished.err
    files = wait_for(lambda: len(done := list(Path("outputs/.trackers").glob("*/lines"))) == 2 and done)
    starts = [json.loads(file.read_text().splitlines()[0]) for file in (tmp_path / "lines").glob("*.jsonl")]
    assert len(starts) == len(files) == 2
    assert len({start["group"] for start in starts}) == 1
    assert starts[0]["group"].startswith("sweep-")
