"""Locks: one owner at a time, on one machine or on several that share a disk.

A lock is a file with host, process and the process's start time, which its owner touches while it lives. The lock of a
dead owner is taken over: on the same host at once (the process is gone), from another host when the file has not been
touched for `LEASE` seconds by the waiting process's own clock. Process ids of other hosts are never looked up. A lock
file without a record, as a kill or a power failure leaves it, is taken over after seconds.
"""

import contextlib
import functools
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from kdbench.errors import BusyError, ConfigError, RunError

log = logging.getLogger(__name__)

LEASE = 60.0
"""Seconds without a touch after which an owner on another host counts as dead. A live one touches it every 20."""
RECORD_SECONDS = 2.0
"""A file that stays empty for longer has lost its owner: a live one writes its record at once."""
MARGIN = 5.0
"""Seconds that taking over a lock of a dead owner may take longer than the time that shows that it is dead."""
POLL = 0.2
"""Seconds between two tries to take a lock that another process holds."""


class Lock:
    """A lock of one file. `acquire` takes it, `release` gives it back.

    Args:
        file: the lock file; its folder is made when the lock is taken.
        purpose: what is locked, for the user, for example "run cifar10_resnet8_...".
    """

    def __init__(self, file: Path, purpose: str) -> None:
        self.file = file
        self.purpose = purpose
        self.lease = SoftFileLease(file, lease_duration=LEASE, thread_local=False)

    def acquire(self, wait: bool) -> None:
        """Take the lock.

        Args:
            wait: wait for another process that holds it, with one line that says so; else raise.

        Raises:
            BusyError: another process holds it, and `wait` is false.
            ConfigError: its folder cannot be made.
            RunError: the file is no lock of this version.
        """
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"output_root cannot be written to ({error}); give another folder",
                code="not_writable",
                key="output_root",
            ) from None
        previous = owner_of(self.lease) if self.file.exists() else None
        try:
            try:
                self.lease.acquire(timeout=0)
                if previous:
                    log.info("%s: took over the lock of %s, which is gone", self.purpose, previous)
            except Timeout:
                if wait:
                    log.info("waiting: %s is locked by %s", self.purpose, owner_of(self.lease))
                    self.wait()
                elif not self.take_over_dead():
                    raise BusyError(
                        f"skipped: {self.purpose} is locked by {owner_of(self.lease)} (on_busy=skip)",
                        code="busy",
                        key="on_busy",
                    ) from None
        except LeaseSettingsMismatch:
            raise RunError(
                f"{self.purpose}: {self.file} was written by another version of kdbench; if no process holds it, "
                "delete it",
                code="foreign_lock",
                key="output_root",
            ) from None

    def wait(self) -> None:
        """Wait for the lock and take it."""
        while True:
            invalidate_empty(self.file)
            with contextlib.suppress(Timeout):
                self.lease.acquire(timeout=10, poll_interval=POLL)  # then look for an empty file again
                return

    def take_over_dead(self) -> bool:
        """Take over a lock of a dead owner on another host, or without a record; return whether that was so.

        An owner on this host is alive: otherwise the lock would have been taken over by now.
        """
        invalidate_empty(self.file)
        seen, owner = last_touched(self.lease), self.lease.owner
        deadline = time.monotonic() + (LEASE if owner else RECORD_SECONDS) + MARGIN
        while True:
            with contextlib.suppress(Timeout):
                self.lease.acquire(timeout=0)
                return True
            owner = self.lease.owner
            if owner and owner.hostname == own_host():
                return False
            if last_touched(self.lease) != seen or time.monotonic() > deadline:
                return False
            time.sleep(POLL)

    @contextmanager
    def held(self, wait: bool = True) -> Iterator["Lock"]:
        """Hold the lock while the block runs. Argument and errors: see `acquire`."""
        self.acquire(wait)
        try:
            yield self
        finally:
            self.release()

    def release(self) -> None:
        """Give the lock back; harmless where it is not held."""
        self.lease.release()

    def check(self) -> None:
        """Check that this process still holds the lock: after a long suspension another may have taken it over.

        Raises:
            RunError: the lock was taken over, so nothing may be written any more.
        """
        if self.lease.compromise is not None or not self.lease.is_lock_held_by_us:
            raise RunError(
                f"{self.purpose}: the lock was taken over by {owner_of(self.lease)}, because this process did not "
                f"touch it for {LEASE:.0f} s; that process continues the run",
                code="lock_lost",
            )


def invalidate_empty(file: Path) -> None:
    """Make a lock file that stays empty for `RECORD_SECONDS` invalid, so that it is taken over.

    A process that is killed between making the file and writing its record leaves it empty, and a power failure may.
    filelock takes over a file with an invalid record, but an empty one never.
    """
    with contextlib.suppress(OSError):
        before = file.stat()
        if before.st_size:
            return
        time.sleep(RECORD_SECONDS)
        descriptor = os.open(file, os.O_WRONLY)
        try:
            now = os.fstat(descriptor)
            if (now.st_ino, now.st_ctime_ns, now.st_size) == (before.st_ino, before.st_ctime_ns, 0):
                # An owner that was suspended all the time and writes its record now loses it: `check` tells it.
                os.pwrite(descriptor, b"?", 0)
        finally:
            os.close(descriptor)


def last_touched(lease: SoftFileLease) -> int | None:
    """Return when the owner last touched the lock file, in nanoseconds."""
    with contextlib.suppress(OSError):
        return Path(lease.lock_file).stat().st_mtime_ns
    return None


@functools.cache
def own_host() -> str:
    """Return the name of this host in locks."""
    with tempfile.TemporaryDirectory() as folder, SoftFileLease(Path(folder) / "lock") as lease:
        assert lease.owner is not None
        return lease.owner.hostname


def owner_of(lease: SoftFileLease) -> str:
    """Return who holds a lock, for the user."""
    owner = lease.owner
    return f"process {owner.pid} on {owner.hostname}" if owner else "another process"
