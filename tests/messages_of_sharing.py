"""Calls with mistakes in sharing an output root with other users; tests/test_messages.py holds their messages."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kdbench.config import parse
from kdbench.rundir import access, lock_probe
from kdbench.rundir.access import READ, WRITE, check_access, denied_error
from kdbench.rundir.lock import Lock, Watch, state_of
from kdbench.runner.run import check_run
from tests.conftest import SMALL, composed_once
from tests.rundir.test_lock import FOREIGN


@contextmanager
def closed_to_bob(name: str, owner: str = "alice") -> Iterator[None]:
    """Pretend that this user is bob, and that paths of a name belong to another one, who keeps them to themselves."""
    real = os.access
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "access", lambda path, mode: Path(path).name != name and real(path, mode))
        patched.setattr(os, "geteuid", lambda: 61002)
        patched.setattr(access, "user_name", lambda uid: "bob" if uid == 61002 else owner)
        patched.setattr(access, "group_name", lambda gid: "lab")
        yield


def checked(name: str, use: str) -> None:
    """Check a folder that is closed."""
    Path(name).mkdir(mode=0o755, exist_ok=True)
    Path(name).chmod(0o755)
    with closed_to_bob(name):
        check_access(Path(name) / "runs" if use == READ else Path(name), use)


def denied(number: int) -> None:
    """Raise what becomes of an error of the system that no check has foreseen."""
    raise denied_error(OSError(number, os.strerror(number), "gone/file"))


def locks_without(fault: str) -> None:
    """Take a lock on a file system that lacks something."""
    Path("rootless/.locks").mkdir(parents=True, exist_ok=True)
    real = os.utime
    lock_probe.forget_checked()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lock_probe, "kind_of_disk", lambda folder: " (fuse.demo)")
        if fault == "touch":
            patched.setattr(os, "utime", lambda path, *rest, **keys: None if type(path) is int else real(path, *rest))
        else:
            patched.setattr(lock_probe, "find_fault", unsupported)
        with Lock(Path("rootless/.locks/key.lock"), "run x").held():
            raise AssertionError("it is no lock")


def unsupported(folder: Path) -> Any:
    """Raise the error of an operation that a file system does not have."""
    raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


def sticky() -> None:
    """Remove the lock of another user's dead process in a folder that does not allow it."""
    file = Path("sticky.lock").absolute()
    file.write_text(FOREIGN.format(pid=12, lease=60))
    lock = Lock(file, "run x")
    watch = Watch(lock.lease)
    watch.state = state_of(file)

    def refuse(self: Path, target: Path) -> Path:
        raise PermissionError(errno.EPERM, "Operation not permitted", str(self))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "rename", refuse)
        patched.setattr("kdbench.rundir.lock.user_name", lambda uid: "alice")
        lock.remove_dead(watch)


def unreadable_lock() -> None:
    """Wait for a lock whose record another user keeps to themselves."""
    Path("closed.lock").write_text(FOREIGN.format(pid=12, lease=60))
    Path("closed.lock").chmod(0o600)
    with closed_to_bob("closed.lock"):
        Lock(Path("closed.lock").absolute(), "run x").check_readable()


def with_shared(*roots: Any) -> None:
    """Check a run with shared roots."""
    check_run(parse(composed_once(*SMALL).node() | {"shared_roots": list(roots)}))


SHARING_CASES: list[Callable[[], None]] = [
    lambda: checked("theirs", WRITE), lambda: checked("theirs", READ), lambda: denied(errno.EACCES),
    lambda: locks_without("touch"), lambda: locks_without("anything"), sticky, unreadable_lock,
    lambda: with_shared("nowhere"), lambda: with_shared("empty"), lambda: with_shared(""), lambda: with_shared(3),
]  # fmt: skip
