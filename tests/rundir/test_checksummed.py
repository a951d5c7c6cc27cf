"""Checksummed files: metadata that is read alone, and no damage that stays unnoticed."""

import pytest

from kdbench.rundir import checksummed

METADATA = {"epoch": 3, "settings": {"threads": 2}}
CONTENT = b"content\nof any kind\x00"


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    checksummed.write(path, METADATA, CONTENT)
    return path


def test_metadata_and_content_come_back(file):
    assert checksummed.read(file) == (METADATA, CONTENT)
    assert checksummed.read_metadata(file) == METADATA


def test_every_flipped_bit_and_every_cut_is_noticed(file):
    whole = file.read_bytes()
    for position in range(len(whole)):
        for damaged in (
            whole[:position],
            whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :],
        ):
            file.write_bytes(damaged)
            with pytest.raises(checksummed.DamagedError):
                checksummed.read(file)


def test_metadata_is_read_without_the_content_and_checked(file):
    whole = file.read_bytes()
    end = whole.index(b"\n")
    file.write_bytes(whole[: end + 1])
    assert checksummed.read_metadata(file)["epoch"] == 3
    file.write_bytes(whole[:end].replace(b'"epoch": 3', b'"epoch": 4') + whole[end:])
    with pytest.raises(checksummed.DamagedError):
        checksummed.read_metadata(file)


def test_a_file_that_does_not_read_back_is_an_error_of_the_disk(tmp_path, monkeypatch):
    path = tmp_path / "file"
    intact_open = type(path).open

    def open_torn(self, mode="r", **named):
        if mode == "rb":  # the disk has lost the last byte
            with intact_open(self, "rb+") as written:
                written.truncate(self.stat().st_size - 1)
        return intact_open(self, mode, **named)

    monkeypatch.setattr(type(path), "open", open_torn)
    with pytest.raises(OSError, match=path.name):
        checksummed.write(path, {}, b"content")


def test_a_file_of_another_version_is_refused(file):
    file.write_bytes(b"kdbench-0 " + file.read_bytes())
    with pytest.raises(checksummed.DamagedError):
        checksummed.read(file)
