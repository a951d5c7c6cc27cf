"""One output root for several users of a system, by real processes of made-up users. Only root can make them."""

import contextlib
import json
import os
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

from tests.conftest import rest_wide
from tests.faults.checks import leftovers, result
from tests.faults.processes import SMALL, Command, Member, fork_server

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.getuid() != 0, reason="only root can become other users")]
LAB, ALICE, BOB = 61000, 61001, 61002
"""A group, and two users of it."""
RUN = (*(text for text in SMALL if not text.startswith("teacher.") or "recipe" in text), "method=ce")
STUDENT = (*SMALL, "method=logit", "data.augment=false")
Call = Callable[..., Command]


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    return fork_server()


@contextlib.contextmanager
def folder_of_group() -> Iterator[Path]:
    """Yield a folder of the group, in which every member can write; pytest's own are closed to other users."""
    folder = Path(tempfile.mkdtemp(prefix="kdbench-lab-"))
    os.chown(folder, ALICE, LAB)
    folder.chmod(0o2775)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def lab() -> Iterator[Path]:
    """A folder of the group."""
    with folder_of_group() as folder:
        yield folder


def member(user: int, umask: int = 0o002) -> Member:
    """Return a member of the group."""
    return Member(user, (LAB,), umask)


@pytest.fixture
def call(context: ForkServerContext, lab: Path) -> Call:
    """Execute `kdbench` as a member of the group, and return the ended command."""

    def ended(user: int, *arguments: str, umask: int = 0o002, wait: bool = True) -> Command:
        command = Command(context, lab, arguments, member=member(user, umask))
        if wait:
            command.exit_code(120)
        return command

    return ended


@pytest.fixture(scope="module")
def trained_once(context: ForkServerContext) -> Iterator[Path]:
    """The folder of the group with a run of one member."""
    with folder_of_group() as folder:
        assert Command(context, folder, RUN, member=member(ALICE)).exit_code() == 0
        yield folder


@pytest.fixture
def trained(trained_once: Path, lab: Path) -> None:
    """Copy the run of one member into the lab, with its owners and modes."""
    subprocess.run(["cp", "-a", trained_once / "out", lab], check=True)


def refused(command: Command) -> str:
    """Return the line in which a command was refused; there is no other, and no traceback."""
    assert command.exit_code() in (1, 2), command.output()
    assert "Traceback" not in command.output()
    (line,) = command.errors()
    return line


def test_a_root_of_a_member_with_a_restrictive_umask_is_refused_with_whose_it_is(call: Call, lab: Path) -> None:
    assert call(ALICE, *RUN, umask=0o077).exit_code() == 0
    line = refused(call(BOB, *RUN, "seed=1"))
    assert f"it belongs to user {ALICE}" in line
    assert "mode drwx" in line
    assert "umask 002" in line
    assert "setfacl" in line
    assert str(lab / "out") in line


CLOSED = {
    "out": 0o755,
    "out/runs": 0o755,
    "out/.locks": 0o755,
    "out/runs/*": 0o700,
    "out/runs/*/summary.json": 0o600,
}
"""What another member keeps to themselves of a root that is open otherwise, with its mode."""


@pytest.mark.usefixtures("trained")
@pytest.mark.parametrize("closed", CLOSED)
def test_a_part_of_a_root_that_is_closed_is_named(call: Call, lab: Path, closed: str) -> None:
    (path,) = lab.glob(closed)
    path.chmod(CLOSED[closed])
    line = refused(call(BOB, *RUN))
    assert str(path.relative_to(lab)) in line
    assert f"user {ALICE}" in line


def test_an_unfinished_run_of_another_member_is_resumed_where_it_may_be_written(call: Call, lab: Path) -> None:
    longer = (*RUN, "recipe.epochs=12")
    kill_during_training(call(ALICE, *longer, wait=False), lab)
    (run,) = (lab / "out" / "runs").iterdir()
    run.chmod(0o2755)
    line = refused(call(BOB, *longer))
    assert f"{run.name} cannot be written to by user {BOB}: it belongs to user {ALICE}" in line
    run.chmod(0o2775)
    resumed = call(BOB, *longer)  # the lock of the dead process belongs to the other member too
    assert resumed.exit_code() == 0, resumed.output()
    assert "which is gone" in resumed.output()
    assert not leftovers(lab)
    alone = call(BOB, *longer, "output_root=alone/out")
    assert alone.exit_code() == 0, alone.output()
    (expected,) = (lab / "alone" / "out" / "runs").iterdir()
    assert result(run) == result(expected)


