"""Files of a data set under `data.root`: checked by md5, and unpacked or downloaded where they are missing."""

import logging
import shutil
import sys
import tempfile
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock, Timeout
from torchvision.datasets.utils import check_integrity, extract_archive
from tqdm import tqdm

from kdbench.data.access import may_write
from kdbench.errors import ConfigError, first_line

log = logging.getLogger(__name__)

CHUNK = 1 << 18
"""Bytes that are read from the network at a time."""
TIMEOUT = 60.0
"""Seconds without an answer after which a download fails."""


class Download(NamedTuple):
    """A file that is published at an address."""

    filename: str
    url: str
    md5: str


class FileSet(NamedTuple):
    """The files that a data set is read from.

    Args:
        files: md5 of each file, by its path under the root.
        downloads: the archive that holds them, or the files themselves.
        instructions: how the user provides them, as a clause; `{root}` stands for the root.
        folder: folder under the root that holds all of them; empty for the root.
    """

    files: Mapping[str, str]
    downloads: tuple[Download, ...]
    instructions: str
    folder: str = ""


def provide(root: Path, wanted: FileSet, name: str, download: bool) -> None:
    """Check the files of a data set, and unpack or download those that are missing or damaged.

    Files that are intact are neither locked nor written. An archive that lies in the root is unpacked without a
    download. A file takes its final name when it is complete and verified; an interruption leaves at most a temporary
    folder. What was downloaded before and is damaged is replaced by a complete download; a damaged file that an
    archive holds is kept as NAME.damaged.

    Args:
        root: folder of the data set.
        wanted: its files.
        name: name of the data set's option, for errors.
        download: whether a download is allowed.

    Raises:
        ConfigError: a file is missing or damaged, and there is no archive, or the download failed; or the root cannot
            be written to.
    """
    damage = find_damage(root, wanted)
    if damage is None:
        return
    if not may_write() or (not download and not archives_there(root, wanted)):
        raise damage_error(root, wanted, name, damage)
    with writable(root), locked(root, wanted.downloads[0].filename, name):
        damage = find_damage(root, wanted)  # another process may have provided them meanwhile
        if damage is None:
            return
        for published in wanted.downloads:
            if published.filename in wanted.files and is_intact(root, published):
                continue
            if not is_intact(root, published):
                if not download:
                    raise damage_error(root, wanted, name, damage)
                fetch(root, published, wanted)
            if published.filename not in wanted.files:
                unpack(root, published, wanted)
        damage = find_damage(root, wanted)
        if damage:
            raise damage_error(root, wanted, name, damage)


def find_damage(root: Path, wanted: FileSet) -> tuple[str, str] | None:
    """Return error code and text for files under `root` that are missing or damaged, or None if all are intact."""
    folder = root / wanted.folder
    names = {path: path.removeprefix(f"{wanted.folder}/") for path in wanted.files}
    try:
        if not folder.is_dir():
            return "not_found", f"the folder {folder} was not found"
        missing = [names[path] for path in wanted.files if not (root / path).is_file()]
        if missing:
            return "not_found", f"{folder} lacks {', '.join(missing)}"
        damaged = [names[path] for path, md5 in wanted.files.items() if not check_integrity(str(root / path), md5)]
    except OSError as error:
        return "not_readable", f"a file cannot be read: {error}"
    if damaged:
        return "damaged", f"{folder} has damaged files (wrong md5): {', '.join(damaged)}"
    return None


def archives_there(root: Path, wanted: FileSet) -> bool:
    """Return whether every archive of the files lies in the root, intact; False where they are published without."""
    return all(d.filename not in wanted.files and is_intact(root, d) for d in wanted.downloads)


def is_intact(root: Path, published: Download) -> bool:
    """Return whether a published file lies in the root with its md5."""
    try:
        return check_integrity(str(root / published.filename), published.md5)
    except OSError:
        return False


def damage_error(root: Path, wanted: FileSet, name: str, damage: tuple[str, str]) -> ConfigError:
    """Return the error for files that are missing or damaged and are not downloaded."""
    code, text = damage
    broken = [d.filename for d in wanted.downloads if d.filename not in wanted.files and (root / d.filename).exists()]
    archive = f", and {', '.join(broken)} there is damaged (wrong md5)" if broken else ""
    return ConfigError(
        f"data={name}: {text}{archive}; {wanted.instructions.format(root=root)}, or set data.download=true",
        code=code,
        key="data.root",
    )


@contextmanager
def writable(root: Path) -> Iterator[None]:
    """Make the root if it is missing; on an error in the block, remove it again if this made it and it is empty.

    Raises:
        ConfigError: the root cannot be made or written to.
    """
    made: list[Path] = []
    try:
        for folder in (*reversed(root.parents), root):
            with suppress(FileExistsError):
                if not folder.exists():
                    folder.mkdir()
                    made.append(folder)
        if not root.is_dir():
            raise NotADirectoryError(20, "Not a directory", str(root))
        with tempfile.TemporaryDirectory(dir=root, prefix=".kdbench-"):
            pass
    except OSError as error:
        remove_empty(made)
        raise ConfigError(
            f"data.root is {root}, which cannot be written to ({error.strerror or error}); make it writable, or point "
            "data.root to a folder that is or that holds the files",
            code="not_writable",
            key="data.root",
        ) from None
    try:
        yield
    except BaseException:
        remove_empty(made)
        raise


