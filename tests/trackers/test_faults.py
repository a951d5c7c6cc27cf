"""A tracker cannot fail a run, slow it down by more than a second, or change its numbers."""

import json
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from kdbench.config import RunConfig
from kdbench.rundir.files import sha256
from kdbench.rundir.identity import run_key
from kdbench.trackers import sender
from kdbench.trackers.sender import TrackerProcess, Tracking
from tests.conftest import Finished, complete
from tests.faults.processes import Command
from tests.trackers.conftest import (
    ALONE,
    lines_in,
    own,
    rows_in,
    said_of_trackers,
    statuses,
    still_at_work,
    wait_for,
)

pytestmark = pytest.mark.slow
REPLIES = {
    ("start", "raise"): "RuntimeError: out of (own.py, line",
    ("start", "import"): "No module named 'no_such_module'",
    ("log", "raise"): "RuntimeError: out of",
    ("finish", "raise"): "RuntimeError: out of",
    ("finish", "exit"): "SystemExit: 3",
    ("log", "full"): "No space left on device",
}
"""Line that is printed for a fault, by the method of the tracker and the kind."""
AT = ("start", "log", "finish")


@pytest.fixture
def replies_arrive(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the replies of trackers that do not hang arrive before `wait_for_trackers`, which waits at most a second."""
    receive, seconds = TrackerProcess.receive, [0.0]

    def receive_and_note(process: TrackerProcess, patience: float = 0.0) -> None:
        seconds.append(patience)
        receive(process, patience)

    def replying(tracking: Tracking) -> set[str]:
        return {name for name in tracking.waiting - tracking.reported if "hang" not in name}

    def wait_after_replies(trackings: Sequence[Tracking | None]) -> None:
        monkeypatch.setattr(TrackerProcess, "receive", receive)
        for one in filter(None, trackings):
            wait_for(lambda one=one: receive(one.process, 0.1) or one.process.dead or not replying(one))
        sender.wait_for_trackers(trackings)

    monkeypatch.setattr(TrackerProcess, "receive", receive_and_note)
    monkeypatch.setattr("kdbench.runner.run_all.wait_for_trackers", wait_after_replies)
    yield
    assert set(seconds) == {0.0}, "a run waits for its trackers only at its end"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash of the weights of the run without trackers."""
    from tests.conftest import composed_once

    root = tmp_path_factory.mktemp("undisturbed")
    return sha256(complete(composed_once(*ALONE, "recipe.epochs=3", f"output_root={root}")).weights)


def test_faults_cost_one_line_each_and_do_not_keep_others_from_recording(
    track: Callable[..., RunConfig],
    tmp_path: Path,
    replies_arrive: None,
    undisturbed: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    faults = [*REPLIES, *((at, "hang") for at in AT)]
    faulty = {f"{at}_{how}": own(tmp_path / at / how, "Faulty", at=at, how=how) for at, how in faults}
    with caplog.at_level("INFO", "kdbench"):
        directory = complete(track("recipe.epochs=3", **faulty, lines=own(tmp_path / "lines")))
    *said, last = said_of_trackers(caplog.text)
    for (at, how), text in REPLIES.items():
        (line,) = [line for line in said if f"tracker {at}_{how}: " in line]
        assert text in line
    assert len(said) == len(REPLIES)
    assert still_at_work("finish_hang, log_hang, start_hang") in last
    assert lines_in(tmp_path / "lines")[-1]["status"] == "complete"
    assert sha256(directory.weights) == undisturbed


@pytest.mark.parametrize("at", AT)
def test_dead_process_costs_one_line(
    at: str,
    track: Callable[..., RunConfig],
    tmp_path: Path,
    replies_arrive: None,
    undisturbed: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level("INFO", "kdbench"):
        directory = complete(track("recipe.epochs=3", faulty=own(tmp_path / "lines", "Faulty", at=at, how="die")))
    (line,) = said_of_trackers(caplog.text)
    assert "trackers: their process ended" in line
    assert sha256(directory.weights) == undisturbed


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


def test_signals_end_the_record_and_a_resumed_run_continues_it(context: ForkServerContext, tmp_path: Path) -> None:
    """SIGTERM, then SIGKILL, then to the end: one file with each epoch once, and how each attempt ended."""
    lines, run = tmp_path / "lines", tmp_path / "run"
    sizes = ("data.num_train=256", "recipe.epochs=16", "checkpoint.every_epochs=2")
    arguments = (*ALONE, *sizes, f"+tracker.lines={{_target_:tests.trackers.own.Lines,folder:{lines}}}")
    for rows, number, ends in ((2, signal.SIGTERM, 1), (5, signal.SIGKILL, 2)):
        command = Command(context, run, arguments)
        wait_for(lambda rows=rows: rows_in(run) >= rows)
        assert command.send(number)
        assert command.exit_code() != 0
        wait_for(lambda ends=ends: statuses(lines) == ["interrupted"] * ends)
    command = Command(context, run, arguments)
    assert command.exit_code() == 0
    assert set(said_of_trackers(command.output())) <= {still_at_work("lines")}
    wait_for(lambda: statuses(lines) == ["interrupted", "interrupted", "complete"])
    assert [line["epoch"] for line in lines_in(lines) if "epoch" in line] == list(range(1, 17))
    assert lines_in(lines)[0]["settings"]["recipe.epochs"] == "16"


def test_failed_run_says_so(track: Callable[..., RunConfig], tmp_path: Path) -> None:
    config = track("recipe.lr=1e30", "recipe.clip_norm=null", lines=own(tmp_path / "lines"))
    with pytest.raises(Exception, match="ce is nan"):
        complete(config)
    wait_for(lambda: statuses(tmp_path / "lines"))
    last = lines_in(tmp_path / "lines")[-1]
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
