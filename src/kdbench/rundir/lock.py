"""Locks: one owner at a time, on one machine or on several that share a disk.

A lock is a file with host, process and the process's start time, which its owner touches while it lives. The lock of a
dead owner is taken over: on the same host at once (the process is gone), from another host when the file has not been
touched for `LEASE` seconds by the waiting process's own clock. Process ids of other hosts are never looked up. A lock
file without a record, as a kill or a power failure leaves it, is taken over after seconds.
"""

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from kdbench.errors import BusyError, ConfigError, RunError
from kdbench.rundir.access import READ, denial, denied_error, is_denied, user_name
from kdbench.rundir.lock_probe import check_locks, is_running, own_host

log = logging.getLogger(__name__)

LEASE = 60.0
"""Seconds without a touch after which an owner counts as dead. A live one touches it every 20."""
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
            why = denied_error(error) if is_denied(error) else error
            raise ConfigError(
                f"output_root cannot be written to ({why}); give another folder", code="not_writable", key="output_root"
            ) from None
        check_locks(self.file.parent)
        self.check_readable()
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
        except PermissionError as error:
            raise ConfigError(f"output_root: {denied_error(error)}", code="not_writable", key="output_root") from None

    def check_readable(self) -> None:
        """Check that the record of the lock's owner can be read; otherwise nobody would know when the owner is dead.

        Raises:
            ConfigError: another user keeps it to themselves.
        """
        if self.file.exists() and (reason := denial(self.file, READ)) and self.file.exists():
            raise ConfigError(f"{self.purpose}: {reason}", code="not_readable", key="output_root")

    def wait(self) -> None:
        """Wait for the lock and take it. Errors: see `remove_dead`."""
        watch = Watch(self.lease)
        while True:
            invalidate_empty(self.file)
            with contextlib.suppress(Timeout):
                self.lease.acquire(timeout=MARGIN, poll_interval=POLL)  # then look for an empty file again
                return
            self.check_readable()
            if watch.seconds_dead() > MARGIN:
                self.remove_dead(watch)

    def take_over_dead(self) -> bool:
        """Take over a lock of a dead owner, or without a record; return whether that was so. Errors: see `remove_dead`.

        filelock has taken over that of a dead owner on this host by now, where it can.
        """
        invalidate_empty(self.file)
        watch, owner = Watch(self.lease), self.lease.owner
        deadline = time.monotonic() + (LEASE if owner else RECORD_SECONDS) + 2 * MARGIN
        while True:
            with contextlib.suppress(Timeout):
                self.lease.acquire(timeout=0)
                return True
            if watch.is_alive() or time.monotonic() > deadline:
                return False
            if watch.seconds_dead() > MARGIN:
                self.remove_dead(watch)
            time.sleep(POLL)

    def remove_dead(self, watch: "Watch") -> None:
        """Remove the lock file of a dead owner, where filelock did not take it over: it needs a disk that can exchange
        two names, which NFS and others cannot.

        The file is renamed first, and put back if it is another one by now. An owner that loses its lock for that
        moment notices it before its next write (`check`).

        Raises:
            ConfigError: it cannot be removed by this user.
        """
        aside = self.file.with_name(f"{self.file.name}.{secrets.token_hex(4)}")
        try:
            seen = watch.state
            if state_of(self.file) != seen or seen is None:
                return
            self.file.rename(aside)
            if state_of(aside) != seen:
                with contextlib.suppress(OSError):
                    os.link(aside, self.file)
            aside.unlink()
        except FileNotFoundError:  # another waiting process was faster
            return
        except PermissionError:
            owner = user_name(self.file.stat().st_uid)
            raise ConfigError(
                f"{self.purpose}: the lock of {owner_of(self.lease)}, which is gone, cannot be removed: "
                f"{self.file} belongs to {owner}, and its folder lets nobody else remove it (sticky bit); {owner} "
                f"removes it, or 'chmod -t {self.file.parent}' lets the group do it",
                code="not_writable",
                key="output_root",
            ) from None

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


class Watch:
    """Observation of a lock that another process holds, by this process's own clock.

    Args:
        lease: the lock.
    """

    def __init__(self, lease: SoftFileLease) -> None:
        self.lease = lease
        self.file = Path(lease.lock_file)
        self.state = self.first = state_of(self.file)
        self.since = time.monotonic()
        self.gone_since: float | None = None
        """Time at which its process on this host was found to be gone."""

    def is_alive(self) -> bool:
        """Return whether the owner lives for certain: it touched the lock, or its process is on this host."""
        owner = self.lease.owner
        here = owner is not None and owner.hostname == own_host() and is_running(owner.pid)
        return here or state_of(self.file) != self.first

    def seconds_dead(self) -> float:
        """Return for how long the owner has been dead; negative if it may be alive."""
        now, state = time.monotonic(), state_of(self.file)
        if state != self.state:
            self.state, self.since, self.gone_since = state, now, None
        owner = self.lease.owner
        if owner and owner.hostname == own_host() and not is_running(owner.pid):
            self.gone_since = self.gone_since or now
            return now - self.gone_since
        return now - self.since - LEASE


def state_of(file: Path) -> tuple[int, int] | None:
    """Return which file stands at a path, and when it was touched last; None for no file."""
    try:
        state = file.lstat()
    except OSError:
        return None
    return state.st_ino, state.st_mtime_ns


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
        try:
            descriptor = os.open(file, os.O_WRONLY)
        except PermissionError:  # of another user, who is gone or loses it: `check` notices it
            if (now := file.stat()).st_size == 0 and (now.st_ino, now.st_ctime_ns) == (
                before.st_ino,
                before.st_ctime_ns,
            ):
                file.unlink()
            return
        try:
            now = os.fstat(descriptor)
            if (now.st_ino, now.st_ctime_ns, now.st_size) == (before.st_ino, before.st_ctime_ns, 0):
                # An owner that was suspended all the time and writes its record now loses it: `check` tells it.
                os.pwrite(descriptor, b"?", 0)
        finally:
            os.close(descriptor)


def owner_of(lease: SoftFileLease) -> str:
    """Return who holds a lock, for the user."""
    owner = lease.owner
    return f"process {owner.pid} on {owner.hostname}" if owner else "another process"
