"""MLflow, against a real server on this machine with an SQLite store."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdbench.config import RunConfig
from kdbench.trackers.mlflow import RUN_KEY
from kdbench.trackers.sender import PATIENCE_SECONDS
from tests.conftest import Finished, complete
from tests.trackers.conftest import ALONE, Command, said_of_trackers, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("mlflow")]
SIZES = ("data.num_train=1024", "checkpoint.every_epochs=2", "checkpoint.every_minutes=null")


STILL = "tracker mlflow: still at work in the background; the same command sends what is then missing"


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


def keys(address: str, experiment: str, timeout: int = 5) -> tuple[str, ...]:
    """Return the overrides of a run with MLflow."""
    own = {"tracking_uri": address, "experiment": experiment, "timeout": timeout}
    return ("tracker=[mlflow]", *(f"tracker.mlflow.{name}={value}" for name, value in own.items()))


def test_killed_and_resumed_run_is_one_record_with_each_epoch_once(server: Server, tmp_path: Path) -> None:
    arguments = (*ALONE, *SIZES, "recipe.epochs=24", *keys(server.address, "killed"))
    command = Command(tmp_path / "run", *arguments)
    wait_for(lambda: server.epochs(server.records("killed")[0]))  # some epochs are there
    command.stop_after(5, signal.SIGKILL)
    (record,) = server.records("killed", "KILLED")
    first = record.info.run_id
    assert record.data.tags["kdbench.error"] == "the process of the run was killed"
    assert set(said_of_trackers(Command(tmp_path / "run", *arguments).end())) <= {STILL}  # it may end that early
    (record,) = server.records("killed", "FINISHED")
    assert record.info.run_id == first
    assert (record.data.tags["kdbench.status"], record.data.tags["kdbench.error"]) == ("complete", "")
    steps = server.epochs(record)
    (rows,) = (tmp_path / "run").glob("outputs/runs/*/metrics.csv")
    columns = rows.read_text().splitlines()[0].split(",")[1:]
    assert all(steps[column] == list(range(1, 25)) for column in columns)
    assert record.data.params["recipe.epochs"] == "24"
    assert record.data.params["student.name"] == "resnet8"
    assert 0 <= record.data.metrics["summary/test_acc_best"] <= 1


def test_server_that_was_away_gets_what_it_missed(server: Server, tmp_path: Path) -> None:
    arguments = (*ALONE, *SIZES, "recipe.epochs=12", *keys(server.address, "away"))
    command = Command(tmp_path / "run", *arguments)
    server.records("away")
    server.kill()
    rows = command.rows()
    wait_for(lambda: command.rows() >= min(rows + 2, 12))
    server.start()
    said = said_of_trackers(command.end())
    assert len(said) == 1
    assert re.fullmatch(
        rf"tracker mlflow: {server.address}: (Connection|Remote end closed) .*; the run goes on, .*", said[0]
    )
    if server.records("away")[0].info.status != "FINISHED":  # the run ended while the server was still starting
        Command(tmp_path / "run", *arguments).end()
    (record,) = server.records("away", "FINISHED")
    assert server.epochs(record)["val_acc"] == list(range(1, 13))


def test_sweep_is_a_group(server: Server, kdbench: Callable[..., Finished]) -> None:
    """Three runs in lockstep: a record each, with the name of the sweep, which the same command does not log again."""
    arguments = ("-m", "hydra/launcher=lockstep", *ALONE, "seed=0,1,2", *keys(server.address, "sweep"))
    assert kdbench(*arguments).code == 0
    records = server.records("sweep", "FINISHED", count=3)
    assert len({record.data.tags["kdbench.group"] for record in records}) == 1
    assert len({record.data.tags[RUN_KEY] for record in records}) == 3
    wait_for(lambda: len(list(Path("outputs/.trackers").glob("*/mlflow"))) == 3)
    assert kdbench(*arguments).code == 0
    assert server.records("sweep", "FINISHED", count=3)[0].info.end_time == records[0].info.end_time


def test_repeated_run_is_another_record(server: Server, tmp_path: Path) -> None:
    arguments = (*ALONE, *keys(server.address, "repeated"))
    Command(tmp_path / "run", *arguments).end()
    (first,) = server.records("repeated", "FINISHED")
    Command(tmp_path / "run", *arguments, "overwrite=true").end()
    records = server.records("repeated", "FINISHED", count=2)
    assert [server.epochs(record)["val_acc"] for record in records] == [[1], [1]]
    assert first.info.run_id in {record.info.run_id for record in records}


@pytest.fixture
def hanging() -> Iterator[str]:
    """The address of a server that accepts every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        connections: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    connections.append(listening.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)  # ends accept
        thread.join()
        for one in connections:
            one.close()


def test_hanging_server_costs_one_line(hanging: str, tmp_path: Path) -> None:
    command = Command(tmp_path / "run", *ALONE, "recipe.epochs=4", *keys(hanging, "hangs", timeout=1))
    lines: list[tuple[float, str]] = []
    assert command.process.stdout is not None
    with command.process.stdout as output:
        for line in output:
            lines.append((time.monotonic(), line))
    assert command.process.wait(60) == 0
    assert len(said_of_trackers("".join(line for _, line in lines))) == 1
    (said, done) = (next(when for when, line in lines if word in line) for word in ("tracker", "done: "))
    assert said - done < PATIENCE_SECONDS + 1.0


def test_dead_server_costs_one_line(track: Callable[..., RunConfig], caplog: pytest.LogCaptureFixture) -> None:
    address = f"http://user:secret@127.0.0.1:{free_port()}"
    mlflow = {"_target_": "kdbench.trackers.mlflow.MLflow", "tracking_uri": address, "experiment": "dead"}
    with caplog.at_level("INFO", "kdbench"):
        complete(track("recipe.epochs=4", mlflow=mlflow))
    (said,) = said_of_trackers(caplog.text)
    assert "secret" not in said
    assert "Connection refused" in said or "still at work" in said


@pytest.mark.parametrize(("resets", "words"), [(True, "Connection reset by peer"), (False, "Remote end closed .*")])
def test_server_that_hangs_up_is_said_in_a_few_words(
    resets: bool, words: str, track: Callable[..., RunConfig], caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    with listening.accept()[0] as connection:
                        connection.recv(10 if resets else 100_000)  # closing what is not all read resets it

        thread = threading.Thread(target=hang_up)
        thread.start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        mlflow = {"_target_": "kdbench.trackers.mlflow.MLflow", "tracking_uri": address, "experiment": "dead"}
        with caplog.at_level("INFO", "kdbench"):
            complete(track("recipe.epochs=4", mlflow=mlflow))
        listening.shutdown(socket.SHUT_RDWR)
        thread.join()
    (said,) = said_of_trackers(caplog.text)
    assert re.search(rf"{address}: {words}; the run goes on", said) or "still at work" in said
