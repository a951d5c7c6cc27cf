"""File systems on which locks do not work, pretended by a fault in one operation of the system."""

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import ConfigError
from kdbench.rundir import lock, lock_probe
from kdbench.rundir.lock import Lock
from tests.conftest import SMALL
from tests.rundir.test_lock import FOREIGN

Patch = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(autouse=True)
def unchecked() -> Iterator[None]:
    lock_probe.own_host()
    lock_probe.forget_checked()
    yield
    lock_probe.forget_checked()


def without_exclusive_creation(patched: pytest.MonkeyPatch) -> None:
    """As some FUSE file systems, and NFS 2."""
    real = os.open
    patched.setattr(os, "open", lambda path, flags, *rest, **keys: real(path, flags & ~os.O_EXCL, *rest, **keys))


def without_exclusive_creation_at_all(patched: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any, **keys: Any) -> int:
        if flags & os.O_EXCL:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), path)
        return real(path, flags, *rest, **keys)

    patched.setattr(os, "open", refuse)


def without_touch(patched: pytest.MonkeyPatch) -> None:
    real = os.utime
    patched.setattr(os, "utime", lambda path, *rest, **keys: None if isinstance(path, int) else real(path, *rest))


def without_renaming(patched: pytest.MonkeyPatch) -> None:
    """As a file system that copies, and leaves the first file."""
    patched.setattr(Path, "replace", lambda self, target: shutil.copyfile(self, target))


def with_new_numbers(patched: pytest.MonkeyPatch) -> None:
    """As FUSE file systems without stable inode numbers."""
    real, count = os.fstat, iter(range(10**9, 10**10))

    def changed(descriptor: int) -> os.stat_result:
        state = real(descriptor)
        return os.stat_result((state.st_mode, next(count), *state[2:]))

    patched.setattr(os, "fstat", changed)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (without_exclusive_creation, "O_EXCL"),
        (without_exclusive_creation_at_all, "not supported"),
        (without_touch, "touched"),
        (without_renaming, "renamed over"),
        (with_new_numbers, "inode"),
    ],
)
def test_an_output_root_where_locks_do_not_work_is_refused_before_anything_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Patch, words: str
) -> None:
    file = tmp_path / "out" / ".locks" / "key.lock"
    with monkeypatch.context() as patched:
        fault(patched)
        with pytest.raises(ConfigError) as error, Lock(file, "run x").held():
            pytest.fail("it is no lock")
    assert (error.value.code, error.value.key) == ("no_locks", "output_root")
    assert words in str(error.value)
    assert str(tmp_path / "out") in str(error.value)
    assert not file.exists()
    with Lock(file, "run x").held():  # the fault was not remembered
        assert [path.name for path in file.parent.iterdir()] == ["key.lock"]


def test_a_root_is_checked_once_in_milliseconds_and_leaves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    calls = []
    find_fault = lock_probe.find_fault
    monkeypatch.setattr(lock_probe, "find_fault", lambda folder: (calls.append(folder), find_fault(folder))[1])
    started = time.process_time()
    for name in ("a", "b"):
        with Lock(tmp_path / ".locks" / f"{name}.lock", name).held():
            pass
    assert time.process_time() - started < 1
    assert calls == [tmp_path / ".locks"]
    assert not list((tmp_path / ".locks").iterdir())


def test_what_a_killed_check_has_left_is_removed_by_the_next_one_and_that_of_a_living_one_is_not(
    tmp_path: Path,
) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    host = lock_probe.host_hash()
    left = tmp_path / f"{lock_probe.PREFIX}{dead.pid}-{host}-0.lock"
    living = tmp_path / f"{lock_probe.PREFIX}{os.getpid()}-{host}-1.lock"
    elsewhere = tmp_path / f"{lock_probe.PREFIX}{dead.pid}-00000000-2.new"
    old = tmp_path / f"{lock_probe.PREFIX}{dead.pid}-00000000-3.new"
    for file in (left, living, elsewhere, old):
        file.touch()
    os.utime(old, (time.time() - 1000,) * 2)
    lock_probe.check_locks(tmp_path)
    assert {*tmp_path.iterdir()} == {living, elsewhere}


@pytest.mark.parametrize("wait", [True, False])
def test_a_dead_lock_is_taken_over_where_names_cannot_be_exchanged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: bool
) -> None:
    """As on NFS, where filelock leaves the lock of a dead process."""
    monkeypatch.setattr("filelock._soft.exchange_names", lambda *_: False)
    monkeypatch.setattr(lock, "LEASE", 0.3)
    monkeypatch.setattr(lock, "MARGIN", 0.3)
    file = tmp_path / "key.lock"
    file.write_text(FOREIGN.format(pid=1, lease=0.3))
    with Lock(file, "run x").held(wait=wait):
        assert f"pid={os.getpid()}\n" in file.read_text()
    assert not list(tmp_path.iterdir())


def test_a_living_lock_is_put_back_when_it_took_the_place_of_a_dead_one(tmp_path: Path) -> None:
    file = tmp_path / "key.lock"
    file.write_text(FOREIGN.format(pid=1, lease=60))
    waiting = Lock(file, "run x")
    watch = lock.Watch(waiting.lease)
    file.unlink()
    file.write_text(FOREIGN.format(pid=2, lease=60))
    watch.state = lock.state_of(file)
    rename = Path.rename

    def late(self: Path, target: Path) -> Path:
        file.unlink()
        file.write_text(FOREIGN.format(pid=3, lease=60))
        os.utime(file, (5, 5))
        return rename(self, target)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "rename", late)
        waiting.remove_dead(watch)
    assert "pid=3\n" in file.read_text()
    assert [*tmp_path.iterdir()] == [file]


IGNORES_EXCLUSIVE_CREATION = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#define IGNORE(name) int name(const char *path, int flags, ...) { \\
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, #name); \\
    va_list rest; va_start(rest, flags); int mode = va_arg(rest, int); va_end(rest); \\
    return real(path, flags & ~O_EXCL, mode); }
IGNORE(open)
IGNORE(open64)
"""
"""Functions of the C library that lose a flag, as some file systems do."""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
def test_a_process_whose_system_loses_exclusive_creation_ends_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "lose.c").write_text(IGNORES_EXCLUSIVE_CREATION)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "lose.so", "lose.c", "-ldl"], cwd=tmp_path, check=True)
    words = [sys.executable, "-m", "kdbench", *SMALL, "teacher=none", "method=ce"]
    words = [word for word in words if not word.startswith("teacher=resnet") and not word.startswith("teacher.")]
    environment = os.environ | {"LD_PRELOAD": str(tmp_path / "lose.so"), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 2, ended.stdout + ended.stderr
    (line,) = ended.stderr.splitlines()
    assert "O_EXCL has no effect" in line
    assert not list((tmp_path / "outputs").rglob("*.lock"))