def kill_during_training(command: Command, lab: Path) -> None:
    """Kill a command once it has written a checkpoint."""
    deadline = time.monotonic() + 60
    while not list(lab.glob("out/runs/*/last.ckpt")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert command.send(signal.SIGKILL)
    command.exit_code()
    assert list(lab.glob("out/.locks/*.lock"))


def test_with_a_sticky_folder_of_locks_that_of_a_dead_process_is_an_error_that_says_so(call: Call, lab: Path) -> None:
    longer = (*RUN, "recipe.epochs=12")
    kill_during_training(call(ALICE, *longer, wait=False), lab)
    (lab / "out" / ".locks").chmod(0o3775)
    line = refused(call(BOB, *longer))
    assert f"belongs to user {ALICE}" in line
    assert "chmod -t" in line
    assert call(ALICE, *longer).exit_code() == 0


def test_members_share_runs_teachers_logit_caches_and_the_records_of_sweeps(call: Call, lab: Path) -> None:
    assert call(ALICE, *STUDENT, "teacher.cache=off").exit_code() == 0
    again = call(BOB, *STUDENT)
    assert again.exit_code() == 0
    assert "complete already, skipped" in again.output()
    cached = call(BOB, *STUDENT, "teacher.cache=on", "seed=1")
    assert cached.exit_code() == 0, cached.output()
    (cache,) = lab.glob("out/runs/*_ce_*/logits-cpu.npy")
    assert cache.stat().st_uid == BOB
    reader = call(ALICE, *STUDENT, "teacher.cache=on", "seed=2")
    assert reader.exit_code() == 0, reader.output()
    for user in (ALICE, BOB):
        sweep = call(user, "-m", *STUDENT, "seed=0,1")
        assert sweep.exit_code() == 0, sweep.output()
    assert len(list(lab.glob("out/sweeps/*.json"))) == 2
    assert len(list(lab.glob("out/runs/*/summary.json"))) == 4
    for path in (lab / "out").rglob("*"):
        state = path.stat()
        assert state.st_gid == LAB, path
        assert stat.S_IMODE(state.st_mode) == (0o2775 if path.is_dir() else 0o664), path
    assert not leftovers(lab)


@pytest.mark.parametrize("beside", rest_wide(["logit cache", "nothing"]))
def test_a_store_of_teachers_that_is_only_read_is_used(call: Call, lab: Path, beside: str) -> None:
    store, cache = lab / "store", "on" if beside == "logit cache" else "off"
    made = call(ALICE, *STUDENT, f"teacher.cache={cache}", f"output_root={store}", umask=0o022)
    assert made.exit_code() == 0, made.output()
    for path in (*store.rglob("*"), store):
        path.chmod(path.stat().st_mode & ~0o222)
    before = snapshot(store)
    shared = call(BOB, *STUDENT, "teacher.cache=on", "seed=1", f"shared_roots=[{store}]")
    assert shared.exit_code() == 0, shared.output()
    assert snapshot(store) == before
    (run,) = lab.glob("out/runs/*_logit_*")
    teacher = next(store.glob("runs/*_ce_*"))
    assert json.loads((run / "summary.json").read_text())["teacher_key"] == teacher.name.rpartition("_")[2]
    own_caches = list(lab.glob("out/runs/*_ce_*/logits-cpu.npy"))
    assert len(own_caches) == (0 if beside == "logit cache" else 1)
    assert not list(lab.glob("out/runs/*_ce_*/summary.json"))
    skipped = call(BOB, *STUDENT, f"shared_roots=[{store}]")
    assert f"complete already, skipped: {store}/runs/" in skipped.output()
    assert not leftovers(lab)
    alone = call(BOB, *STUDENT, "teacher.cache=on", "seed=1", "output_root=alone/out")
    assert alone.exit_code() == 0, alone.output()
    assert result(run) == result(lab / "alone" / "out" / "runs" / run.name)


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and time of every file and folder below one."""
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}
