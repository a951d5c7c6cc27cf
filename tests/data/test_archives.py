import hashlib
import http.server
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from kdbench.data import archives
from kdbench.data.archives import Download, FileSet, provide
from kdbench.errors import ConfigError

CONTENT = {f"set/{name}": np.random.default_rng(n).bytes(200_000) for n, name in enumerate(("one", "two", "three"))}
REPOSITORY = Path(__file__).parents[2]
ROOT_USER = os.geteuid() == 0


@pytest.fixture
def published(tmp_path):
    """The files of a small data set, whose archive can be downloaded from a file:// address."""
    return publish(tmp_path / "server")


def publish(server: Path) -> FileSet:
    server.mkdir(exist_ok=True)
    archive = server / "set.tar.gz"
    if not archive.exists():
        for path, content in CONTENT.items():
            (server / path).parent.mkdir(exist_ok=True)
            (server / path).write_bytes(content)
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(server / "set", "set")
    files = {path: hashlib.md5(content).hexdigest() for path, content in CONTENT.items()}
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    return FileSet(files, (Download("set.tar.gz", archive.as_uri(), md5),), "unpack set.tar.gz into {root}", "set")


def archive_of(tmp_path):
    return (tmp_path / "server" / "set.tar.gz").read_bytes()


def state(root):
    """Return every file in a folder with its content."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def assert_whole(root):
    """Everything under a final name is whole; only temporary folders may be beside it."""
    for path, content in CONTENT.items():
        assert not (root / path).exists() or (root / path).read_bytes() == content


def error_of(root, published, download):
    with pytest.raises(ConfigError) as error:
        provide(root, published, "small", download)
    assert "\n" not in str(error.value)
    return error.value.code, error.value.key, str(error.value)


def test_files_that_are_there_are_used_without_a_lock_or_a_write(tmp_path, published, monkeypatch):
    root = tmp_path / "server"
    monkeypatch.setattr(archives, "FileLock", None)
    monkeypatch.setattr(archives, "writable", None)
    before = root.stat().st_mtime_ns
    for download in (False, True):
        provide(root, published, "small", download)
    assert root.stat().st_mtime_ns == before


def test_missing_files_are_an_error_with_the_archive_to_unpack(tmp_path, published):
    root = tmp_path / "data"
    code, key, text = error_of(root, published, download=False)
    assert (code, key) == ("not_found", "data.root")
    assert f"unpack set.tar.gz into {root}" in text
    assert "data.download=true" in text
    assert not root.exists()


def test_an_archive_that_is_there_is_unpacked_without_a_download(tmp_path, published, monkeypatch):
    root = tmp_path / "data"
    root.mkdir()
    (root / "set.tar.gz").write_bytes(archive_of(tmp_path))
    monkeypatch.setattr(archives, "transfer", None)
    provide(root, published, "small", download=False)
    assert state(root) == {**CONTENT, "set.tar.gz": archive_of(tmp_path)}


def test_a_missing_archive_is_downloaded_and_kept(tmp_path, published):
    root = tmp_path / "deep" / "data"
    provide(root, published, "small", download=True)
    assert state(root) == {**CONTENT, "set.tar.gz": archive_of(tmp_path)}


def test_a_half_archive_is_refused_without_and_replaced_by_a_download(tmp_path, published):
    root = tmp_path / "data"
    root.mkdir()
    half = archive_of(tmp_path)[:1000]
    (root / "set.tar.gz").write_bytes(half)
    code, _, text = error_of(root, published, download=False)
    assert code == "not_found"
    assert "set.tar.gz there is damaged" in text
    assert state(root) == {"set.tar.gz": half}
    provide(root, published, "small", download=True)
    assert state(root) == {**CONTENT, "set.tar.gz": archive_of(tmp_path)}


def test_only_missing_and_damaged_files_are_written_and_a_damaged_one_is_kept_beside(tmp_path, published):
    root = tmp_path / "data"
    (root / "set").mkdir(parents=True)
    (root / "set.tar.gz").write_bytes(archive_of(tmp_path))
    (root / "set" / "one").write_bytes(CONTENT["set/one"])
    (root / "set" / "two").write_bytes(b"changed by hand")
    written = (root / "set" / "one").stat().st_mtime_ns
    provide(root, published, "small", download=False)
    assert (root / "set" / "one").stat().st_mtime_ns == written
    assert state(root / "set").pop("two.damaged") == b"changed by hand"
    assert_whole(root)


def test_damaged_files_without_an_archive_are_an_error_that_names_them(tmp_path, published):
    root = tmp_path / "data"
    (root / "set").mkdir(parents=True)
    for path, content in CONTENT.items():
        (root / path).write_bytes(content if path != "set/two" else content[:-1])
    before = state(root)
    code, key, text = error_of(root, published, download=False)
    assert (code, key) == ("damaged", "data.root")
    assert "two" in text
    assert "three" not in text
    assert state(root) == before


@pytest.mark.parametrize("interruption", [OSError("network is unreachable"), KeyboardInterrupt()])
def test_an_interrupted_download_leaves_the_root_as_it_was(tmp_path, published, monkeypatch, interruption):
    def half(url, file):
        file.write_bytes(b"half")
        raise interruption

    monkeypatch.setattr(archives, "transfer", half)
    root = tmp_path / "data"
    with pytest.raises((ConfigError, KeyboardInterrupt)) as error:
        provide(root, published, "small", download=True)
    if isinstance(interruption, OSError):
        assert (error.value.code, error.value.key) == ("download_failed", "data.download")
        assert "network is unreachable" in str(error.value)
        assert f"unpack set.tar.gz into {root}" in str(error.value)
    assert not root.exists()

    foreign = {"notes.txt": b"mine", "set/one.bak": b"mine too", "set.tar.gz": b"half of yesterday"}
    (root / "set").mkdir(parents=True)
    for path, content in foreign.items():
        (root / path).write_bytes(content)
    with pytest.raises((ConfigError, KeyboardInterrupt)):
        provide(root, published, "small", download=True)
    assert state(root) == foreign


def test_a_server_that_stops_in_the_middle_is_an_error(tmp_path, published):
    class Half(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"x" * 5000)

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Half) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        address = f"http://127.0.0.1:{server.server_address[1]}/set.tar.gz"
        broken = published._replace(downloads=(published.downloads[0]._replace(url=address),))
        code, key, text = error_of(tmp_path / "data", broken, download=True)
        thread.join()
    assert (code, key) == ("download_failed", "data.download")
    assert address in text or "IncompleteRead" in text
    assert not (tmp_path / "data").exists()


def test_a_download_with_other_content_takes_no_place(tmp_path, published):
    (tmp_path / "server" / "set.tar.gz").write_bytes(b"something else")
    root = tmp_path / "data"
    root.mkdir()
    assert error_of(root, published, download=True)[:2] == ("download_failed", "data.download")
    assert state(root) == {}


@pytest.mark.parametrize("interruption", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_unpacking_leaves_whole_files_only(tmp_path, published, monkeypatch, interruption):
    root = tmp_path / "data"
    root.mkdir()
    (root / "set.tar.gz").write_bytes(archive_of(tmp_path))
    place, placed = archives.move_into_place, []

    def second_fails(source, destination):
        if placed:
            raise interruption
        placed.append(destination)
        place(source, destination)

    with monkeypatch.context() as patched:
        patched.setattr(archives, "move_into_place", second_fails)
        with pytest.raises((ConfigError, KeyboardInterrupt)) as error:
            provide(root, published, "small", download=False)
    if isinstance(interruption, OSError):
        assert (error.value.code, error.value.key) == ("not_writable", "data.root")
        assert "No space left" in str(error.value)
    assert state(root) == {"set.tar.gz": archive_of(tmp_path), "set/one": CONTENT["set/one"]}
    provide(root, published, "small", download=False)
    assert_whole(root)


PROVIDE = """
import sys, time
from pathlib import Path
from kdbench.data import archives
from tests.data.test_archives import publish
server, root, mode = sys.argv[1:]
if mode == "stop":
    place = archives.move_into_place
    def place_first(source, destination):
        if (Path(root) / "set" / "one").exists():
            print("second", flush=True)
            time.sleep(60)
        place(source, destination)
    archives.move_into_place = place_first
