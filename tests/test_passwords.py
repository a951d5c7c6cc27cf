"""Passwords are left out of messages, logs and records."""

import json
import logging
import stat
from pathlib import Path

import pytest

from kdbench.errors import ConfigError, data_without_passwords, without_passwords
from kdbench.runner.trials import new_storage
from kdbench.sweep.plan import PlannedRun
from kdbench.sweep.record import Record
from kdbench.system.logs import ConsoleFormatter, FileFormatter

SECRETS = [
    "http://user:s3cret@server:5000/a", "postgresql://u:s3cret/w@h/db", "postgresql://u:a@s3cret@h/db",
    "postgresql+psycopg2://h:5432/db?user=u&password=s3cret", "mysql://h/db?ssl=1&passwd=s3cret#x", "https://s3cret@server",
    "redis://:s3cret@h", "hydra.sweeper.storage='postgresql://u:s3cret@h/db'", "+tracker.mine.api_key=s3cret",
    "a=http://u:s3cret@h,http://v:s3cret@h2", "++trial={url:'postgresql://u:s3cret@h/db',study:a}",
    "+tracker.mine={token:s3cret,folder:x}", "tracker.mine.password='s3cret'",
    "cannot reach http://u:s3cret@h (refused)",
]  # fmt: skip


@pytest.mark.parametrize("text", SECRETS)
def test_passwords_are_left_out(text: str) -> None:
    shown = without_passwords(text)
    assert "s3cret" not in shown
    assert "***" in shown
    assert "s3cret" not in str(ConfigError(text, code="x"))
    record = logging.LogRecord("kdbench", logging.INFO, "", 0, "%s", (text,), None)
    assert "s3cret" not in ConsoleFormatter().format(record) + FileFormatter().format(record)


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:///a@b.db", "http://server:5000/a", "journal:///x/y.journal", "file:///a:b@c", "key=value", "a: b@c",
        "s3://bucket/key?version=3", "it refuses the token: no such user", "recipe.lr=0.1 seed=0,1", "teacher=none",
    ],
)  # fmt: skip
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert without_passwords(text) == text


def test_address_stays_recognisable() -> None:
    assert without_passwords("postgresql://u:p/w@h/db") == "postgresql://u:***@h/db"
    assert data_without_passwords({"a": ("x", ["http://u:p@h"], 3)}) == {"a": ["x", ["http://u:***@h"], 3]}


def test_record_of_a_sweep_has_no_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    override = "tracker.mlflow.tracking_uri=http://user:s3cret@host"
    monkeypatch.setattr("sys.argv", ["kdbench", "-m", override])
    record = Record(tmp_path, [PlannedRun((override,), override, problem=f"{override} is away")])
    record.write()
    assert "s3cret" not in record.file.read_text()
    assert json.loads(record.file.read_text())["command"][1] == "tracker.mlflow.tracking_uri=http://user:***@host"


def test_storage_that_cannot_be_opened_is_named_without_its_password() -> None:
    pytest.importorskip("optuna")
    with pytest.raises(ConfigError) as error:
        new_storage("nodatabase://u:s3cret/w@h/db?user=u&password=s3cret")
    assert "s3cret" not in str(error.value)


def test_folder_of_jobs_is_closed_to_others_and_cannot_be_renamed_by_them(tmp_path: Path) -> None:
    from kdbench.sweep.slurm import new_folder, owner_check

    (tmp_path / "slurm").mkdir(mode=0o770)
    folder = new_folder(tmp_path)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.parent.stat().st_mode & stat.S_ISVTX
    assert str(folder) in owner_check(folder)
