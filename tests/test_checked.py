import pytest

from kdbench import checked


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    checked.write(path, {"epoch": 3, "choices": {"threads": 2}}, b"content\nof any kind\x00")
    return path


def test_facts_and_content_come_back(file):
    assert checked.read(file) == ({"epoch": 3, "choices": {"threads": 2}}, b"content\nof any kind\x00")
    assert checked.read_facts(file) == {"epoch": 3, "choices": {"threads": 2}}


def test_every_flipped_bit_and_every_cut_is_noticed(file):
    whole = file.read_bytes()
    for position in range(len(whole)):
        for damaged in (
            whole[:position],
            whole[:position] + bytes([whole[position] ^ 1 << position % 8]) + whole[position + 1 :],
        ):
            file.write_bytes(damaged)
            with pytest.raises(checked.DamagedError):
                checked.read(file)


def test_facts_are_read_without_the_content_and_checked(file):
    whole = file.read_bytes()
    end = whole.index(b"\n")
    file.write_bytes(whole[: end + 1])
    assert checked.read_facts(file)["epoch"] == 3
    file.write_bytes(whole[:end].replace(b'"epoch": 3', b'"epoch": 4') + whole[end:])
    with pytest.raises(checked.DamagedError):
        checked.read_facts(file)


def test_what_does_not_read_back_is_an_error_of_the_disk(tmp_path, monkeypatch):
    def torn(path):
        raise checked.DamagedError("its content is not what its checksum says")

    monkeypatch.setattr(checked, "read", torn)
    with pytest.raises(OSError, match="reads back otherwise than it was written"):
        checked.write(tmp_path / "file", {}, b"content")