if mode == "count":
    download = archives.transfer
    def counted(*arguments):
        print("downloading", flush=True)
        time.sleep(1)
        download(*arguments)
    archives.transfer = counted
print("ready", flush=True)
sys.stdin.readline()
archives.provide(Path(root), publish(Path(server)), "small", True)
"""


def start(server, root, mode):
    command = [sys.executable, "-c", PROVIDE, str(server), str(root), mode]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def go(process):
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.slow
def test_a_process_killed_while_it_unpacks_leaves_nothing_half_written_and_no_lock(tmp_path, published):
    root = tmp_path / "data"
    process = start(tmp_path / "server", root, "stop")
    go(process)
    assert process.stdout.readline() == "second\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [path for path in CONTENT if (root / path).exists()] == ["set/one"]
    assert_whole(root)
    left = {path for path in root.iterdir() if path.is_dir() and path.name.startswith(".")}
    assert left
    provide(root, published, "small", download=False)
    assert {path: (root / path).read_bytes() for path in CONTENT} == CONTENT
    assert all(folder.exists() for folder in left)  # not made by this process


@pytest.mark.slow
def test_of_two_processes_at_once_one_downloads(tmp_path, published):
    root = tmp_path / "data"
    processes = [start(tmp_path / "server", root, "count") for _ in range(2)]
    for process in processes:
        go(process)
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert "".join(outputs).count("downloading") == 1
    assert state(root) == {**CONTENT, "set.tar.gz": archive_of(tmp_path)}


def test_many_threads_at_once_provide_whole_files(tmp_path, published):
    root, errors = tmp_path / "data", []

    def work():
        try:
            provide(root, published, "small", download=True)
            assert_whole(root)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert state(root) == {**CONTENT, "set.tar.gz": archive_of(tmp_path)}


def test_a_process_that_waits_says_so(tmp_path, published, caplog):
    root = tmp_path / "data"
    root.mkdir()
    caplog.set_level("INFO", "kdbench")
    with archives.locked(root, "set.tar.gz", "small"):
        thread = threading.Thread(target=provide, args=(root, published, "small", True))
        thread.start()
        deadline = time.monotonic() + 20
        while "waiting for another process" not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.01)
        assert state(root).keys() == {".set.tar.gz.lock"}
    thread.join()
    assert "waiting for another process that provides set.tar.gz" in caplog.text
    assert_whole(root)


@pytest.mark.skipif(ROOT_USER, reason="permissions do not bind the superuser")
def test_a_read_only_root_is_an_error(tmp_path, published):
    root = tmp_path / "data"
    root.mkdir()
    (root / "set.tar.gz").write_bytes(archive_of(tmp_path))
    root.chmod(0o555)
    for download in (False, True):
        code, key, text = error_of(root, published, download)
        assert (code, key) == ("not_writable", "data.root")
        assert "Permission denied" in text


@pytest.mark.parametrize("made", [True, False])
def test_a_root_that_cannot_be_written_to_is_an_error(tmp_path, published, monkeypatch, made):
    root = tmp_path / "data"
    if made:
        root.mkdir()

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(archives.tempfile, "TemporaryDirectory", read_only)
    code, key, text = error_of(root, published, download=True)
    assert (code, key) == ("not_writable", "data.root")
    assert "Read-only file system" in text
    assert root.exists() == made


def test_a_root_that_is_a_file_is_an_error(tmp_path, published):
    root = tmp_path / "data"
    root.write_text("mine")
    assert error_of(root, published, download=False)[0] == "not_found"
    assert error_of(root, published, download=True)[0] == "not_writable"
    assert root.read_text() == "mine"


def test_files_that_are_published_alone_are_downloaded_where_they_are_missing_or_damaged(tmp_path):
    server, root = tmp_path / "server", tmp_path / "data"
    server.mkdir()
    root.mkdir()
    contents = {"train.mat": b"t" * 5000, "test.mat": b"e" * 5000}
    for name, content in contents.items():
        (server / name).write_bytes(content)
    downloads = tuple(
        Download(name, (server / name).as_uri(), hashlib.md5(content).hexdigest()) for name, content in contents.items()
    )
    published = FileSet({d.filename: d.md5 for d in downloads}, downloads, "put them into {root}")
    (root / "train.mat").write_bytes(contents["train.mat"])
    (root / "test.mat").write_bytes(b"half")
    written = (root / "train.mat").stat().st_mtime_ns
    assert error_of(root, published, download=False)[0] == "damaged"
    provide(root, published, "small", download=True)
    assert state(root) == contents
    assert (root / "train.mat").stat().st_mtime_ns == written


def test_nothing_is_imported_from_the_files(tmp_path, published):
    """An archive with the right name and another md5 is never opened."""
    root = tmp_path / "data"
    root.mkdir()
    (root / "set.tar.gz").write_bytes(pickle.dumps("no archive"))
    assert error_of(root, published, download=False)[0] == "not_found"
