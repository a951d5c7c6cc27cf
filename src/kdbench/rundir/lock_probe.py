"""A check that locks work on the file system of an output root.

Some network and FUSE file systems create a file that exists already, show another process an old record, lose the
time of a touch, or number files anew at each look. Two processes would then train the same run at once. The check does
what a lock does, with the same library, and takes milliseconds.
"""

import contextlib
import errno
import functools
import hashlib
import os
import secrets
import tempfile
from pathlib import Path

from filelock import SoftFileLease, Timeout

from kdbench.errors import ConfigError
from kdbench.rundir.access import denied_error, is_denied

LEASE = 60.0
"""Lease of the lock that is tried, and age in seconds at which what a killed process left of one is removed."""
PREFIX = "probe-"
NOT_OF_LOCKS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.ENOENT, errno.EIO)
"""Errors of a full, vanished or broken disk, which say nothing of its locks."""
_checked: set[tuple[str, int]] = set()
"""Folders of locks that this process has checked, each with the device that it lies on."""


def check_locks(folder: Path) -> None:
    """Check, once per process and folder, that locks work in a folder.

    Args:
        folder: existing folder of the locks of an output root.

    Raises:
        ConfigError: they do not, or the folder cannot be written to.
    """
    case = (str(folder.absolute()), folder.stat().st_dev)
    if case in _checked:
        return
    try:
        fault = find_fault(folder)
    except OSError as error:
        if is_denied(error):
            raise ConfigError(f"output_root: {denied_error(error)}", code="not_writable", key="output_root") from None
        if error.errno in NOT_OF_LOCKS:
            raise
        fault = f"{error.strerror} ({type(error).__name__})"
    if fault:
        raise ConfigError(
            f"output_root is {folder.parent}, on a file system{kind_of_disk(folder)} where locks do not work: {fault}; "
            "give an output_root on a local disk, or on NFS 3 or later, Lustre or GPFS",
            code="no_locks",
            key="output_root",
        )
    _checked.add(case)


def find_fault(folder: Path) -> str | None:
    """Return what a lock needs and does not find in a folder, in words, or None.

    Raises:
        OSError: a file cannot be made, read or removed at all.
    """
    remove_leftovers(folder)
    name = f"{PREFIX}{os.getpid()}-{host_hash()}-{secrets.token_hex(4)}"
    file, other = folder / f"{name}.lock", folder / f"{name}.new"
    first, second = (SoftFileLease(file, lease_duration=LEASE, thread_local=False) for _ in range(2))
    try:
        first.acquire(timeout=0)
        return fault_of_record(first, second, file) or fault_of_files(file, other)
    except Timeout:
        return "a file that does not exist cannot be created exclusively (O_EXCL)"
    finally:
        for lease in (second, first):
            lease.release()
        for left in (file, other):
            with contextlib.suppress(OSError):
                left.unlink()


def fault_of_record(first: SoftFileLease, second: SoftFileLease, file: Path) -> str | None:
    """Return what is wrong with a lock that is held, or None.

    Args:
        first: the lock, held.
        second: the same lock for another contender.
        file: its file.
    """
    if not first.is_lock_held_by_us:
        return "a record that was written is not read back"
    try:
        second.acquire(timeout=0)
    except Timeout:
        pass
    else:
        return "a file that exists is created once more (O_EXCL has no effect)"
    descriptor = os.open(file, os.O_WRONLY)
    try:
        if os.fstat(descriptor).st_ino != file.lstat().st_ino or file.lstat().st_ino != file.lstat().st_ino:
            return "a file changes its number (inode) from one look to the next"
        os.utime(file, (1, 1))
        os.utime(descriptor, None)
        if file.lstat().st_mtime <= 1:
            return "the time at which a file is touched is not kept"
    finally:
        os.close(descriptor)
    return None


def fault_of_files(file: Path, other: Path) -> str | None:
    """Return what is wrong with renaming a file over another one, or None.

    Args:
        file: existing file.
        other: file beside it to be made.
    """
    other.write_text("new")
    other.replace(file)
    if other.exists() or file.read_text() != "new":
        return "a file that is renamed over another one does not take its place"
    file.unlink()
    return "a file that was removed is still there" if file.exists() else None


def remove_leftovers(folder: Path) -> None:
    """Remove the files of checks whose process was killed."""
    for file in folder.glob(f"{PREFIX}*"):
        pid, host = (*file.name.removeprefix(PREFIX).split("-"), "")[:2]
        with contextlib.suppress(OSError, ValueError):
            is_old = folder.stat().st_mtime - file.stat().st_mtime > LEASE  # by the clock of the disk
            if is_old or (host == host_hash() and not is_running(int(pid))):
                file.unlink()


def is_running(pid: int) -> bool:
    """Return whether a process of this host is running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


@functools.cache
def own_host() -> str:
    """Return the name of this host in locks."""
    with tempfile.TemporaryDirectory() as folder, SoftFileLease(Path(folder) / "lock") as lease:
        assert lease.owner is not None
        return lease.owner.hostname


@functools.cache
def host_hash() -> str:
    """Return a short name of this host for files."""
    return hashlib.sha256(own_host().encode()).hexdigest()[:8]


def kind_of_disk(folder: Path) -> str:
    """Return the type of the file system of a folder in brackets, after a space; empty where it is not known."""
    device = folder.stat().st_dev
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            if before.split()[2] == f"{os.major(device)}:{os.minor(device)}":
                return f" ({after.split()[0]})"
    return ""


def forget_checked() -> None:
    """Check every folder again, as a new process would."""
    _checked.clear()
