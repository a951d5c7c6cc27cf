"""Locks, as far as one process can show them; tests/test_races.py and tests/faults have several."""

import os
import subprocess
import sys
import threading
import time

import pytest
from filelock import SoftFileLease

from kdbench.errors import BusyError, ConfigError, RunError
from kdbench.rundir import lock
from kdbench.rundir.lock import Lock
from tests.conftest import rest_wide

FOREIGN = (
    "filelock/2\npid={pid}\nhost=elsewhere\nmode=lease\ntoken=0123456789abcdef0123456789abcdef\nduration={lease}\n"
)
"""A lock that a process of another host holds."""

DIES = """
import os
from filelock import SoftFileLease
lease = SoftFileLease({file!r}, lease_duration=60)
lease.acquire()
os._exit(1)
"""


@pytest.fixture
def file(tmp_path):
    return tmp_path / "locks" / "key.lock"


def test_a_lock_names_host_process_and_start_and_its_file_is_removed_afterwards(file):
    with Lock(file, "run x").held():
        owner = SoftFileLease(file, lease_duration=lock.LEASE).owner
        assert (owner.pid, owner.start is not None) == (os.getpid(), True)
        assert owner.hostname
    assert not list(file.parent.iterdir())


def test_without_waiting_a_lock_of_a_living_process_is_an_error_that_names_it(file):
    with Lock(file, "run x").held(), pytest.raises(BusyError) as error, Lock(file, "run x").held(wait=False):
        pytest.fail("two processes hold it")
    assert (error.value.code, error.value.key, error.value.exit_code) == ("busy", "on_busy", 75)
    assert f"process {os.getpid()} on " in str(error.value)


def test_a_lock_of_a_dead_process_of_this_host_is_taken_over_at_once(file, caplog):
    file.parent.mkdir()
    dead = subprocess.Popen([sys.executable, "-c", DIES.format(file=str(file))])
    dead.wait()
    assert file.is_file()
    started = time.monotonic()
    with caplog.at_level("INFO", "kdbench"), Lock(file, "run x").held(wait=False):
        assert time.monotonic() - started < 5
    assert f"process {dead.pid} on " in caplog.text


@pytest.mark.parametrize("wait", [True, False])
def test_a_lock_of_another_host_that_is_no_longer_touched_is_taken_over(file, monkeypatch, wait):
    monkeypatch.setattr(lock, "LEASE", 0.6)
    file.parent.mkdir()
    # A process with this id lives on this host too, which must not matter.
    file.write_text(FOREIGN.format(pid=os.getpid(), lease=0.6))
    started = time.monotonic()
    with Lock(file, "run x").held(wait=wait):
        assert 0.5 < time.monotonic() - started < 5


@pytest.mark.slow
def test_a_lock_of_another_host_that_is_touched_is_waited_for(file, monkeypatch):
    monkeypatch.setattr(lock, "LEASE", 0.6)
    file.parent.mkdir()
    file.write_text(FOREIGN.format(pid=1, lease=0.6))

    def live():
        for _ in range(10):
            time.sleep(0.2)
            os.utime(file)
        file.unlink()

    other = threading.Thread(target=live)
    started = time.monotonic()
    other.start()
    with pytest.raises(BusyError) as error, Lock(file, "run x").held(wait=False):
        pytest.fail("its owner is alive")
    assert "process 1 on elsewhere" in str(error.value)
    with Lock(file, "run x").held():
        assert time.monotonic() - started >= 2
    other.join()


def test_a_lost_lock_is_noticed_before_anything_is_written(file, monkeypatch):
    monkeypatch.setattr(lock, "LEASE", 0.3)
    with Lock(file, "run x").held() as held:
        held.check()
        file.unlink()
        file.write_text(FOREIGN.format(pid=7, lease=0.3))
        with pytest.raises(RunError) as error:
            held.check()
    assert error.value.code == "lock_lost"
    assert "process 7 on elsewhere" in str(error.value)
    assert file.is_file()  # it belongs to the other process


@pytest.mark.parametrize(
    ("content", "wait"), rest_wide([(b"", False), (b"\0garbage", False), (b"", True), (b"\0garbage", True)])
)
def test_a_lock_file_without_a_record_is_replaced(file, monkeypatch, content, wait):
    monkeypatch.setattr(lock, "RECORD_SECONDS", 0.3)
    file.parent.mkdir()
    file.write_bytes(content)
    with Lock(file, "run x").held(wait):
        assert str(os.getpid()) in file.read_text()
    assert not file.exists()


def test_a_lock_file_that_is_empty_for_a_moment_is_left_to_its_owner(file, monkeypatch):
    """A process meets the file of another one that has made it, and writes its record a moment later."""
    monkeypatch.setattr(lock, "RECORD_SECONDS", 0.5)
    with Lock(file, "run x").held():
        record = file.read_text()
        os.truncate(file, 0)
        writing = threading.Timer(0.2, lambda: file.write_text(record))
        writing.start()
        with pytest.raises(BusyError), Lock(file, "run x").held(wait=False):
            pytest.fail("two hold it")
        writing.join()
        assert file.read_text() == record


def test_a_lock_with_another_lease_is_an_error_with_the_file_to_delete(file):
    file.parent.mkdir()
    file.write_text(FOREIGN.format(pid=7, lease=7.5))
    with pytest.raises(RunError) as error, Lock(file, "run x").held():
        pytest.fail("its owner may be alive")
    assert (error.value.code, error.value.key) == ("foreign_lock", "output_root")
    assert str(file) in str(error.value)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as error, Lock(tmp_path / "file" / "key.lock", "run x").held():
        pytest.fail("there is no such folder")
    assert (error.value.code, error.value.key) == ("not_writable", "output_root")
