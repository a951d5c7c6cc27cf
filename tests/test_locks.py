"""Locks between processes are tested in tests/test_races.py and tests/faults; here, what one process can show."""

import os
import subprocess
import sys
import threading
import time

import pytest
from filelock import SoftFileLease

from kdbench import locks
from kdbench.errors import BusyError, RunError

FOREIGN = (
    "filelock/2\npid={pid}\nhost=elsewhere\nmode=lease\ntoken=0123456789abcdef0123456789abcdef\nduration={lease}\n"
)

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


def test_lock_tells_host_process_and_its_start_and_is_gone_afterwards(file):
    with locks.held(file, "this run"):
        owner = SoftFileLease(file, lease_duration=locks.LEASE).owner
        assert (owner.pid, owner.start is not None) == (os.getpid(), True)
        assert owner.hostname
    assert not list(file.parent.iterdir())


def test_lock_of_a_living_process_is_left_to_it_if_so_wished(file):
    with locks.held(file, "this run"), pytest.raises(BusyError) as told, locks.held(file, "this run", wait=False):
        pytest.fail("two have it")
    assert f"process {os.getpid()} on " in str(told.value)
    assert "has this run; left to it (on_busy=skip)" in str(told.value)
    assert told.value.exit_code == 75


def test_lock_of_a_dead_process_of_this_host_is_taken_over_at_once(file, caplog):
    file.parent.mkdir()
    dead = subprocess.Popen([sys.executable, "-c", DIES.format(file=str(file))])
    dead.wait()
    assert file.is_file()
    started = time.monotonic()
    with caplog.at_level("INFO", "kdbench"), locks.held(file, "this run", wait=False):
        assert time.monotonic() - started < 5
    assert f"this run was left by process {dead.pid} on " in caplog.text
    assert "which is gone; taken over" in caplog.text


@pytest.mark.parametrize("wait", [True, False])
def test_lock_of_another_host_is_taken_over_when_its_owner_is_silent_whatever_its_process_id(file, monkeypatch, wait):
    monkeypatch.setattr(locks, "LEASE", 0.6)
    file.parent.mkdir()
    # A process of that number lives here, too, and means nothing.
    file.write_text(FOREIGN.format(pid=os.getpid(), lease=0.6))
    started = time.monotonic()
    with locks.held(file, "run", wait=wait):
        assert 0.5 < time.monotonic() - started < 5


def test_lock_of_another_host_that_gives_signs_of_life_is_waited_for(file, monkeypatch):
    monkeypatch.setattr(locks, "LEASE", 0.6)
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
    with pytest.raises(BusyError, match="process 1 on elsewhere has run"), locks.held(file, "run", wait=False):
        pytest.fail("it lives")
    with locks.held(file, "run"):
        assert time.monotonic() - started >= 2
    other.join()


def test_whoever_lost_a_lock_notices_before_it_writes(file, monkeypatch):
    monkeypatch.setattr(locks, "LEASE", 0.3)
    with locks.held(file, "this run") as held:
        held.check()
        file.unlink()
        file.write_text(FOREIGN.format(pid=7, lease=0.3))
        with pytest.raises(RunError, match="this run was taken over by process 7 on elsewhere"):
            held.check()
    assert file.is_file()  # it is the other one's


def test_lock_that_holds_no_record_does_not_stay(file):
    file.parent.mkdir()
    file.write_bytes(b"\x00garbage")
    os.utime(file, (time.time() - 10, time.time() - 10))
    with locks.held(file, "this run"):
        pass
    assert not file.exists()


def test_lock_of_another_version_is_said(file):
    file.parent.mkdir()
    file.write_text(FOREIGN.format(pid=7, lease=7.5))
    with (
        pytest.raises(RunError, match=r"this run: .* if no process works on it, delete .*key.lock"),
        locks.held(file, "this run"),
    ):
        pytest.fail("whose is it?")