def remove_empty(folders: list[Path]) -> None:
    """Remove folders, the last first, as long as they are empty."""
    with suppress(OSError):
        for folder in reversed(folders):
            folder.rmdir()


@contextmanager
def locked(root: Path, filename: str, name: str) -> Iterator[None]:
    """Hold the lock of a published file while the block runs: `.FILENAME.lock` in the root.

    Args:
        root: folder of the data set.
        filename: name of the file.
        name: name of the data set's option, for the log.

    Raises:
        ConfigError: the lock file cannot be written.
    """
    lock = FileLock(root / f".{filename}.lock")
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("data=%s: waiting for another process that provides %s", name, filename)
            lock.acquire()
    except OSError as error:
        raise ConfigError(
            f"data.root is {root}, where {lock.lock_file} cannot be locked ({error.strerror or error}); make it "
            "writable, or point data.root to a folder that is or that holds the files",
            code="not_writable",
            key="data.root",
        ) from None
    try:
        yield
    finally:
        # While it is held: filelock makes a new file where a waiting process finds this one removed.
        with suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()


@contextmanager
def temporary_folder(root: Path, filename: str) -> Iterator[Path]:
    """Yield a new folder in the root, removed at the end; only SIGKILL or a power cut leaves it."""
    folder = Path(tempfile.mkdtemp(prefix=f".{filename}.", dir=root))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def fetch(root: Path, published: Download, wanted: FileSet) -> None:
    """Download a file and put it into the root when it is complete and its md5 is right.

    Raises:
        ConfigError: the download failed.
    """
    log.info("downloading %s into %s", published.url, root)
    try:
        with temporary_folder(root, published.filename) as folder:
            file = folder / published.filename
            transfer(published.url, file)
            if not check_integrity(str(file), published.md5):
                raise OSError(f"{published.url} sent {file.stat().st_size} bytes with another md5")
            file.replace(root / published.filename)
    except Exception as error:  # of the network, the disk or a server
        raise ConfigError(
            f"data.download=true failed: {first_line(error)}; {wanted.instructions.format(root=root)}",
            code="download_failed",
            key="data.download",
        ) from None


def transfer(url: str, file: Path) -> None:
    """Write what an address sends into a file, with a bar on a terminal."""
    # Torchvision's function has no time limit, and it shows its bar in log files too.
    request = urllib.request.Request(url, headers={"User-Agent": "kdbench"})
    with urllib.request.urlopen(request, timeout=TIMEOUT) as response, file.open("wb") as opened:
        size = response.headers.get("Content-Length")
        with tqdm(
            desc=file.name, total=int(size) if size else None, unit="B", unit_scale=True, dynamic_ncols=True,
            disable=not sys.stderr.isatty(), leave=False,
        ) as bar:  # fmt: skip
            while chunk := response.read(CHUNK):
                opened.write(chunk)
                bar.update(len(chunk))


def unpack(root: Path, archive: Download, wanted: FileSet) -> None:
    """Unpack an archive into a temporary folder and put the files that are missing or damaged into place, one by one.

    Raises:
        ConfigError: it cannot be unpacked, for example because the disk is full.
    """
    log.info("unpacking %s into %s", archive.filename, root / wanted.folder)
    try:
        with temporary_folder(root, archive.filename) as folder:
            with warnings.catch_warnings():  # the archive's md5 is right, so no filter of its members is needed
                warnings.simplefilter("ignore", DeprecationWarning)
                extract_archive(str(root / archive.filename), str(folder))
            for path, md5 in wanted.files.items():
                if check_integrity(str(root / path), md5):
                    continue
                if not check_integrity(str(folder / path), md5):
                    raise OSError(f"{path} in the archive is missing or damaged")
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                move_into_place(folder / path, root / path)
    except Exception as error:  # a full disk, or what tarfile raises
        raise ConfigError(
            f"{root / archive.filename} cannot be unpacked: {first_line(error)}; make space or make {root} writable, "
            "and repeat the command",
            code="not_writable",
            key="data.root",
        ) from None


def move_into_place(source: Path, destination: Path) -> None:
    """Move a complete file to its final name; a damaged file of that name is kept beside it."""
    if destination.exists():
        aside = destination.with_name(f"{destination.name}.damaged")
        number = 1
        while aside.exists():
            number += 1
            aside = destination.with_name(f"{destination.name}.damaged{number}")
        destination.rename(aside)
        log.warning("%s was damaged (wrong md5): it is replaced, and kept as %s", destination, aside.name)
    source.replace(destination)
