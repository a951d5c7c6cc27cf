"""One owner at a time, on one machine or on several that share a disk.

A lock is a file that tells host, process and the process's start time, and that its owner touches while it lives. A
lock whose owner is dead is taken over: on the same host at once (the process is gone), from another host when nobody
has touched it for `LEASE` seconds on the waiting one's own clock. Process ids of other hosts are never asked about.
"""

import contextlib
import functools
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from kdbench.errors import BusyError, ConfigError, RunError

log = logging.getLogger(__name__)

LEASE = 60.0
"""Seconds without a sign of life after which an owner on another host counts as dead. It gives one every 20."""
POLL = 0.2
"""Seconds between two looks at a lock that another process has."""


class Held:
    """A lock that this process has."""

    def __init__(self, lease: SoftFileLease, purpose: str) -> None:
        self.lease = lease
        self.purpose = purpose

    def check(self) -> None:
        """That it is still ours: a process that was suspended for long may have been taken for dead.

        Raises:
            RunError: it is not, so nothing may be written any more.
        """
        if self.lease.compromise is not None or not self.lease.is_lock_held_by_us:
            raise RunError(
                f"{self.purpose} was taken over by {owner_of(self.lease)}, because this process gave no sign of life "
                f"for {LEASE:.0f} s; it leaves the run to that one"
            )


@contextmanager
def held(file: Path, purpose: str, wait: bool = True) -> Iterator[Held]:
    """Hold the lock `file` meanwhile.

    Args:
        file: Removed at the end; its folder is made.
        purpose: What is locked, for the user.
        wait: For another process that has it, saying so; else leave.

    Raises:
        BusyError: another process has it, and there was to be no waiting.
        ConfigError: the folder cannot be made.
        RunError: what is there is no lock of this version's.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"output_root cannot be written to ({error}); give another folder") from None
    lease = SoftFileLease(file, lease_duration=LEASE, thread_local=False)
    left_by = owner_of(lease) if file.exists() else None
    try:
        try:
            lease.acquire(timeout=0)
            if left_by:
                log.info("%s was left by %s, which is gone; taken over", purpose, left_by)
        except Timeout:
            if wait:
                log.info("waiting: %s has %s", owner_of(lease), purpose)
                lease.acquire(poll_interval=POLL)
            elif not outlived(lease):
                raise BusyError(f"{owner_of(lease)} has {purpose}; left to it (on_busy=skip)") from None
    except LeaseSettingsMismatch as error:
        raise RunError(f"{purpose}: {error}; if no process works on it, delete {file}") from None
    try:
        yield Held(lease, purpose)
    finally:
        lease.release()


def outlived(lease: SoftFileLease) -> bool:
    """Take over a lock whose owner, on another host, gives no sign of life; whether that was so.

    One of this host is left at once: were its process dead, the lock would have been taken over by now.
    """
    owner = lease.owner
    if owner is None or owner.hostname == own_host():
        return False
    seen = last_sign(lease)
    deadline = time.monotonic() + lease.lease_duration + 5
    while last_sign(lease) == seen and time.monotonic() < deadline:
        with contextlib.suppress(Timeout):
            lease.acquire(timeout=0)
            return True
        time.sleep(POLL)
    return False


def last_sign(lease: SoftFileLease) -> int | None:
    """Of its owner's life."""
    with contextlib.suppress(OSError):
        return Path(lease.lock_file).stat().st_mtime_ns
    return None


@functools.cache
def own_host() -> str:
    """What this host is called in locks."""
    with tempfile.TemporaryDirectory() as folder, SoftFileLease(Path(folder) / "lock") as lease:
        assert lease.owner is not None
        return lease.owner.hostname


def owner_of(lease: SoftFileLease) -> str:
    """Who has a lock, for the user."""
    owner = lease.owner
    return f"process {owner.pid} on {owner.hostname}" if owner else "another process"
