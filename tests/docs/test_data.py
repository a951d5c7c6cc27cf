"""The examples of docs/data.md: files as written, and commands as given but for the sizes of the tests."""

import struct
from pathlib import Path

import numpy as np
import pytest

from kdbench.runner.run import check_run
from kdbench.verify.command import verify_runs
from tests.conftest import complete
from tests.docs.examples import commands_of, config_of, use_random_images, write_images
from tests.docs.test_docs import CHECKOUT, command_lines, run_blocks, write_files

PAGE = CHECKOUT / "docs" / "data.md"
COMMANDS = commands_of(PAGE)
QUICK = (0,)
"""Numbers of the commands that are executed every day, beside that of the class of one's own."""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the page shows, and the data that its commands name."""
    write_files(PAGE, tmp_path)
    rng = np.random.default_rng(0)
    labels = np.arange(2500) % 10
    np.savez(tmp_path / "digits.npz", images=rng.integers(0, 256, (2500, 12, 12), dtype=np.uint8), labels=labels)
    write_images(tmp_path / "photos", ("cat", "dog", "owl"), 120)
    write_mnist(tmp_path / "data" / "MNIST" / "raw", ("train", "t10k"), 0)
    write_mnist(tmp_path / "data" / "EMNIST" / "raw", ("emnist-letters-train", "emnist-letters-test"), 1)
    write_textures(tmp_path / "data" / "dtd" / "dtd")
    use_random_images(monkeypatch)
    monkeypatch.delenv("KDBENCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write_mnist(folder: Path, prefixes: tuple[str, ...], first_label: int) -> None:
    """Write small images in the format of MNIST's files."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for prefix, count in zip(prefixes, (800, 100), strict=True):
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10 + first_label).astype(np.uint8)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = struct.pack(f">{1 + values.ndim}I", 0x0800 + values.ndim, *values.shape)
            (folder / f"{prefix}-{kind}-ubyte").write_bytes(header + values.tobytes())


def write_textures(folder: Path) -> None:
    """Write small images in the layout of DTD."""
    write_images(folder / "images", ("banded", "dotted"), 100)
    (folder / "labels").mkdir()
    for name, start, end in (("train", 0, 40), ("val", 40, 70), ("test", 70, 100)):
        lines = [f"{kind}/{kind}_{number}.jpg\n" for kind in ("banded", "dotted") for number in range(start, end)]
        (folder / "labels" / f"{name}1.txt").write_text("".join(lines))


def sizes_of(command: str) -> list[str]:
    """Return one epoch, fewer images where a class has few, and narrower networks."""
    sizes = ["recipe=smoke"]
    if "image_folder" in command:
        sizes += ["data.num_val=30", "data.num_test=30"]
    if "shapes100" in command:
        sizes += ["data.num_train=100"]
    if "x4" in command:
        sizes += ["student.widths=[8,8,16,32]", "teacher.widths=[8,8,16,32]"]
    return sizes


def run(number: int, folder: Path) -> None:
    config = config_of(COMMANDS[number], sizes_of(COMMANDS[number]), folder)
    check_run(config)
    assert complete(config).is_complete()


OWN = [number for number, command in enumerate(COMMANDS) if "data=digits" in command]


@pytest.mark.parametrize(
    "number",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.wide) for n in range(len(COMMANDS)) if n not in OWN],
)
def test_commands_run_as_given(number: int, files: Path) -> None:
    run(number, files)


@pytest.mark.slow
def test_a_class_of_ones_own_is_trained_verified_and_loaded_as_shown(files: Path) -> None:
    for number in OWN:
        run(number, files)
    ((_, *words),) = [words for words in command_lines(PAGE) if words[0] == "kdbench-verify"]
    assert verify_runs(words) == 0
    run_blocks(PAGE)


def test_every_command_of_the_page_is_a_case() -> None:
    assert len(COMMANDS) == PAGE.read_text().count("\nkdbench ")
