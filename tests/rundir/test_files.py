"""Files that are whole at every moment."""

import json
import os
import stat

import pytest

from kdbench.errors import ConfigError
from kdbench.rundir.files import atomic_path, check_no_links, check_writable, sha256, write_json, write_text


def test_a_file_is_replaced_as_a_whole(tmp_path):
    file = tmp_path / "file"
    write_text(file, "old")
    with atomic_path(file) as temporary:
        temporary.write_text("new")
        assert file.read_text() == "old"
    assert file.read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_while_writing_leaves_the_old_file_and_nothing_beside_it(tmp_path, error):
    file = tmp_path / "file"
    write_text(file, "old")

    def write_half():
        with atomic_path(file) as temporary:
            temporary.write_text("ne")
            raise error

    with pytest.raises(error):
        write_half()
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_files_have_the_mode_that_the_user_set(tmp_path):
    umask = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "file") as temporary:
            temporary.unlink()
            temporary.touch(mode=0o600)  # as libraries create them
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_json_reads_back_and_a_hash_is_of_the_bytes(tmp_path):
    content = {"a": [1, None, 0.1], "b": "é"}
    write_json(tmp_path / "file", content)
    assert json.loads((tmp_path / "file").read_text()) == content
    (tmp_path / "empty").touch()
    assert sha256(tmp_path / "empty") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_links_are_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    check_no_links(tmp_path, tmp_path / "missing")
    with pytest.raises(ConfigError) as error:
        check_no_links(tmp_path, tmp_path / "link")
    assert (error.value.code, error.value.key) == ("link", "output_root")


def test_a_folder_that_can_be_made_is_writable_and_is_not_made(tmp_path):
    check_writable(tmp_path / "new" / "deeper")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("below", ["file", "file/deeper", "x" * 300])
def test_a_folder_that_cannot_be_made_is_an_error_with_its_key(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError) as error:
        check_writable(tmp_path / below, "--out")
    assert (error.value.code, error.value.key) == ("not_writable", "--out")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_an_error(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError) as error:
        check_writable(tmp_path / "new")
    tmp_path.chmod(0o700)
    assert error.value.code == "not_writable"
