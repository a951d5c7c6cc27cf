"""MLflow, against a real server on this machine with an SQLite store."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

from kdbench.config import RunConfig
from kdbench.trackers.base import TrackedRun
from kdbench.trackers.errors import described
from kdbench.trackers.mlflow import RUN_KEY, MLflow
from kdbench.trackers.sender import Tracking
from tests.conftest import Finished, complete
from tests.faults.processes import Command
from tests.trackers.conftest import ALONE, rows_in, said_of_trackers, still_at_work, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("mlflow")]


def free_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


class Server:
    """`mlflow server` with a database file."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        store = f"sqlite:///{self.folder}/mlflow.db"
        options = ["--backend-store-uri", store, "--artifacts-destination", str(self.folder / "artifacts")]
        listens = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", *options, *listens],
                stdout=log,
                stderr=log,
                env=os.environ | quiet,
                start_new_session=True,
            )
        wait_for(self.answers)

    def answers(self) -> bool:
        """Return whether the server is there."""
        try:
            return bool(urllib.request.urlopen(f"{self.address}/health", timeout=5).status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """Kill the server and its workers."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def client(self) -> Any:
        """Return MLflow's own client."""
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        import mlflow

        return mlflow.MlflowClient(self.address)

    def records(self, experiment: str, status: str | None = None, count: int = 1) -> list[Any]:
        """Wait for the runs of an experiment to have a status, and return them."""
        client = self.client()

        def found() -> list[Any]:
            one = client.get_experiment_by_name(experiment)
            runs = client.search_runs([one.experiment_id]) if one else []
            enough = len(runs) == count and all(status in (None, run.info.status) for run in runs)
            return list(runs) if enough else []

        return list(wait_for(found))

    def epochs(self, record: Any) -> dict[str, list[int]]:
        """Return the steps of each metric of a record, in the order in which they came."""
        client = self.client()
        history = {name: client.get_metric_history(record.info.run_id, name) for name in record.data.metrics}
        return {name: [point.step for point in points] for name, points in history.items()}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    pytest.importorskip("mlflow")
    running = Server(tmp_path_factory.mktemp("mlflow"))
    yield running
    running.kill()


def keys(address: str, experiment: str, timeout: int = 60) -> dict[str, Any]:
    """Return the keys of a run with MLflow."""
    return {"tracking_uri": address, "experiment": experiment, "timeout": timeout}


def section(address: str, experiment: str, timeout: int = 60) -> dict[str, Any]:
    """Return the section of a run with MLflow."""
    return {"_target_": "kdbench.trackers.mlflow.MLflow", **keys(address, experiment, timeout)}


def overrides(address: str, experiment: str) -> tuple[str, ...]:
    """Return the overrides of a run with MLflow."""
    return (
        "tracker=[mlflow]",
        *(f"tracker.mlflow.{name}={value}" for name, value in keys(address, experiment).items()),
    )


def test_killed_and_resumed_run_is_one_record_with_each_epoch_once(
    server: Server, context: ForkServerContext, tmp_path: Path
) -> None:
    sizes = ("data.num_train=256", "recipe.epochs=16", "checkpoint.every_epochs=2", "checkpoint.every_minutes=null")
    arguments = (*ALONE, *sizes, *overrides(server.address, "killed"))
    command = Command(context, tmp_path, arguments)
    wait_for(lambda: rows_in(tmp_path) >= 3)
    assert command.send(signal.SIGSTOP)  # the trackers go on
    wait_for(lambda: server.epochs(server.records("killed")[0]))
    assert command.send(signal.SIGKILL)
    assert command.exit_code() == -signal.SIGKILL
    (record,) = server.records("killed", "KILLED")
    first = record.info.run_id
    assert record.data.tags["kdbench.error"] == "the process of the run was killed"
    command = Command(context, tmp_path, arguments)
    assert command.exit_code() == 0
    assert set(said_of_trackers(command.output())) <= {still_at_work("mlflow")}
    (record,) = server.records("killed", "FINISHED")
    assert record.info.run_id == first
    assert (record.data.tags["kdbench.status"], record.data.tags["kdbench.error"]) == ("complete", "")
    steps = server.epochs(record)
    (rows,) = tmp_path.glob("outputs/runs/*/metrics.csv")
    columns = rows.read_text().splitlines()[0].split(",")[1:]
    assert all(steps[column] == list(range(1, 17)) for column in columns)
    assert record.data.params["recipe.epochs"] == "16"
    assert record.data.params["student.name"] == "resnet8"
    assert 0 <= record.data.metrics["summary/test_acc_best"] <= 1


def test_server_that_was_away_gets_what_it_missed(
    server: Server,
    track: Callable[..., RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is killed after the first epoch, and there again after the second."""
    end_epoch = Tracking.end_epoch

    def end_epoch_without_server(self: Tracking, epochs: int) -> None:
        if epochs == 2:
            wait_for(lambda: server.epochs(server.records("away")[0]))
            server.kill()
        end_epoch(self, epochs)
        if epochs == 2:
            wait_for(lambda: self.receive(0.1) or self.reported)
            server.start()

    monkeypatch.setattr(Tracking, "end_epoch", end_epoch_without_server)
    with caplog.at_level("INFO", "kdbench"):
        complete(track("recipe.epochs=4", mlflow=section(server.address, "away")))
    (said,) = said_of_trackers(caplog.text)
    assert re.search(rf"tracker mlflow: {server.address}: (Connection|Remote end closed) .*; the run goes on, .*", said)
    (record,) = server.records("away", "FINISHED")
    assert server.epochs(record)["val_acc"] == [1, 2, 3, 4]


def test_sweep_is_a_group(server: Server, kdbench: Callable[..., Finished]) -> None:
    """Three runs in lockstep: a record each, with the name of the sweep, which the same command does not log again."""
    arguments = ("-m", "hydra/launcher=lockstep", *ALONE, "seed=0,1,2", *overrides(server.address, "sweep"))
    assert kdbench(*arguments).code == 0
    records = server.records("sweep", "FINISHED", count=3)
    assert len({record.data.tags["kdbench.group"] for record in records}) == 1
    assert len({record.data.tags[RUN_KEY] for record in records}) == 3
    wait_for(lambda: len(list(Path("outputs/.trackers").glob("*/mlflow"))) == 3)
    assert kdbench(*arguments).code == 0
    assert server.records("sweep", "FINISHED", count=3)[0].info.end_time == records[0].info.end_time


def test_repeated_run_is_another_record(server: Server, track: Callable[..., RunConfig], tmp_path: Path) -> None:
    mlflow = section(server.address, "repeated")
    complete(track(mlflow=mlflow))
    wait_for(lambda: list((tmp_path / "out/.trackers").glob("*/mlflow")))
    (first,) = server.records("repeated", "FINISHED")
    complete(track("overwrite=true", mlflow=mlflow))
    records = server.records("repeated", "FINISHED", count=2)
    assert [server.epochs(record)["val_acc"] for record in records] == [[1], [1]]
    assert first.info.run_id in {record.info.run_id for record in records}


@contextlib.contextmanager
def listener(answer: Callable[[socket.socket], Any]) -> Iterator[str]:
    """Yield the address of a server that handles each connection with `answer` and closes it in the end."""
    with socket.create_server(("127.0.0.1", 0)) as listening, contextlib.ExitStack() as connections:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection = listening.accept()[0]
                    connections.callback(connection.close)
                    answer(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)  # ends accept
        thread.join()


def test_hanging_server_costs_one_line(track: Callable[..., RunConfig], caplog: pytest.LogCaptureFixture) -> None:
    with listener(lambda connection: None) as address, caplog.at_level("INFO", "kdbench"):
        complete(track("recipe.epochs=2", mlflow=section(address, "hangs", timeout=600)))
        (said,) = said_of_trackers(caplog.text)
        assert still_at_work("mlflow") in said


def reset(connection: socket.socket) -> None:
    """Close a connection of which not all is read, so that it is reset."""
    connection.recv(10)
    connection.close()


def hang_up(connection: socket.socket) -> None:
    """Close a connection without an answer."""
    connection.recv(100_000)
    connection.close()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda connection: None, "no answer within 1 s"),
        (reset, "Connection reset by peer"),
        (hang_up, "Remote end closed connection without response"),
    ],
    ids=["hangs", "resets", "hangs up"],
)
def test_error_of_a_connection_is_a_few_words(
    answer: Callable[[socket.socket], Any], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listener(answer) as address:
        assert error_of(address, tmp_path, monkeypatch) == f"{address}: {words}"


def test_dead_server_is_named_without_its_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = error_of(f"http://user:secret@127.0.0.1:{free_port()}", tmp_path, monkeypatch)
    assert "secret" not in said
    assert said.endswith(": Connection refused")


def error_of(address: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the error with which a record on a server cannot be opened."""
    for name in ("HTTP_REQUEST_MAX_RETRIES", "HTTP_REQUEST_TIMEOUT", "DISABLE_TELEMETRY"):
        monkeypatch.setenv(f"MLFLOW_{name}", "1")  # the tracker sets them, and they are put back afterwards
    run = TrackedRun("key", "title", folder, folder, None, 0.0)
    with pytest.raises(ConnectionError) as error:
        MLflow(MLflow.Config(**keys(address, "dead", timeout=1))).start(run)
    return described(error.value)
