"""MLflow: a run on a tracking server. Needs the package mlflow-skinny, or mlflow, which contains it."""

import os
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.config.schema import added, setting, whole
from kdbench.errors import ConfigError, without_passwords
from kdbench.trackers.base import TrackedRun, Tracker

RUN_KEY = "kdbench.run_key"
"""Tag by which a run is found again."""
CHECKSUM = "kdbench.summary_checksum"
"""Tag with the checksum of the summary of a complete run."""
STATUSES = {"complete": "FINISHED", "failed": "FAILED", "interrupted": "KILLED", "pruned": "KILLED"}
SCHEMES = ("http", "https", "file", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc", "uc")
"""Beginnings of the addresses that MLflow takes."""
PER_BATCH = 100
"""Largest number of settings in a request (MLflow's limit)."""
LONGEST_NAME = 250


class MLflow(Tracker):
    """Run of an MLflow server, found by its tag `kdbench.run_key`, or created by the first process that trains the run.

    A finished record whose run is trained anew, as with overwrite=true, is left alone, and another one begins.
    """

    package = extra = "mlflow"

    @dataclass
    class Config(Tracker.Config):
        """The keys of conf/tracker/mlflow.yaml."""

        tracking_uri: str = setting(lambda text: text.strip() != "", "an address", identity=False)
        experiment: str = setting(lambda text: 0 < len(text.strip()) <= 500, "a name", identity=False)
        timeout: int = added(whole(1, identity=False), 5)

    @classmethod
    def check(cls, config: Any, name: str, output_roots: Sequence[Path]) -> None:
        if re.match(r"[\w.-]+:\d+(/|$)", config.tracking_uri):  # MLflow would take it for a folder
            raise ConfigError(
                f"tracker.{name}.tracking_uri is {config.tracking_uri}, without a scheme; write "
                f"http://{config.tracking_uri}",
                code="out_of_range",
                key=f"tracker.{name}.tracking_uri",
            )
        scheme, separator, _ = config.tracking_uri.partition("://")
        if separator and scheme.partition("+")[0].lower() not in SCHEMES:
            raise ConfigError(
                f"tracker.{name}.tracking_uri begins with {scheme}://, which MLflow does not know; it may begin with "
                f"{', '.join(f'{known}://' for known in SCHEMES)}, or be a folder",
                code="out_of_range",
                key=f"tracker.{name}.tracking_uri",
            )

    def start(self, run: TrackedRun) -> Collection[int]:
        # Here alone: the process is of trackers only. A request is made once; the next epoch makes it again.
        os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"
        os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(self.config.timeout)
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        try:
            import mlflow

            self.run, self.client = run, mlflow.MlflowClient(tracking_uri=self.config.tracking_uri)
            return self.open_record()
        except Exception as error:
            raise self.explained(error) from error

    def open_record(self) -> set[int]:
        """Find or make the run on the server, and return the epochs that it has."""
        experiment = self.experiment_id()
        record = self.find(experiment)
        if record is None:
            tags = {
                RUN_KEY: self.run.key,
                "mlflow.note.content": self.run.title,
                "kdbench.run_directory": str(self.run.path),
                "kdbench.title": self.run.title,
            }
            if self.run.group:
                tags["kdbench.group"] = self.run.group
            start = round(1000 * self.run.started)
            record = self.client.create_run(experiment, start_time=start, tags=tags, run_name=self.run.name)
        self.id = record.info.run_id
        self.checksum = record.data.tags.get(CHECKSUM)
        if self.run.is_complete and self.checksum:  # nothing is missing
            return {int(row["epoch"]) for row in self.run.rows()}
        if record.info.status != "RUNNING":
            self.client.update_run(self.id, status="RUNNING")
        self.log_settings(record.data.params)
        rows = self.run.rows()
        column = next((name for name in rows[0] if name != "epoch"), None) if rows else None
        return {point.step for point in self.client.get_metric_history(self.id, column)} if column else set()

    def experiment_id(self) -> str:
        """Return the id of the experiment, which is made where it is missing."""
        name = self.config.experiment
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name))
            except Exception:  # another process was faster
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def find(self, experiment: str) -> Any:
        """Return the run with this run key on the server, or None."""
        query = f"tags.`{RUN_KEY}` = '{self.run.key}'"
        found = self.client.search_runs([experiment], query, order_by=["attributes.start_time DESC"])
        checksum = self.run.summary_content().get("checksum")
        valid = [record for record in found if record.data.tags.get(CHECKSUM) in (None, checksum)]
        return valid[0] if valid else None

    def log_settings(self, known: Mapping[str, str]) -> None:
        """Log the settings that the record lacks; MLflow refuses other values for those that it has."""
        from mlflow.entities import Param

        named = {valid_name(name): value for name, value in self.run.settings().items()}
        missing = [Param(name, value) for name, value in named.items() if name not in known]
        for first in range(0, len(missing), PER_BATCH):
            self.client.log_batch(self.id, params=missing[first : first + PER_BATCH])

    def log(self, epoch: int, values: Mapping[str, float]) -> None:
        self.log_metrics(epoch, values)

    def log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log numbers at a step, in one request."""
        from mlflow.entities import Metric

        now = round(1000 * time.time())
        try:
            points = [Metric(valid_name(name), value, now, step) for name, value in values.items()]
            self.client.log_batch(self.id, metrics=points)
        except Exception as error:
            raise self.explained(error) from error

    def finish(self, status: str, summary: Mapping[str, float], error: str) -> None:
        checksum = self.run.summary_content().get("checksum")
        if self.checksum and self.checksum == checksum:
            return
        self.log_metrics(len(self.run.rows()), summary)
        try:
            self.client.set_tag(self.id, "kdbench.status", status)  # MLflow has none for a pruned run
            self.client.set_tag(self.id, "kdbench.error", error)  # empty: an earlier attempt may have left one
            self.client.set_terminated(self.id, STATUSES[status])
            if checksum:
                self.client.set_tag(self.id, CHECKSUM, checksum)
        except Exception as failure:
            raise self.explained(failure) from failure

    def explained(self, error: Exception) -> Exception:
        """Return an error of the connection in a few words; any other as it is."""
        address = without_passwords(self.config.tracking_uri)
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, OSError) and cause.strerror:
                return ConnectionError(f"{address}: {cause.strerror}")
            if isinstance(cause, ConnectionError):  # one of http.client, which has words alone
                return ConnectionError(f"{address}: {cause}")
            if "timeout" in type(cause).__name__.lower():
                return ConnectionError(f"{address}: no answer within {self.config.timeout} s")
            held = next((value for value in cause.args if isinstance(value, Exception)), None)  # urllib3's way
            cause = cause.__cause__ or cause.__context__ or held
        return error


def valid_name(name: str) -> str:
    """Return a name of which MLflow accepts every character and the length."""
    return re.sub(r"[^\w\-./ :]", "_", name)[:LONGEST_NAME]
